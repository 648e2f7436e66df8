"""Alias: ``-m cellglot.training.pretrain`` is ``cellglot pretrain``."""

from cellglot.training.pretraining.pretrain import main


if __name__ == "__main__":
    main()
