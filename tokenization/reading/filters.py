"""Filters of cells by columns of obs, in the syntax of SOMA's value filters, for cells of any format."""

import ast
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from cellglot.tokenization.reading.errors import CellFileError, reading
from cellglot.tokenization.reading.obs import CellTable, schema_names


CELLS_AT_ONCE = 1 << 16
LONGEST_FILTER = 1 << 14
_LISTED = 40

# Words in names of diseases that are cancers, in lower case.
CANCERS = (
    "cancer", "carcinoma", "tumor", "tumour", "neoplasm", "leukemia", "lymphoma", "melanoma", "sarcoma", "glioma",
    "blastoma", "myeloma", "adenoma", "malignan", "myelodysplastic",
)  # fmt: skip

# Cells that models were pretrained on. scCello: human, primary, 10x, not cancer (Yuan et al., NeurIPS 2024,
# appendix B). To find assays by "10x", and cancers by these words, is our choice: we have no list of theirs.
PRESETS = {
    "sccello": (
        'organism == "Homo sapiens" and is_primary_data == True and "10x" in assay and '
        f"not ({' or '.join(f'{word!r} in disease' for word in CANCERS)})"
    ).replace("'", '"')
}
OPTIONAL = ("organism",)  # columns of presets that a table may lack: Census has an experiment for each species

Compare = Callable[[np.ndarray], np.ndarray]


class FilterError(CellFileError):
    """A filter cannot be read, or does not fit the columns of a file."""


def with_preset(text: str | None, name: str | None) -> str | None:
    """Return a filter that also asks for what a preset asks; None without both.

    Raises
    ------
    FilterError
        If there is no such preset, or the filter cannot be read.
    """
    if text is not None:
        check_filter(text)
    if name is None:
        return text
    if name not in PRESETS:
        raise FilterError(f"there is no preset {name!r} of filters: it is one of {', '.join(PRESETS)}")
    return f'preset("{name}")' if text is None else f'preset("{name}") and ({text})'


def check_filter(text: str) -> None:
    """Refuse a filter that cannot be read, before any file is opened.

    Raises
    ------
    FilterError
        Says what was wrong, and shows the syntax.
    """
    _Filter(text)


def selected(table: CellTable, text: str, rename: Mapping[str, str] | None = None) -> Iterator[np.ndarray]:
    """Yield the numbers of the cells that meet a filter, in order, for blocks of `CELLS_AT_ONCE` cells.

    Parameters
    ----------
    table
        Columns of the cells.
    text
        The filter. Its names are columns of the file, or of the CELLxGENE schema under their usual names in files.
    rename
        Column of the file -> its name, as for `read_cells`.

    Raises
    ------
    FilterError
        If a column does not exist, or its values cannot be compared with those of the filter.
    """
    parsed = _Filter(text)
    columns = _found(parsed, table, rename)
    for start in range(0, len(table), CELLS_AT_ONCE):
        stop = min(start + CELLS_AT_ONCE, len(table))
        with reading(table.source):
            values = {name: table.column(have, start, stop) for name, have in columns.items()}
        yield np.flatnonzero(parsed.meets(values, stop - start)) + start


def _found(parsed: "_Filter", table: CellTable, rename: Mapping[str, str] | None) -> dict[str, str]:
    """Return the column of the file for each name of a filter."""
    known = {name: name for name in table.names} | {
        name: have for name, have in schema_names(table.names, rename).items() if name not in table.names
    }
    unknown = sorted(parsed.columns - set(known))
    if unknown:
        listed = ", ".join(list(known)[:_LISTED]) or "none"
        more = f" and {len(known) - _LISTED:,} more" if len(known) > _LISTED else ""
        raise FilterError(
            f"{table.source or 'the AnnData'} has no column {', '.join(map(repr, unknown))}, which the filter names; "
            f"it has {listed}{more}"
        )
    return {name: known[name] for name in parsed.columns | parsed.optional if name in known}


# -------------------------------------------------------------------- the syntax


SYNTAX = (
    'a filter is, for example, tissue == "lung" and is_primary_data == True and not ("cancer" in disease): columns '
    "are compared by ==, !=, <, <=, >, >=, in [...] and not in [...] with texts in quotes, numbers, True, False, "
    'None; "part" in column looks for a part of a text, in any case of letters; and, or, not and parentheses combine '
    'them; attr("name") is a column whose name has blanks'
)
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}
_MIRRORED: dict[type, type] = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}


class _Filter:
    """A parsed filter: `columns` that it names, `optional` ones that may be missing, and which rows meet it.

    A missing value is unequal to every value, and neither smaller nor larger than any.
    """

    def __init__(self, text: str):
        self.text = text
        if not text.strip() or len(text) > LONGEST_FILTER:
            raise FilterError(f"the filter {text[:80]!r} is empty or too long: {SYNTAX}")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
            self._presets: dict[str, _Filter] = {}
            self.columns = set(self._names(self._tree))
            of_presets = {name for own in self._presets.values() for name in own.columns}
            self.optional = (of_presets & set(OPTIONAL)) - self.columns
            self.columns |= of_presets - set(OPTIONAL)
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise FilterError(f"the filter {text!r:.200} cannot be read: {SYNTAX}") from error

    def meets(self, values: Mapping[str, np.ndarray], n_cells: int) -> np.ndarray:
        """Return which cells meet the filter, bool, shape (cells,); `values` has the columns."""
        found = self._meets(self._tree, values)
        assert found.shape == (n_cells,)
        return found

    def _refuse(self, node: ast.AST) -> FilterError:
        part = ast.get_source_segment(self.text.strip(), node) if hasattr(node, "lineno") else None
        return FilterError(f"the filter has {part or type(node).__name__!r}, which is unsupported: {SYNTAX}")

    # ---------------------------------------------------------------- parts

    def _names(self, node: ast.expr) -> Iterator[str]:
        """Yield the columns of an expression; refuse everything that is not part of the syntax."""
        if isinstance(node, ast.BoolOp):
            for part in node.values:
                yield from self._names(part)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield from self._names(node.operand)
        elif isinstance(node, ast.Compare):
            yield self._parts(node)[0]
        elif (name := self._called(node, "preset")) is not None:
            with_preset(None, name)
            self._presets[name] = _Filter(PRESETS[name])
        elif (name := self._column(node)) is not None:
            yield name
        else:
            raise self._refuse(node)

    def _column(self, node: ast.expr) -> str | None:
        """Return the column that a node names, or None."""
        return node.id if isinstance(node, ast.Name) else self._called(node, "attr")

    def _called(self, node: ast.expr, function: str) -> str | None:
        """Return the text that a function is called with, or None if a node is something else."""
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function):
            return None
        given = node.args[0] if len(node.args) == 1 and not node.keywords else None
        return given.value if isinstance(given, ast.Constant) and isinstance(given.value, str) else None

    def _parts(self, node: ast.Compare) -> tuple[str, ast.cmpop, Any, bool]:
        """Return column, operator and value of a comparison, and whether a part of a text is looked for."""
        if len(node.ops) != 1:
            raise self._refuse(node)
        left, operator, right = node.left, node.ops[0], node.comparators[0]
        name, other, mirrored = self._column(left), right, False
        if name is None:
            name, other, mirrored = self._column(right), left, True
        if name is None:
            raise self._refuse(node)
        value = self._value(other)
        if isinstance(operator, ast.In | ast.NotIn):
            if not isinstance(value, str if mirrored else list):  # a text in a column, or a column in a list
                raise self._refuse(node)
            return name, operator, value, mirrored
        if isinstance(operator, ast.Is | ast.IsNot):
            if value is not None:
                raise self._refuse(node)
            return name, ast.Eq() if isinstance(operator, ast.Is) else ast.NotEq(), None, False
        if isinstance(value, list) or (value is None and not isinstance(operator, ast.Eq | ast.NotEq)):
            raise self._refuse(node)
        if mirrored:
            operator = _MIRRORED.get(type(operator), type(operator))()
        return name, operator, value, False

    def _value(self, node: ast.expr) -> Any:
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError) as error:
            raise self._refuse(node) from error
        if isinstance(value, list | tuple | set):
            value = list(value)
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str | int | float | None):
                raise self._refuse(node)
        return value

    # ---------------------------------------------------------------- rows

    def _meets(self, node: ast.expr, values: Mapping[str, np.ndarray]) -> np.ndarray:
        if isinstance(node, ast.BoolOp):
            parts = [self._meets(part, values) for part in node.values]
            return np.logical_and.reduce(parts) if isinstance(node.op, ast.And) else np.logical_or.reduce(parts)
        if isinstance(node, ast.UnaryOp):
            return ~self._meets(node.operand, values)
        if not isinstance(node, ast.Compare):
            if (chosen := self._called(node, "preset")) is not None:
                own = self._presets[chosen]
                return own._meets(own._tree, values)
            flags = str(self._column(node))
            return _each(values[flags], lambda different: _compared(flags, different, ast.Eq(), True))
        name, operator, value, part = self._parts(node)
        if name not in values:  # an optional column of a preset
            return np.ones(len(next(iter(values.values()))), dtype=bool)
        if part:
            found = _each(values[name], lambda different: _containing(name, different, str(value)))
        elif isinstance(operator, ast.In | ast.NotIn):
            listed = [_equal(name, values[name], one) for one in value]
            found = np.logical_or.reduce(listed) if listed else np.zeros(len(values[name]), dtype=bool)
        else:
            return _each(values[name], lambda different: _compared(name, different, operator, value))
        return ~found if isinstance(operator, ast.NotIn) else found


def _equal(name: str, values: np.ndarray, value: Any) -> np.ndarray:
    return _each(values, lambda different: _compared(name, different, ast.Eq(), value))


def _each(values: np.ndarray, compare: Compare) -> np.ndarray:
    """Apply a comparison to a column; texts and other objects are compared once for each different value."""
    if values.dtype != object:
        return compare(values)
    codes, different = pd.factorize(values)  # -1 for missing values
    known = compare(np.append(np.asarray(different, dtype=object), [None]))
    return known[codes]


def _missing(values: np.ndarray) -> np.ndarray:
    return np.asarray(pd.isna(values), dtype=bool)


def _compared(name: str, values: np.ndarray, operator: ast.cmpop, value: Any) -> np.ndarray:
    missing = _missing(values)
    if value is None:
        return missing if isinstance(operator, ast.Eq) else ~missing
    known, compare = values[~missing], _COMPARISONS[type(operator)]
    found = np.full(len(values), isinstance(operator, ast.NotEq))
    if len(known):
        found[~missing] = np.asarray(compare(_like(name, known, value), value), dtype=bool)
    return found


def _like(name: str, values: np.ndarray, value: Any) -> np.ndarray:
    """Return values that can be compared with one: texts of booleans become booleans.

    Raises
    ------
    FilterError
        If their types do not fit, so that nothing would be equal.
    """
    kind = pd.api.types.infer_dtype(values, skipna=True) if values.dtype == object else values.dtype.kind
    texts, flags = kind == "string", kind in ("b", "boolean")
    numbers = not texts and not flags and kind in ("i", "u", "f", "integer", "floating", "mixed-integer-float")
    if isinstance(value, bool):
        if flags or (numbers and np.isin(values, (0, 1)).all()):
            return values.astype(bool)
        known = {"true": True, "false": False, "1": True, "0": False}
        if texts and all(str(v).lower() in known for v in values):
            return np.array([known[str(v).lower()] for v in values])
        wanted = "texts in quotes" if texts else "numbers"
    elif isinstance(value, str):
        if texts:
            return values
        wanted = "True or False" if flags else "numbers"
    else:
        if numbers:
            return values
        wanted = "True or False" if flags else "texts in quotes"
    example = values[0].item() if isinstance(values[0], np.generic) else values[0]
    raise FilterError(
        f"the column {name!r} has values such as {example!r}: compare it with {wanted}, not with {value!r}"
    )


def _containing(name: str, values: np.ndarray, part: str) -> np.ndarray:
    lower = part.lower()
    if values.dtype != object:
        raise FilterError(f"the column {name!r} has numbers, in which the text {part!r} cannot be looked for")
    return np.array([isinstance(v, str) and lower in v.lower() for v in values], dtype=bool)


__all__ = ["PRESETS", "FilterError", "check_filter", "selected", "with_preset"]
