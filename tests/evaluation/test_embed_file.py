import anndata as ad
import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread

from cellglot.evaluation.embed_file import embed_file
from cellglot.evaluation.embedding import embed_cells
from cellglot.modeling import ExceiverModel
from cellglot.tokenization import ExceiverTokenizer, RankValueTokenizer


QUIET = {"progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def cells(blood, tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "some.h5ad"
    blood[:50].write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def expected(blood, model_folders):
    folder = model_folders["model"]
    return embed_cells(
        ExceiverModel.from_pretrained(folder), ExceiverTokenizer.from_pretrained(folder), blood[:50], **QUIET
    )


def test_embeddings_in_every_format(model_folders, cells, blood, expected, tmp_path):
    for ending in ("h5ad", "parquet", "npy"):
        output = tmp_path / f"embedding.{ending}"
        text = embed_file(model_folders["model"], cells, output, batch_size=7, **QUIET)
        assert f"{output}: 50 cells x 48" in text and "765 of 765 genes" in text
    written = ad.read_h5ad(tmp_path / "embedding.h5ad")
    table = pq.read_table(tmp_path / "embedding.parquet")
    assert np.allclose(written.X, expected, atol=1e-5)
    assert written.obs_names.tolist() == table["cell_id"].to_pylist() == blood.obs_names[:50].tolist()
    assert written.obs["cell_type"].tolist() == blood.obs["cell_type"][:50].tolist()
    assert np.allclose(np.array(table["embedding"].to_pylist()), expected, atol=1e-5)
    assert np.allclose(np.load(tmp_path / "embedding.npy"), expected, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 4  # with the names of the array; nothing half-written is left


def test_a_picture_beside_it(model_folders, cells, tmp_path):
    output, plot = tmp_path / "embedding.h5ad", tmp_path / "cells.png"
    text = embed_file(model_folders["model"], cells, output, plot=plot, color="cell_type", **QUIET)
    assert text.endswith(str(plot))
    assert imread(plot).std() > 0.01
    assert ad.read_h5ad(output).obsm["X_umap"].shape == (50, 2)


def test_a_classifier_embeds_too(model_folders, cells, tmp_path):
    embed_file(model_folders["classifier"], cells, tmp_path / "e.npy", **QUIET)
    embedding = np.load(tmp_path / "e.npy")
    assert embedding.shape == (50, 48) and np.isfinite(embedding).all()


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification"])
def test_classifiers_of_langcell_embed_by_their_own_encoder(head, cells, blood, vocabulary, tmp_path):
    """Which has no projection into the space of texts: nothing of the embedding is drawn at random."""
    import cellglot.modeling as models

    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary, model_max_length=64)
    cell = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 64, "hidden_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}  # fmt: skip
    text = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16}  # fmt: skip
    config = models.LangCellConfig(cell_config=cell, text_config=text, num_labels=3)
    network = getattr(models, f"LangCell{head}")(config).eval()
    network.save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    embed_file(tmp_path / "classifier", cells, tmp_path / "e.npy", **QUIET)
    expected = embed_cells(network.cell_model, tokenizer, blood[:50], **QUIET)
    assert np.allclose(np.load(tmp_path / "e.npy"), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("e.csv", {}, r"e\.csv: embeddings are written as \.h5ad, \.parquet, \.npy"),
        ("e.npy", {"color": "donor"}, "no column 'donor' in obs; it has .*cell_type"),
    ],
)
def test_what_cannot_be_written(model_folders, cells, tmp_path, output, options, message):
    with pytest.raises(ValueError, match=message):
        embed_file(model_folders["model"], cells, tmp_path / output, **options, **QUIET)
    assert not list(tmp_path.iterdir())


def test_missing_labels_are_one_grey_group(model_folders, blood, tmp_path, monkeypatch):
    from cellglot.evaluation import plots

    cells, drawn = blood[:20].copy(), []
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
    cells.obs.loc[cells.obs_names[[2, 5]], "cell_type"] = None
    cells.obs["dose"] = np.where(np.arange(20) % 4 == 1, np.nan, 2.0)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    for column, number in (("cell_type", 2), ("dose", 5)):
        output = tmp_path / f"{column}.npy"
        embed_file(
            model_folders["model"], tmp_path / "cells.h5ad", output, plot=tmp_path / "p.png", color=column, **QUIET
        )
        legend = drawn.pop().axes[0].get_legend()
        names = [text.get_text() for text in legend.get_texts()]
        assert names[-1] == f"missing ({number})"
        assert not any(name.split(" (")[0].lower() in ("none", "nan") for name in names)
        colour = legend.legend_handles[-1].get_facecolor()[0][:3]
        assert np.ptp(colour) < 0.1  # grey
