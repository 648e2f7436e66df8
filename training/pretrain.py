"""Alias: ``-m cellglot.training.pretrain`` is ``-m cellglot pretrain``."""

import runpy
import sys


if __name__ == "__main__":
    sys.argv[1:] = ["pretrain", *sys.argv[1:]]
    runpy.run_module("cellglot", run_name="__main__", alter_sys=True)
