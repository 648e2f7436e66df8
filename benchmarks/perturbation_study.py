"""Whether deleting a gene in a model does what its knock-out or a drug did to real cells.

python benchmarks/perturbation_study.py

Writes docs/evaluation/perturbation.json, and the tables of docs/evaluation/perturbation.md from it; with
``--write`` only the tables, with ``--add`` only models that the JSON does not have, or has with other weights. Cells:
`data/perturbation` of the reference data (`CELLGLOT_REFERENCE_DATA`).
"""

import argparse
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from evaluation_records import FOLDER, MODELS, RECORDS, checksums, in_order, write_between, write_record
from measure import DATA, machine, table

from cellglot import load_model
from cellglot.evaluation.benchmark.jobs import PCA
from cellglot.evaluation.benchmark.knock_out_components import compare_components
from cellglot.evaluation.benchmark.perturbation import knock_out_scores
from cellglot.evaluation.benchmark.tasks import PERTURBATION
from cellglot.evaluation.perturbation.compare import compare_model
from cellglot.evaluation.perturbation.knock_outs import CELLS, KnockOutCells, Row
from cellglot.evaluation.perturbation.measured_genes import MeasuredGenes
from cellglot.evaluation.perturbation.states import draw_cells
from cellglot.inputs import read_json
from cellglot.outputs import write_json
from cellglot.tokenization.reading.cells import read_cells


RESULTS = FOLDER / "perturbation.json"
PAGE = FOLDER / "perturbation.md"
QUICK_CELLS = 20


# -------------------------------------------------------------------- sets of cells


def knock_outs(cells: int = CELLS) -> tuple[Path, KnockOutCells]:
    """Return control cells and the cells of each knock-out whose gene was measured, with sure guides."""
    path = DATA / "perturbation" / "thp1_crispr_papalexi.h5ad"
    obs, var = _tables(path)
    sure = obs["guide_share"].astype(float).to_numpy() >= 0.5
    state = obs["perturbation"].astype(str).to_numpy()
    names = sorted(set(state) - {"control"})
    measured = set(var["symbol"].astype(str))
    targets = {name: draw_cells(np.flatnonzero((state == name) & sure), cells) for name in names if name in measured}
    start = draw_cells(np.flatnonzero((state == "control") & sure), cells)
    left_out = {name: "not among the genes of the file" for name in names if name not in measured}
    return path, KnockOutCells(start, targets, {name: name for name in targets}, left_out)


def receptor(cells: int = CELLS) -> tuple[Path, KnockOutCells]:
    """Return cells after 3 h of dexamethasone, and untreated ones: without its receptor the drug does nothing."""
    path = DATA / "perturbation" / "a549_dex_scicar.h5ad"
    obs, _ = _tables(path)
    state = obs["perturbation"].astype(str).to_numpy()
    treated, untreated = (np.flatnonzero(state == name) for name in ("dexamethasone 3 h", "control"))
    name, targets = "no dexamethasone", draw_cells(untreated, cells)
    return path, KnockOutCells(draw_cells(treated, cells), {name: targets}, {name: "NR3C1"})


def measured_deacetylases() -> list[str]:
    """Return the histone deacetylases among the genes of the cells with panobinostat."""
    _, var = _tables(DATA / "perturbation" / "gbm_panobinostat_lemur.h5ad")
    return sorted(symbol for symbol in var["symbol"].astype(str) if symbol.startswith("HDAC"))


def _tables(path: Path) -> tuple[Any, Any]:
    opened = anndata.read_h5ad(path, backed="r")
    obs, var = opened.obs.copy(), opened.var.copy()
    opened.file.close()
    return obs, var


# -------------------------------------------------------------------- the record and the page


def compare(name: str, path: Path, chosen: KnockOutCells) -> list[Row]:
    """Compare a model, or principal components, with the cells of a file."""
    with read_cells(path) as opened:
        if name == PCA:
            return compare_components(MeasuredGenes.of(opened), chosen)
        return compare_model(load_model(name), opened, chosen, all_genes=True, min_coverage=0.0, device="cpu")


def study(names: list[str], rows: list[Row], cells: int = CELLS) -> dict[str, Any]:
    """Run models on all sets; `rows` are those of models that are not in the names."""
    sets = [knock_outs(cells), receptor(cells)]
    for name in names:
        began = time.perf_counter()
        rows = rows + [{"model": name} | row for path, chosen in sets for row in compare(name, path, chosen)]
        print(f"{name}: {time.perf_counter() - began:,.0f} s")
    return {
        "machine": machine(),
        "cells": cells,
        "start_cells": {
            of: len(chosen.start)
            for of, (_, chosen) in zip(("THP-1, control", "A549, dexamethasone 3 h"), sets, strict=True)
        },
        "unmeasured": list(sets[0][1].left_out),
        "deacetylases": measured_deacetylases(),
        "rows": rows,
    }


def tables_of(record: dict[str, Any]) -> str:
    """Return the tables of the page, as Markdown."""
    names = in_order(dict.fromkeys(row["model"] for row in record["rows"]))
    rows = sorted(record["rows"], key=lambda row: names.index(row["model"]))
    states = list(dict.fromkeys(row["state"] for row in record["rows"]))
    found = {(row["model"], row["state"]): row for row in record["rows"]}
    verdicts = [
        {"gene": found[names[0], state]["gene"], "towards": state} | {n: _verdict(found[n, state]) for n in names}
        for state in states
    ]
    every = [
        {
            "model and gene": f"{row['model']}, {row['gene']}",
            "cells": row.get("cells", 0),
            "progress": _percent(row.get("without_own_progress")),
            "of controls": _percent(row.get("without_own_control_progress")),
            "rank": _rank(row, "without_own_rank", "controls"),
            "rank, all genes": _number(row.get("without_own_rank_among_all")),
            "p in cells": _number(row.get("without_own_p_value")),
            "progress, own gene counted": _percent(row.get("progress")),
            "its rank": _rank(row, "rank", "controls"),
        }
        for row in rows
    ]
    yes = [f"{name} {_counted(record['rows'], name)}" for name in names]
    right = [f"{name} {_right(record['rows'], name)}" for name in names]
    lost = ", ".join(record["unmeasured"])
    lines = [
        _markdown(["gene", "towards", *names], [[row[k] for k in ("gene", "towards", *names)] for row in verdicts]),
        f"Yes: {'; '.join(yes)}.\n\nIn the right direction at all, whatever controls do: {'; '.join(right)}.",
        f"Not possible, because the file does not have the gene: {lost}."
        + (" Panobinostat: the file has no histone deacetylase." if not record["deacetylases"] else ""),
        table(every),
    ]
    return "\n\n".join(lines)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _verdict(row: dict[str, Any]) -> str:
    return str(row.get("without_own_verdict", row.get("verdict")))


def _counted(rows: list[dict[str, Any]], name: str) -> str:
    own = [row for row in rows if row["model"] == name]
    return f"{sum(_verdict(row) == 'yes' for row in own)} of {len(own)}"


def _right(rows: list[dict[str, Any]], name: str) -> str:
    own = [row for row in rows if row["model"] == name]
    return f"{sum(row.get('without_own_progress', 0.0) > 0 for row in own)} of {len(own)}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _rank(row: dict[str, Any], name: str, number: str) -> str:
    value = row.get(name)
    return "" if value is None else f"{round(value * (1 + row[number]))} of {1 + row[number]}"


def record_of(record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the summary and the content of the record for cards."""
    names = in_order(dict.fromkeys(row["model"] for row in record["rows"]))
    left_out = dict.fromkeys(record["unmeasured"], "not among the genes of the file")
    cells = max(record["start_cells"].values())
    rows = {name: [_with_less(row) for row in record["rows"] if row["model"] == name] for name in names}
    results = {name: knock_out_scores(own, cells, left_out).to_dict() for name, own in rows.items()}
    first = results[names[0]]["details"]
    summary = (
        f"{first['knock_outs']} comparisons: genes knocked out in THP-1 cells (Papalexi 2021), and NR3C1 in A549 "
        f"cells after dexamethasone, against untreated ones. Each gene is deleted in at most {record['cells']} cells; "
        "the direction to the real cells leaves out the gene itself. "
        f"{first['knock_outs_with_enough_controls']} genes have the 19 genes of like expression that a test "
        "needs. Intervals are over bootstrap samples of comparisons."
    )
    data = {"cells": sum(record["start_cells"].values()), "cells_without_label": 0}
    machine, names = record["machine"], ("python", "numpy", "torch")
    software = {name: machine[name] for name in names if name in machine}
    return summary, {"machine": machine, "software": software, "data": data, "results": {PERTURBATION: results}}


def _with_less(row: Row) -> Row:
    """Add the share of controls that move less to a row of an earlier version, by its rank."""
    if "without_own_less" in row or row.get("without_own_rank") is None:
        return row
    reached = row["without_own_rank"] * (1 + row["controls"]) - 1
    return row | {"without_own_less": 1 - reached / row["controls"]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--write", action="store_true", help="only write the tables from the record")
    options.add_argument("--add", action="store_true", help="keep the models of the JSON")
    options.add_argument("--models", nargs="+", default=[*MODELS, PCA], help="default: %(default)s")
    options.add_argument("--output", type=Path, default=RESULTS, help="JSON to write")
    options.add_argument("--page", type=Path, default=PAGE, help="page whose tables are replaced")
    options.add_argument("--records", type=Path, default=RECORDS, help="folder of the records for cards")
    options.add_argument("--quick", action="store_true", help=f"one model, {QUICK_CELLS} cells: to try it")
    given = options.parse_args()
    names, cells = ([given.models[0], PCA], QUICK_CELLS) if given.quick else (given.models, CELLS)
    if not given.write:
        kept = read_json(given.output) if given.add and given.output.exists() else {"rows": [], "weights": {}}
        weights = checksums(MODELS)
        stale = {name for name, facts in kept["weights"].items() if facts != weights.get(name)}
        rows = [row for row in kept["rows"] if row["model"] not in stale]
        have = {row["model"] for row in rows}
        done = study([name for name in names if name not in have], rows, cells)
        scored = {row["model"] for row in done["rows"]}
        write_json(given.output, done | {"weights": {name: own for name, own in weights.items() if name in scored}})
    record = read_json(given.output)
    write_between(given.page, "tables", tables_of(record))
    title, command = "In-silico perturbation beside real knock-outs", "python benchmarks/perturbation_study.py"
    write_record(given.records, "perturbation", "knock_outs", title, command, *record_of(record))


if __name__ == "__main__":
    main()
