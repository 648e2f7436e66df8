"""Code of a model's folder under its name in its package, where pickles of `dill` and so of `datasets` look for it."""

import sys


def name_in_package(module: str) -> None:
    """Make a loaded module an attribute of its package.

    Transformers loads the first file of a folder's code without doing so, unlike Python's imports. Then `dill` does
    not find a class by its name and takes it apart, with all that it refers to.
    """
    package, _, name = module.rpartition(".")
    if package in sys.modules and module in sys.modules:
        setattr(sys.modules[package], name, sys.modules[module])


__all__ = ["name_in_package"]
