"""Reader of a folder of drug response: expression of cell lines, structures of drugs, measured ln IC50."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellglot.evaluation.drug_response.fingerprints import read_structures
from cellglot.inputs import InputError, read_table, reading
from cellglot.outputs import sha256


EXPRESSION, RESPONSE, DRUGS, LINES, GENES = ("expression", "response", "drugs", "cell_lines", "genes")
ENDINGS = {EXPRESSION: (".parquet",)}
TABLE_ENDINGS = (".tsv", ".tsv.gz")
NO_TYPE = ("", "UNABLE TO CLASSIFY", "UNCLASSIFIED")
_NAMED = 5


@dataclass
class DrugResponse:
    """Expression, drugs and measured pairs of a folder; every table is matched by names, not by order.

    Parameters
    ----------
    name
        Of the folder.
    lines, genes
        Names of cell lines and of genes (Ensembl ids where the folder states them), in the order of `expression`.
    expression
        Values as the folder has them, shape (lines, genes), float32.
    types
        Cancer type of each line, ``""`` if not stated; shape (lines,).
    drugs, structures
        Measured drugs (one for each screen) and their SMILES.
    drug, line
        Numbers of the drug and the line of each pair, shape (pairs,).
    ln_ic50
        Natural logarithm of the IC50 in micromolar of each pair, shape (pairs,), float64.
    notes
        What was left out or averaged, as sentences.
    facts
        The same as plain types, with the SHA-256 of the files.
    """

    name: str
    lines: list[str]
    genes: list[str]
    expression: np.ndarray
    types: np.ndarray
    drugs: list[str]
    structures: list[str]
    drug: np.ndarray
    line: np.ndarray
    ln_ic50: np.ndarray
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ln_ic50)


def read_drug_response(folder: str | os.PathLike) -> DrugResponse:
    """Read a folder of drug response.

    Parameters
    ----------
    folder
        With ``expression.parquet`` (column ``cell_line``, then a column for each gene), ``drugs.tsv`` (``drug``,
        ``smiles``), ``response.tsv`` (``cell_line``, ``drug``, ``ln_ic50``), and, if there are, ``cell_lines.tsv``
        (``cell_line``, ``tcga_code`` or ``type``) and ``genes.tsv`` (``symbol``, ``ensembl``). Tables may be gzipped.
        Where drugs and pairs have ``gdsc_drug_id``, it names the drug; pairs of several ``screen`` are several drugs
        of one structure.

    Returns
    -------
    DrugResponse
        Pairs of lines with expression and drugs with a structure. Repeated pairs are averaged; what is left out
        stands in its ``notes``.

    Raises
    ------
    InputError
        If a file or column is missing, a value is not a number, a line or gene has two rows or columns, a line has
        missing values, or no pair is left.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: drug response is a folder with {EXPRESSION}.parquet, ...")
    files = {name: _find(folder, name) for name in (EXPRESSION, RESPONSE, DRUGS, LINES, GENES)}
    for name in (EXPRESSION, RESPONSE, DRUGS):
        if files[name] is None:
            wanted = " or ".join(name + ending for ending in ENDINGS.get(name, TABLE_ENDINGS))
            raise InputError(f"{folder} has no {wanted}")
    expression = _read_expression(files[EXPRESSION])
    drugs, pairs = _read(files[DRUGS], ("drug", "smiles")), _read(files[RESPONSE], ("cell_line", "drug", "ln_ic50"))
    pairs["ln_ic50"] = _numbers(pairs["ln_ic50"], files[RESPONSE])
    notes: list[str] = []
    structures, pairs["key"], pairs["name"] = _drugs(drugs, pairs, files[DRUGS], notes)
    lines = [str(name) for name in expression.index]
    kept = _left_out(pairs, lines, structures, notes)
    if not len(kept):
        raise InputError(
            f"{folder}: no pair has a line with expression and a drug with a structure; {'; '.join(notes)}: do the "
            f"names in {EXPRESSION}, {RESPONSE} and {DRUGS} agree?"
        )
    means = _averaged(kept, notes)
    keys = sorted(set(means["key"]))
    names = dict(zip(kept["key"], kept["name"], strict=True))
    line_number, drug_number = ({name: i for i, name in enumerate(of)} for of in (lines, keys))
    data = DrugResponse(
        folder.resolve().name,
        lines,
        _gene_ids(list(expression.columns), files[GENES]),
        expression.to_numpy(dtype=np.float32),
        _types(lines, files[LINES], notes),
        [names[key] for key in keys],
        [structures[key.partition("\t")[0]] for key in keys],
        np.array([drug_number[key] for key in means["key"]]),
        np.array([line_number[name] for name in means["cell_line"]]),
        means["ln_ic50"].to_numpy(dtype=np.float64),
        notes,
    )
    data.facts = {
        "folder": str(folder),
        "sha256": _checksum(path for path in files.values() if path is not None),
        "lines": len(set(data.line.tolist())),
        "drugs": len(keys),
        "structures": len(set(data.structures)),
        "genes": len(data.genes),
        "pairs": len(data),
        "notes": notes,
    }
    return data


# -------------------------------------------------------------------- files


def _find(folder: Path, name: str) -> Path | None:
    return next((p for e in ENDINGS.get(name, TABLE_ENDINGS) if (p := folder / (name + e)).exists()), None)


def _checksum(paths: Any) -> str:
    return hashlib.sha256(" ".join(sha256(path) for path in paths).encode()).hexdigest()


def _read(path: Path | None, columns: Sequence[str]) -> pd.DataFrame:
    """Read a table of texts that has some columns; drugs named "NA" or "1" stay texts."""
    assert path is not None
    table = read_table(path, sep="\t", dtype=str, keep_default_na=False)
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}; it has {', '.join(map(str, table.columns))}")
    return table


def _read_expression(path: Path | None) -> pd.DataFrame:
    """Read the expression with lines as index, and check it."""
    assert path is not None
    with reading(path, "write it again as Parquet"):
        table = pd.read_parquet(path)
    if "cell_line" in table.columns:
        table = table.set_index("cell_line")
    elif table.index.name != "cell_line":
        raise InputError(f"{path} has no column 'cell_line' with the names of the lines")
    table.index = table.index.astype(str)
    for what, names in (("line", table.index), ("gene", table.columns)):
        if names.has_duplicates:
            again = names[names.duplicated()][0]
            raise InputError(f"{path} has {what} {again!r} more than once: keep one, or average them")
    if table.empty:
        raise InputError(f"{path} has no values")
    words = [str(name) for name, kind in table.dtypes.items() if kind.kind not in "iufb"]
    if words:
        raise InputError(f"{path}: the values of {words[0]!r} are not numbers")
    values = table.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise InputError(
            f"{path}: the value of gene {table.columns[column]!r} in line {table.index[row]!r} is missing or infinite "
            f"({int((~np.isfinite(values)).sum()):,} such values): leave such genes or lines out"
        )
    return table


def _numbers(values: pd.Series, path: Path | None) -> np.ndarray:
    """Return numbers, NaN where a field is empty or says that there is none."""
    known = ~values.str.strip().str.lower().isin(("", "na", "nan", "none", "null"))
    numbers = pd.to_numeric(values.where(known), errors="coerce").to_numpy(dtype=np.float64)
    wrong = known.to_numpy() & ~np.isfinite(numbers)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(f"{path}, line {row + 2}: ln_ic50 {values.iloc[row]!r} is not a finite number")
    return numbers


def _gene_ids(columns: Sequence[Any], path: Path | None) -> list[str]:
    """Return the Ensembl id of each column where the table of genes states one, else the column's name."""
    names = [str(name) for name in columns]
    if path is None:
        return names
    table = _read(path, ("symbol", "ensembl"))
    ids = {symbol: ensembl for symbol, ensembl in zip(table["symbol"], table["ensembl"], strict=True) if ensembl}
    return [ids.get(name, name) for name in names]


def _types(lines: Sequence[str], path: Path | None, notes: list[str]) -> np.ndarray:
    """Return the cancer type of each line, by name; `NO_TYPE` becomes an empty text."""
    if path is None:
        notes.append("there is no table of cell lines: cancer types are unknown")
        return np.full(len(lines), "", dtype=object)
    table = _read(path, ("cell_line",))
    column = next((name for name in ("tcga_code", "type") if name in table.columns), None)
    if column is None:
        notes.append(f"{path.name} has no column tcga_code or type: cancer types are unknown")
        return np.full(len(lines), "", dtype=object)
    twice = table.groupby("cell_line")[column].nunique()
    if (twice > 1).any():
        raise InputError(f"{path}: line {twice.index[twice > 1][0]!r} has several values of {column}")
    types = dict(zip(table["cell_line"], table[column].str.strip(), strict=True))
    found = [types.get(name, "") for name in lines]
    return np.array(["" if name.upper() in NO_TYPE else name for name in found], dtype=object)


# -------------------------------------------------------------------- drugs and pairs


def _drugs(
    drugs: pd.DataFrame, pairs: pd.DataFrame, path: Path | None, notes: list[str]
) -> tuple[dict[str, str], pd.Series, pd.Series]:
    """Return the SMILES of each drug with one, and key (drug, screen) and shown name of each pair."""
    by = "gdsc_drug_id" if "gdsc_drug_id" in drugs.columns and "gdsc_drug_id" in pairs.columns else "drug"
    several = drugs.groupby(by)["smiles"].nunique()
    if (several > 1).any():
        raise InputError(f"{path}: drug {several.index[several > 1][0]!r} ({by}) has several structures")
    smiles = dict(zip(drugs[by], drugs["smiles"].str.strip(), strict=True))
    structures = {name: text for name, text in smiles.items() if text}
    screens = pairs["screen"] if "screen" in pairs.columns else pd.Series("", index=pairs.index)
    keys = pairs[by] + "\t" + screens
    names = pairs["drug"].str.cat(screens.where(screens == "", " (" + screens + ")"))
    if by == "gdsc_drug_id":
        names = names + " " + pairs[by]
    known = read_structures(structures.values())
    unreadable = sorted({name for name, text in structures.items() if known[text] is None})
    if unreadable:
        notes.append(f"{_some(unreadable, 'drug')} with a SMILES that RDKit cannot read left out")
    return {name: str(known[text]) for name, text in structures.items() if known[text]}, keys, names


def _left_out(pairs: pd.DataFrame, lines: Sequence[str], structures: dict[str, str], notes: list[str]) -> pd.DataFrame:
    """Leave out pairs without a value, a structure or expression, and say so."""
    drug = pairs["key"].str.partition("\t")[0]
    measured, structured = pairs["ln_ic50"].notna(), drug.isin(list(structures))
    expressed = pairs["cell_line"].isin(list(lines))
    if not measured.all():
        notes.append(f"{int((~measured).sum()):,} pairs without an IC50 left out")
    for good, names, what in (
        (structured, pairs["drug"], "drug without a structure"),
        (expressed, pairs["cell_line"], "line without expression"),
    ):
        if not good.all():
            lost = _some(sorted(set(names[~good])), what)
            notes.append(f"{int((~good).sum()):,} pairs left out: {lost}")
    return pairs[measured & structured & expressed]


def _averaged(pairs: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Average repeated pairs of a line, a drug and a screen."""
    means = pairs.groupby(["key", "cell_line"], as_index=False, sort=True)["ln_ic50"].mean()
    again = len(pairs) - len(means)
    if again:
        notes.append(f"{again:,} repeated pairs of the same line, drug and screen averaged")
    return pd.DataFrame(means)


def _some(names: Sequence[str], what: str) -> str:
    """Return ``"7 drugs without a structure (a, b, ...)"``."""
    word, _, rest = what.partition(" ")
    listed = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return f"{len(names):,} {word}{'' if len(names) == 1 else 's'}{' ' + rest if rest else ''} ({listed})"


__all__ = ["DrugResponse", "read_drug_response"]
