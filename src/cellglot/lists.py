"""Lists in one text, as in options of commands: parts between commas; a part in double quotes may contain commas."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path


def split_list(text: str) -> list[str]:
    """Split a text at its commas, except at those in double quotes: ``a,"b, c"`` has two parts. Blanks are kept."""
    if '"' not in text:
        return text.split(",")
    return next(csv.reader([re.sub(r'(^|,)\s+"', r'\1"', text.replace("\n", " "))]))


def split_paths(text: str) -> list[str]:
    """Split a text as `split_list` does, unless it is the path of an existing file."""
    return [text] if Path(text).expanduser().exists() else [part.strip() for part in split_list(text)]


def split_pairs(text: str) -> list[str]:
    """Split ``KEY=VALUE,KEY=VALUE`` at the commas before a key; values may contain commas."""
    pairs: list[str] = []
    for part in split_list(text):
        if pairs and ("=" not in part or "=" not in pairs[-1] or _is_open(pairs[-1])):
            pairs[-1] = f"{pairs[-1]},{part}"
        else:
            pairs.append(part)
    return [pair.strip() for pair in pairs]


def split_settings(text: str) -> list[str]:
    """Split ``SECTION.KEY=VALUE,SECTION.KEY=VALUE`` at the commas before a section and key."""
    return re.split(r",\s*(?=\w+(?:\.\w+)+=)", text)


def _is_open(text: str) -> bool:
    """Whether a bracket is open, so that a list or mapping is incomplete."""
    return any(text.count(left) > text.count(right) for left, right in ("[]", "{}"))


def to_dict(pairs: Iterable[str], name: str) -> dict[str, str]:
    """Return ``KEY=VALUE`` pairs as a dictionary.

    Parameters
    ----------
    name
        The option, for messages.
    """
    found = {}
    for text in pairs:
        key, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"{name} {text!r}: write it as KEY=VALUE")
        found[key] = value
    return found


__all__ = ["split_list", "split_pairs", "split_paths", "split_settings", "to_dict"]
