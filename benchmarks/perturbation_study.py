"""Whether deleting a gene in a model does what its knock-out or a drug did to real cells.

python benchmarks/perturbation_study.py

Writes docs/evaluation/perturbation.json, and the tables of docs/evaluation/perturbation.md from it; with
``--write`` only the tables. Cells: `data/perturbation` of the reference data (`CELLGLOT_REFERENCE_DATA`).
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import torch
from measure import DATA, ROOT, machine, table

from cellglot import load_model
from cellglot.evaluation.perturbation.effects import Effects, Measuring, in_parts
from cellglot.evaluation.perturbation.genes import matched_controls
from cellglot.evaluation.perturbation.perturb import embedded_parts
from cellglot.evaluation.perturbation.states import Direction
from cellglot.evaluation.perturbation.statistics import GeneEffects, permutation_p, rank_among
from cellglot.evaluation.perturbation.tokens import DELETE, CellTokens, measure_expression
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.perturbed_genes import perturb_tokens
from cellglot.outputs import write_json, write_text
from cellglot.tokenization.reading.cells import Cells, read_cells


RESULTS = ROOT / "docs" / "evaluation" / "perturbation.json"
PAGE = ROOT / "docs" / "evaluation" / "perturbation.md"
MODELS = ("human-exceiver", "blood-exceiver", "blood-sccello", "blood-langcell")
CELLS, CONTROLS, PERMUTATIONS, ENOUGH, LEVEL = 150, 50, 1000, 19, 0.05
BATCH, PLACE = 64, torch.device("cpu")


def draw(numbers: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Draw at most `most` cells."""
    if len(numbers) <= most:
        return numbers
    return np.sort(np.random.default_rng(seed).choice(numbers, most, replace=False))


# -------------------------------------------------------------------- embeddings with and without a gene


def embed(model: LoadedModel, tokens: CellTokens, numbers: np.ndarray) -> np.ndarray:
    """Embed cells; all express a gene of the model."""
    parts = [p.embeddings for p in embedded_parts(model, tokens, numbers, tokens.change(DELETE), BATCH, PLACE)]
    return torch.cat(parts).double().numpy()


def without_gene(
    model: LoadedModel, tokens: CellTokens, numbers: np.ndarray, whole: np.ndarray, gene: int
) -> np.ndarray:
    """Return the embeddings of cells in which one gene has no counts."""
    found, cells = whole.copy(), [c for c in tokens.cells(numbers) if len(c["input_ids"]) > tokens.first]
    copies = perturb_tokens(model.network, cells, torch.tensor([gene]), tokens.change(DELETE), BATCH)
    for row, copy in enumerate(copies):
        if len(copy.genes):
            found[row] = copy.embeddings[0].double().numpy()
    return found


# -------------------------------------------------------------------- one set of cells and one model


def measure(
    model: LoadedModel, opened: Cells, start: np.ndarray, targets: dict[str, np.ndarray], genes: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Delete every gene in the start cells; yield one row for each target state.

    Parameters
    ----------
    targets
        State -> numbers of its cells.
    genes
        State -> Ensembl id or symbol of the gene whose deletion should lead to it.
    """
    tokens = CellTokens.open(model.tokenizer, opened.counts, None)
    match = model.tokenizer.vocabulary.resolve(list(genes.values()))
    token_of = dict(zip(genes, match.token_ids.tolist(), strict=True))
    expression = measure_expression(tokens, start)
    tested = np.flatnonzero(expression.cells > 0)
    change = tokens.change(DELETE)
    cells = [c for c in tokens.cells(start) if len(c["input_ids"]) > tokens.first]
    assert len(cells) == len(start), "every start cell expresses a gene of the model"
    before = embed(model, tokens, start)
    ways: list[Direction] = []
    states = [state for state in targets if token_of[state] in tested]
    for state in states:
        target = embed(model, tokens, targets[state])
        ways.append(Direction(before.mean(axis=0), target.mean(axis=0)))
        own = [
            without_gene(model, tokens, numbers, whole, token_of[state]).mean(axis=0)
            for numbers, whole in ((start, before), (targets[state], target))
        ]
        ways.append(Direction(*own))
    effects = effects_of(model, Measuring(model.network, tested, change, ways, BATCH), cells, before)
    controls = matched_controls(np.array([token_of[s] for s in states]), expression, tested, CONTROLS)
    place_of = {gene: place for place, gene in enumerate(tested.tolist())}
    for state in targets:
        if state not in states:
            yield {"state": state, "gene": genes[state], "verdict": "not in the model or not expressed"}
    for number, (state, own) in enumerate(zip(states, controls, strict=True)):
        places = np.array([place_of[gene] for gene in own.tolist()], dtype=np.int64)
        row: dict[str, Any] = {
            "state": state,
            "gene": genes[state],
            "cells": int((effects.genes == place_of[token_of[state]]).sum()),
            "target_cells": len(targets[state]),
            "controls": len(places),
        }
        for name, column in (("", 2 * number), ("without_own_", 2 * number + 1)):
            found = GeneEffects.sort(effects.cells, effects.genes, effects.values["progress"][:, column], len(tested))
            row |= verdict_of(found, place_of[token_of[state]], places, name)
        yield row


def effects_of(
    model: LoadedModel, measuring: Measuring, cells: list[dict[str, torch.Tensor]], before: np.ndarray
) -> Effects:
    """Delete the genes in all cells, without classes."""
    from cellglot.modeling.perturbed_genes import Copies

    parts = []
    for places, part in in_parts(iter(cells), measuring.tested, measuring.change, np.empty(0, dtype=np.int64)):
        own = Copies(torch.empty(0), torch.from_numpy(before[places]))
        parts.append(measuring.effects(places, part, own, PLACE))
    return Effects.together(parts)


def verdict_of(found: GeneEffects, gene: int, controls: np.ndarray, name: str) -> dict[str, Any]:
    """Compare the movement of a gene's deletion with that of its controls, and with that of all genes."""
    means = found.means()
    known = means[controls]
    rank, every = rank_among(means[gene], known), rank_among(means[gene], np.delete(means, gene))
    if not means[gene] > 0:
        verdict = "no"
    elif len(known) >= ENOUGH:
        verdict = "yes" if rank <= LEVEL else "no"
    else:
        verdict = f"of {len(known)} controls" if (known < means[gene]).all() and len(known) else "no"
    return {
        f"{name}progress": float(means[gene]),
        f"{name}control_progress": float(np.nanmean(known)) if len(known) else None,
        f"{name}rank": rank if len(known) else None,
        f"{name}rank_among_all": every,
        f"{name}p_value": permutation_p(found, gene, controls, PERMUTATIONS, 0),
        f"{name}verdict": verdict,
    }


# -------------------------------------------------------------------- sets of cells


def knock_outs() -> tuple[Path, np.ndarray, dict[str, np.ndarray], list[str]]:
    """Return control cells, the cells of each knock-out whose gene was measured, and those that were not."""
    path = DATA / "perturbation" / "thp1_crispr_papalexi.h5ad"
    obs, var = _tables(path)
    sure = obs["guide_share"].astype(float).to_numpy() >= 0.5
    state = obs["perturbation"].astype(str).to_numpy()
    names = sorted(set(state) - {"control"})
    measured = set(var["symbol"].astype(str))
    targets = {name: draw(np.flatnonzero((state == name) & sure), CELLS) for name in names if name in measured}
    return (
        path,
        draw(np.flatnonzero((state == "control") & sure), CELLS),
        targets,
        [n for n in names if n not in measured],
    )


def receptor() -> tuple[Path, np.ndarray, dict[str, np.ndarray]]:
    """Return cells after 3 h of dexamethasone, and untreated ones: without its receptor the drug does nothing."""
    path = DATA / "perturbation" / "a549_dex_scicar.h5ad"
    obs, _ = _tables(path)
    state = obs["perturbation"].astype(str).to_numpy()
    treated, untreated = (np.flatnonzero(state == name) for name in ("dexamethasone 3 h", "control"))
    return path, draw(treated, CELLS), {"no dexamethasone": draw(untreated, CELLS)}


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


def study(names: list[str]) -> dict[str, Any]:
    """Run all models on all sets."""
    path, start, targets, unmeasured = knock_outs()
    drug_path, treated, untreated = receptor()
    rows = []
    for name in names:
        model, began = load_model(name), time.perf_counter()
        with read_cells(path) as opened:
            found = list(measure(model, opened, start, targets, {state: state for state in targets}))
        with read_cells(drug_path) as opened:
            found += measure(model, opened, treated, untreated, {"no dexamethasone": "NR3C1"})
        rows += [{"model": name} | row for row in found]
        print(f"{name}: {time.perf_counter() - began:,.0f} s")
    return {
        "machine": machine(),
        "cells": CELLS,
        "start_cells": {"THP-1, control": len(start), "A549, dexamethasone 3 h": len(treated)},
        "unmeasured": unmeasured,
        "deacetylases": measured_deacetylases(),
        "rows": rows,
    }


def tables_of(record: dict[str, Any]) -> str:
    """Return the tables of the page, as Markdown."""
    names = list(dict.fromkeys(row["model"] for row in record["rows"]))
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
        for row in record["rows"]
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


def write_page(record: dict[str, Any]) -> None:
    """Write the tables between the marks of the page."""
    begin, end = "<!-- tables: begin -->", "<!-- tables: end -->"
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(begin)[0], text.split(end)[1]
    write_text(PAGE, f"{before}{begin}\n\n{tables_of(record)}\n\n{end}{after}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--write", action="store_true", help="only write the tables from the record")
    options.add_argument("--models", nargs="+", default=list(MODELS), help="default: %(default)s")
    options.add_argument("--output", type=Path, default=RESULTS, help="JSON to write")
    given = options.parse_args()
    if not given.write:
        write_json(given.output, study(given.models))
    if given.output == RESULTS:
        write_page(json.loads(RESULTS.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
