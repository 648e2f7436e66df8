"""Lists in one text, as options of commands are written: parts between commas; double quotes keep a comma."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path


def split_list(text: str) -> list[str]:
    """Split a text at its commas, except at those in double quotes: ``a,"b, c"`` has two parts.

    Parameters
    ----------
    text
        The list. Blanks around its parts stay.
    """
    if '"' not in text:
        return text.split(",")
    return next(csv.reader([re.sub(r'(^|,)\s+"', r'\1"', text.replace("\n", " "))]))


def split_paths(text: str) -> list[str]:
    """Split a text at commas as `split_list` does; the path of a file that exists is not split."""
    return [text] if Path(text).expanduser().exists() else [part.strip() for part in split_list(text)]


def split_pairs(text: str) -> list[str]:
    """Split ``KEY=VALUE,KEY=VALUE`` at the commas that a new key follows; a comma inside of a value stays."""
    pairs: list[str] = []
    for part in split_list(text):
        if pairs and ("=" not in part or "=" not in pairs[-1] or _is_open(pairs[-1])):
            pairs[-1] = f"{pairs[-1]},{part}"
        else:
            pairs.append(part)
    return [pair.strip() for pair in pairs]


def split_settings(text: str) -> list[str]:
    """Split ``SECTION.KEY=VALUE,SECTION.KEY=VALUE`` at the commas that a section and key follow.

    Parameters
    ----------
    text
        Settings between commas.
    """
    return re.split(r",\s*(?=\w+(?:\.\w+)+=)", text)


def _is_open(text: str) -> bool:
    """Whether a bracket is open: a list or mapping goes on."""
    return any(text.count(left) > text.count(right) for left, right in ("[]", "{}"))


def to_dict(pairs: Iterable[str], name: str) -> dict[str, str]:
    """Return ``KEY=VALUE`` pairs as a dictionary.

    Parameters
    ----------
    name
        Where they were given, for messages.
    """
    found = {}
    for text in pairs:
        key, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"{name} {text!r}: write it as KEY=VALUE")
        found[key] = value
    return found


__all__ = ["split_list", "split_pairs", "split_paths", "split_settings", "to_dict"]
