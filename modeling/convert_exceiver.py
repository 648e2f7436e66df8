"""Alias of `cellglot.modeling.convert.exceiver`, whose name is public."""

from cellglot.modeling.convert.exceiver import *  # noqa: F403
