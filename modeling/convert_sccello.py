"""Alias of `cellglot.modeling.convert.sccello`, whose name is public."""

from cellglot.modeling.convert.sccello import *  # noqa: F403
