"""Alias of `cellglot.modeling.convert.langcell`, whose name is public."""

from cellglot.modeling.convert.langcell import *  # noqa: F403
