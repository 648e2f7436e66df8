"""The page in the browser by WebGPU, compared with Python: labels and scores of the same cells.

python benchmarks/browser_webgpu.py --cells FILE.h5ad --first 128

Chromium, headless, computes WebGPU by SwiftShader, which is software: what is measured are numbers, not speed.
Target: the same label for 99.5% of the cells, scores to 1e-2.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from measure import parser, report
from playwright.sync_api import sync_playwright

import cellglot
from cellglot.evaluation.annotation.by_classifier import classify_cells, load_classifier
from cellglot.model_cards.space.browser.build import stage_page
from cellglot.model_cards.space.browser.serve import served
from cellglot.modeling.annotation_calibration import AnnotationCalibration


FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
SOFTWARE_WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
MODELS = ("blood-exceiver", "blood-sccello", "blood-langcell")
WAIT = 3_600_000  # milliseconds; shaders are compiled for the processor
BY_WEBGPU = "Computed by WebGPU, on the graphics processor."


def table_of(folder: Path, cells: Path) -> pd.DataFrame:
    """Return the table that the page gives for a file, computed by WebGPU."""
    with served(folder) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=[*FLAGS, *SOFTWARE_WEBGPU], timeout=WAIT
        )
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.goto(f"{address}?compute=webgpu")
        page.wait_for_selector("html[data-ready=yes]", state="attached")
        page.set_input_files("#file", cells)
        page.wait_for_selector("html[data-shown=result], html[data-shown*=problem]", state="attached")
        said = page.inner_text("#compute-line")
        assert said == BY_WEBGPU, said + page.inner_text("#problem-text")
        with page.expect_download() as download:
            page.click("#download")
        table = pd.read_csv(download.value.path(), index_col="cell_id", keep_default_na=False)
        browser.close()
    return table


def compared(model: str, folder: Path, cells: AnnData, file: Path) -> dict[str, str | int | float]:
    """Compare the page's labels and scores with Python's."""
    path = cellglot.model_path(model)
    network, tokenizer = load_classifier(path)
    expected = classify_cells(
        network, tokenizer, cells, calibration=AnnotationCalibration.load(path), progress=False
    ).said
    table = table_of(folder, file)
    same = np.mean([a == (b or "") for a, b in zip(table["cellglot_cell_type"], expected["cell_type"], strict=True)])
    row: dict[str, str | int | float] = {"model": model, "cells": len(table), "same label": float(same)}
    for column in ("confidence", "novelty"):
        away = pd.to_numeric(table[f"cellglot_{column}"]) - np.asarray(expected[column])
        row[f"largest difference of {column}"] = float(away.abs().max())
    return row


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--cells", required=True, type=Path, help="File of cells.")
    arguments.add_argument("--first", type=int, default=128, help="Cells of the file, at equal steps.")
    given = arguments.parse_args()
    whole = cellglot.read_cells(given.cells).to_anndata()
    few = whole[np.arange(min(given.first, whole.n_obs)) * whole.n_obs // min(given.first, whole.n_obs)].copy()
    rows = []
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            file, page = Path(folder, "cells.h5ad"), Path(folder, "page")
            page.mkdir()
            few.write_h5ad(file)
            stage_page(cellglot.model_path(model), page, name=model)
            rows.append(compared(model, page, few, file))
    same = min(float(row["same label"]) for row in rows)
    away = max(float(row["largest difference of confidence"]) for row in rows)
    report(
        given, rows, [("same label", 0.995, same, same >= 0.995), ("difference of a score", 0.01, away, away <= 0.01)]
    )


if __name__ == "__main__":
    main()
