import base64
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from cellglot.evaluation import plots


@pytest.fixture(
    params=["embedding", "confusion", "curves", "bars", "no bars", "many classes"],
)
def figure(request):
    random = np.random.default_rng(0)
    where = random.normal(size=(40, 2))
    labels = [f"type <{i % 3}> & more" for i in range(40)]
    match request.param:
        case "embedding":
            return plots.embedding_plot(where, labels, "Cells", np.arange(40) % 4 == 0)
        case "many classes":
            return plots.embedding_plot(where, [str(i) for i in range(40)], "Cells")
        case "confusion":
            return plots.confusion_plot(labels, labels[::-1], "Cells")
        case "curves":
            return plots.curves_plot({"a": ([1, 2], [3, 4]), "b": ([1], [2])}, "Loss", "loss", {"guess": 2.5})
        case "bars":
            return plots.bars_plot({"MALAT1": 9, "MT-CO1": 4}, "Lost", "counts")
    return plots.bars_plot({}, "Lost", "counts")


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_figures_are_written_in_the_format_of_the_ending(figure, ending, tmp_path):
    path = tmp_path / f"figure.{ending}"
    plots.save_figure(figure, str(path))
    if ending == "png":
        image = imread(path)
        assert min(image.shape[:2]) > 100 and image.std() > 0.01
    elif ending == "svg":
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    else:
        content = path.read_bytes()
        assert content.startswith(b"%PDF") and b"%%EOF" in content[-16:]


def test_addresses_hold_the_figure():
    figure = plots.bars_plot({"MALAT1": 9}, "Lost", "counts")
    kind, _, content = plots.data_uri(figure).partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content).startswith(b"\x89PNG")
    kind, _, content = plots.data_uri(figure, "svg").partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert b"MALAT1" in base64.b64decode(content) or b"<svg" in base64.b64decode(content)


def test_the_legend_counts_the_cells_of_every_class():
    figure = plots.embedding_plot(np.zeros((5, 2)), ["b", "a", "b", "b", "c"], "Cells")
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["b (3)", "a (1)", "c (1)"]
    figure = plots.embedding_plot(np.zeros((5, 2)), pd.array(["b", None, "b", "b", pd.NA], dtype="string"), "Cells")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()][0] == "b (3)"
    assert figure.axes[0].get_legend().get_texts()[1].get_text().endswith(" (2)")


def test_the_confusion_counts_cells():
    figure = plots.confusion_plot(["a", "a", "a", "b"], ["a", "a", "b", "c"], "Cells")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert {t.get_position(): t.get_text() for t in axes.texts} == {(0, 0): "2", (1, 0): "1", (2, 1): "1"}
    assert np.allclose(axes.images[0].get_array()[0], [2 / 3, 1 / 3, 0])


def test_umap_tells_groups_of_cells_apart():
    random = np.random.default_rng(0)
    group = np.repeat([0, 1], 30)
    embedding = (random.normal(size=(60, 10)) + 20 * group[:, None]).astype(np.float32)
    where = plots.umap_coordinates(embedding, seed=1)
    assert where.shape == (60, 2) and np.isfinite(where).all()
    assert np.array_equal(where, plots.umap_coordinates(embedding, seed=1))
    nearest = np.linalg.norm(where[:, None] - where[None] + 1e9 * np.eye(60)[..., None], axis=2).argmin(axis=1)
    assert (group[nearest] == group).all()


THREADS = """
import numpy as np, torch
torch.set_num_threads(1)
assert torch.get_num_threads() == 1  # asked for the first time PyTorch sets them once more
from cellglot.evaluation.plots import umap_coordinates
umap_coordinates(np.random.default_rng(0).normal(size=(60, 5)))
print(torch.get_num_threads())
"""


@pytest.mark.long
def test_the_first_umap_of_a_process_changes_no_threads_of_models():
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "1\n", done.stderr[-2000:]


@pytest.mark.parametrize("n_cells", [0, 1, 3])
def test_too_few_cells_for_a_umap(n_cells):
    with pytest.raises(ValueError, match="too few for a UMAP"):
        plots.umap_coordinates(np.zeros((n_cells, 5), dtype=np.float32))
    assert plots.umap_coordinates(np.random.default_rng(0).normal(size=(4, 5))).shape == (4, 2)
