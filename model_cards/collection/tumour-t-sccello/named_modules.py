"""Modules of a model's folder as attributes of their package, as `dill` (and so `datasets`) needs them."""

import sys


def name_in_package(module: str) -> None:
    """Make a loaded module an attribute of its package.

    Unlike Python's imports, transformers does not do this for the first file of a folder. Then `dill` does not find a
    class by its name and pickles its content, with everything that it refers to.
    """
    package, _, name = module.rpartition(".")
    if package in sys.modules and module in sys.modules:
        setattr(sys.modules[package], name, sys.modules[module])


__all__ = ["name_in_package"]
