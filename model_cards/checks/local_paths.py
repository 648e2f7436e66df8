"""Search for paths of a machine in texts, with any root; links, routes and names with slashes are not paths."""

import re
from pathlib import PureWindowsPath


# Characters of a name in a path; others (blanks, quotes, brackets, commas) end the path.
_NAME = r"[^\s\"'<>|,;:()\[\]{}`*?#\\/]+"
_START = r"(?:[^\W\d_]|[_.$@])"  # of the first name: not a number, as in dates and shares
# A link or address with a host, whose path is one of that host.
_LINK = re.compile(r"\b(?!file\b)[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>`]+|\bdata:[a-z]+/[^\s\"'<>`]+")
_FILE_LINK = re.compile(r"\bfile:(?://)?[^\s/\"'<>]*/[^\s\"'<>`,;)\]}]+")
# A path does not follow a letter or number (and/or, CD4/CD8), a dot, a slash, a tag or a closing bracket.
_BEFORE = r"(?<![\w./\\~+)\]}>%&<-])"
_POSIX = re.compile(rf"{_BEFORE}/(?={_START}){_NAME}(?:/+{_NAME})+/?")
_ONE_FILE = re.compile(
    rf"{_BEFORE}/(?={_START}){_NAME}\.(?:h5ad|h5|hdf5|zarr|loom|mtx|csv|tsv|txt|parquet|json|yaml|yml|npy|npz|npz|pt|"
    r"bin|safetensors|rds|gz|tar|zip|py|sh|log|pkl|obo|owl)\b"
)
_QUOTED = re.compile(rf"(?<=[\"'`])/(?={_START})[^\"'`\n/\\]+(?:/[^\"'`\n/\\]+)+/?(?=[\"'`])")
_HOME = re.compile(rf"(?<![\w~/.])~/{_NAME}(?:/+{_NAME})*|(?<![\w~/.])~[a-z_][a-z0-9_-]*(?:/+{_NAME}){{2,}}")
_WINDOWS = re.compile(r"(?<!\w)[A-Za-z]:(?:\\{1,2}|/(?!/))[\w. $~@-]+[\\/]{1,2}[^\s\"'<>|,;)\]}]+")
_SHARE = re.compile(r"(?<![\\\w])\\\\[\w.-]+\\[\w.$-]+\\[^\s\"'<>|,;)\]}]+")
_VARIABLE = re.compile(rf"(?<!\w)\$\{{?(?:HOME|SCRATCH|USER|USERPROFILE|WORK|TMPDIR)\}}?/{_NAME}(?:/+{_NAME})*")

# Values that consist of a path.
_WHOLE = re.compile(r"^(?:/(?!/)|~/|[A-Za-z]:[\\/]|\\\\|file:/)[^\n]*$")

# Paths of every machine, and routes of web services.
_COMMON = re.compile(
    r"/(?:usr/bin/env|bin/(?:ba|z|da)?sh|dev/(?:null|zero|stdin|stdout|stderr|u?random))(?![\w/-])"
    r"|/(?:v\d+|api)(?:/[\w.{}:-]+)+/?$"
)
_SOMEBODY = re.compile(r"(?:file:/*)?(?:[A-Za-z]:)?[/\\]+(?:home|Users|users|user|u)[/\\]+[^/\\]+")
_SIGNS = ".!?:"


def find_paths(text: str) -> list[tuple[int, int]]:
    """Find paths of a machine in a text.

    Found: absolute paths of two names or more below any root, single files there, ``~/``, drives and shares of
    Windows, ``file:`` links. Not found: links with a host, dates, routes such as ``/v1/models``, names with slashes
    (``and/or``, ``CD4/CD8``).

    Returns
    -------
    list of (int, int)
        Begin and end of each path, in order, without overlaps.
    """
    if "/" not in text and "\\" not in text:
        return []
    hidden = _LINK.sub(lambda link: "a" * len(link.group()), text)  # letters, so that what follows is no start
    found: list[tuple[int, int]] = []
    for pattern in (_FILE_LINK, _QUOTED, _WINDOWS, _SHARE, _HOME, _VARIABLE, _POSIX, _ONE_FILE):
        for match in pattern.finditer(hidden):
            start, end = match.start(), match.end()
            while end > start and hidden[end - 1] in _SIGNS:
                end -= 1
            if _is_path(hidden[start:end], pattern) and not any(a < end and start < b for a, b in found):
                found.append((start, end))
    return sorted(found)


def _is_path(text: str, pattern: re.Pattern) -> bool:
    if pattern not in (_POSIX, _QUOTED, _ONE_FILE):
        return True
    if _COMMON.match(text):
        return False
    names = [name for name in text.split("/") if name]
    # Names of cells and genes, such as /CD8/CD3, have no lower-case letters and no file ending.
    return len(names) > 2 or any(c.islower() for c in text) or "." in names[-1]


def is_whole_path(text: str) -> bool:
    """Whether a text consists of a path; ``/``, a route or the name of a gene is not a path."""
    return (
        len(text) > 2
        and " " not in text.split("/")[0]
        and not any(sign in text for sign in ("\n", " /", ",/"))
        and bool(_WHOLE.match(text))
        and not _COMMON.match(text)
    )


def last_part(path: str) -> str:
    """Return the last name of a path, ``home`` for a home folder."""
    if re.fullmatch(_SOMEBODY, path.rstrip("/\\")):
        return "home"
    parts = PureWindowsPath(re.sub(r"^file:/*", "/", path).rstrip("/\\")).parts
    return parts[-1] if parts else ""


__all__ = ["find_paths", "is_whole_path", "last_part"]
