"""What verbs that write files do to what is there: inputs and files of others stay, results come first."""

import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from cellglot.evaluation import plots
from cellglot.evaluation.benchmark.evaluate import evaluate_models
from cellglot.evaluation.drawing import check_picture, drawing
from cellglot.evaluation.embed_file import embed_file
from cellglot.outputs import OutputError


QUIET = {"progress": False, "device": "cpu"}


@pytest.fixture
def cells(blood, tmp_path):
    path = tmp_path / "cells.h5ad"
    blood[:30].write_h5ad(path)
    return path


@pytest.mark.parametrize("spelling", ["the file", "a link", "a plot", "a file of the model"])
def test_inputs_are_refused_as_outputs_also_with_overwrite(model_folders, cells, tmp_path, spelling, monkeypatch):
    from cellglot.evaluation import embed_file as module

    monkeypatch.setattr(module, "read_cells", None)  # no work is begun
    before, options, output = cells.read_bytes(), {}, cells
    if spelling == "a link":
        output = tmp_path / "linked.h5ad"
        output.symlink_to(cells)
    elif spelling == "a plot":
        output, options = tmp_path / "e.npy", {"plot": tmp_path / "cells.png"}
        (tmp_path / "cells.png").symlink_to(cells)
    elif spelling == "a file of the model":
        output, options = tmp_path / "e.npy", {"plot": tmp_path / "p.png"}
        (tmp_path / "p.png").symlink_to(Path(model_folders["model"], "config.json"))
    with pytest.raises(OutputError, match="input"):
        embed_file(model_folders["model"], cells, output, overwrite=True, **options, **QUIET)
    assert cells.read_bytes() == before


def test_a_file_that_exists_is_replaced_only_when_asked_for(model_folders, cells, tmp_path):
    output = tmp_path / "mine.npy"
    output.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        embed_file(model_folders["model"], cells, output, **QUIET)
    assert output.read_text() == "mine"
    embed_file(model_folders["model"], cells, output, overwrite=True, **QUIET)
    assert np.load(output).shape == (30, 48)


@pytest.mark.parametrize("at", ["umap_coordinates", "save_figure"])
def test_a_picture_that_fails_leaves_the_result_and_says_how_to_draw_it(
    model_folders, cells, tmp_path, monkeypatch, caplog, at
):
    def failing(*given):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(plots, at, failing)
    if at == "save_figure":
        monkeypatch.setattr(plots, "umap_coordinates", lambda embedding, seed=0: np.zeros((len(embedding), 2)))
    output, plot = tmp_path / "e.h5ad", tmp_path / "u.png"
    with caplog.at_level(logging.WARNING):
        said = embed_file(model_folders["model"], cells, output, plot=plot, **QUIET)
    assert ad.read_h5ad(output).shape == (30, 48) and not plot.exists()
    assert str(plot) not in said and "no locator" in caplog.text
    assert f"--plot {plot}" in caplog.text and "--overwrite" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells.h5ad", "e.h5ad"]


def test_pictures_that_cannot_be_are_refused_first_and_interrupts_are_not_swallowed(tmp_path):
    with pytest.raises(ValueError, match="written as .png"):
        check_picture(tmp_path / "u.xyz")
    with pytest.raises(ValueError, match="too few"):
        check_picture(tmp_path / "u.png", 3)
    with pytest.raises(KeyboardInterrupt), drawing("u.png", ["cellglot"]):
        raise KeyboardInterrupt


def test_an_evaluation_keeps_pictures_and_files_of_others(blood, tmp_path):
    output = tmp_path / "evaluation"
    output.mkdir()
    for name in ("umap_mine.png", "notes.md"):
        (output / name).write_text("mine")
    given = {"labels": "cell_type", "output": output, "progress": False, "with_baselines": False}
    for overwrite in (False, True):
        evaluate_models([], blood[:80], ["clustering"], overwrite=overwrite, **given)
        names = {p.name for p in output.iterdir()}
        assert {"evaluation.json", "evaluation.md", "scores.png", "umap_mine.png", "notes.md"} <= names
        assert (output / "umap_mine.png").read_text() == (output / "notes.md").read_text() == "mine"
    assert "umap_mine" not in (output / "evaluation.md").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "evaluation.json").write_text('{"an": "evaluation of others"}')
    with pytest.raises(OutputError, match=r"evaluation\.json"):
        evaluate_models([], blood[:80], ["clustering"], overwrite=True, **(given | {"output": other}))
    assert (other / "evaluation.json").read_text() == '{"an": "evaluation of others"}'
