"""``python -m cellglot``, ``torchrun -m cellglot``, ``accelerate launch -m cellglot``: the command line."""

from cellglot.cli import main


if __name__ == "__main__":
    main()
