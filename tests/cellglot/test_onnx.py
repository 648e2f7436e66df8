"""cellglot export, and embed and annotate by the exported graphs."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import cellglot
from cellglot.evaluation.onnx_export import GraphLoss, made_batches
from cellglot.modeling import ExceiverConfig, ExceiverModel
from cellglot.modeling.convert.onnx import check_graph, export_graphs
from cellglot.modeling.convert.onnx_weights import quantized
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.onnx_network import OnnxError, facts_of, open_graph
from cellglot.tokenization import ExceiverTokenizer


DTYPES = ("float32", "float16", "int8")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors are computed by one thread: waiting for others takes longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def exported(gene_classifiers, tmp_path_factory):
    """An adapter on scCello, merged and exported in all types."""
    folder = tmp_path_factory.mktemp("onnx") / "graphs"
    return cellglot.export(gene_classifiers["adapter"], folder, dtype=DTYPES), folder


@pytest.fixture(scope="module")
def cells(blood):
    """A few cells, one without counts."""
    few = blood[:12].copy()
    counts = few.X.tolil()
    counts[3] = 0
    few.X = counts.tocsr()
    return few


@pytest.fixture(scope="module")
def background(vocabulary):
    """A tiny Exceiver that uses all genes."""
    torch.manual_seed(0)
    tokenizer = ExceiverTokenizer.from_vocabulary(vocabulary)
    sizes = {"gene_embedding_size": 4, "hidden_size": 8, "num_latents": 3, "num_hidden_layers": 1}
    config = ExceiverConfig(
        vocab_size=tokenizer.vocab_size, intermediate_size=16, unexpressed_genes="bias", pooling="mean", **sizes
    )
    model = ExceiverModel(config).eval()
    model.set_background_values(torch.rand(config.num_genes))
    model.config.architectures = ["ExceiverModel"]
    return LoadedModel("background", model, tokenizer)


def test_the_folder_is_that_of_a_hub_repository(exported):
    done, folder = exported
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    graphs = {"onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_int8.onnx"}
    assert graphs | {"config.json", "gene_vocab.json", "tokenizer_config.json"} <= names
    assert not {"model.safetensors", "adapter_config.json"} & names
    sizes = [(folder / name).stat().st_size for name in sorted(graphs)]  # float32, float16, int8
    assert sizes[0] > max(sizes[1:])
    assert done.graphs[0].equal_labels == done.graphs[1].equal_labels == 1
    assert all(loss.n_cells == 700 and loss.cosine > 0.9 for loss in done.graphs)
    assert "the same label for" in done.summary() and "700 blood cells" in done.summary()


def test_inputs_and_outputs_have_the_names_of_the_model(exported):
    session = onnxruntime.InferenceSession(str(exported[1] / "onnx" / "model_fp16.onnx"))
    assert [entry.name for entry in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [entry.name for entry in session.get_outputs()] == ["logits", "embedding"]
    assert all(isinstance(size, str) for entry in session.get_inputs() for size in entry.shape)  # any number
    assert b"stack_trace" not in (exported[1] / "onnx" / "model_fp16.onnx").read_bytes()  # nor paths of this machine
    facts = facts_of(session)
    assert (facts["architecture"], facts["classes"]) == ("ScCelloForSequenceClassification", ["T cell", "NK", "other"])


def test_annotation_is_that_of_pytorch(exported, gene_classifiers, cells):
    by_torch = cellglot.annotate(cells, gene_classifiers["adapter"], copy=True, device="cpu")
    for dtype in (None, "float16"):
        by_onnx = cellglot.annotate(cells, exported[1], copy=True, backend="onnx", dtype=dtype)
        names = [name for name in by_torch.obs if name.startswith("cellglot_")]
        assert list(by_onnx.obs.filter(like="cellglot_")) == names
        assert by_onnx.obs["cellglot_cell_type"].astype(str).equals(by_torch.obs["cellglot_cell_type"].astype(str))
        for name in ("X_cellglot", "cellglot_scores"):
            np.testing.assert_allclose(by_onnx.obsm[name], by_torch.obsm[name], atol=1e-4 if dtype is None else 2e-2)
    assert np.isnan(by_onnx.obsm["X_cellglot"][3]).all()


def test_embedding_of_a_file_by_the_command(exported, gene_classifiers, cells, tmp_path, cellglot_command):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / "found.npy"
    done = cellglot_command("embed", exported[1], tmp_path / "cells.h5ad", "-o", out, "--backend", "onnx")
    assert done.status == 0, done.err
    expected = cellglot.embed(cells, gene_classifiers["adapter"], copy=True, device="cpu").obsm["X_cellglot"]
    np.testing.assert_allclose(np.load(out), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tflite"}, "backend 'tflite': it is torch or onnx"),
        ({"dtype": "bfloat16"}, "dtype 'bfloat16': of an ONNX graph"),
        ({"device": "cuda"}, "computes on the CPU"),
        ({"adapter": "somewhere"}, "cellglot export .* --adapter somewhere"),
        ({"model": "base"}, "base has no ONNX graph .*: make one by cellglot export"),
    ],
)
def test_wrong_calls_say_what_to_do(exported, gene_classifiers, cells, options, message):
    given = {"backend": "onnx"} | options
    model = gene_classifiers[given.pop("model")] if "model" in given else exported[1]
    with pytest.raises(ValueError, match=message):
        cellglot.annotate(cells, model, copy=True, **given)


def test_a_folder_of_graphs_alone_says_so(exported, cells):
    with pytest.raises(ValueError, match="ONNX graphs and no weights: run it with backend='onnx'"):
        cellglot.embed(cells, exported[1], copy=True)


def test_graphs_of_another_model_are_refused(exported, gene_classifiers, cells, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(gene_classifiers["classifier"], folder)
    shutil.copytree(exported[1] / "onnx", folder / "onnx")
    with pytest.raises(OnnxError, match="graph of another model: it differs from config.json in classes"):
        cellglot.embed(cells, folder, copy=True, backend="onnx")
    (folder / "onnx" / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(OnnxError, match=r"model\.onnx is not an ONNX graph, or it is damaged"):
        cellglot.embed(cells, folder, copy=True, backend="onnx")


def test_export_refuses_what_it_would_replace(exported, gene_classifiers, tmp_path):
    with pytest.raises(ValueError, match="an exported model: choose another folder, or replace it by --overwrite"):
        cellglot.export(gene_classifiers["adapter"], exported[1])
    with pytest.raises(ValueError, match="input"):
        cellglot.export(gene_classifiers["classifier"], gene_classifiers["classifier"])
    for options, message in (({"format": "tflite"}, "format 'tflite'"), ({"dtype": ["int4"]}, "dtype 'int4'")):
        with pytest.raises(ValueError, match=message):
            cellglot.export(gene_classifiers["classifier"], tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_missing_package_is_named(gene_classifiers, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'cellglot\[onnx\]'"):
        cellglot.export(gene_classifiers["classifier"], tmp_path / "new")


def test_other_values_than_those_of_pytorch_are_refused(exported, gene_classifiers):
    path = exported[1] / "onnx" / "model.onnx"
    batches = list(made_batches(cellglot.load_model(gene_classifiers["adapter"]).tokenizer))[:1]
    session = open_graph(path)
    found = session.run(None, {e.name: batches[0][e.name].numpy() for e in session.get_inputs()})
    assert check_graph(path, batches, [found], 1e-4, "model") == 0
    found[0][0, 0] += 0.01
    with pytest.raises(OnnxError, match="the ONNX graph returns other logits than PyTorch .* was not kept"):
        check_graph(path, batches, [found], 1e-4, "model")


def test_rows_of_an_embedding_have_scales_of_their_own_in_8_bits():
    random, helper = np.random.default_rng(0), onnx.helper
    table = (random.normal(size=(50, 24)) * 10.0 ** random.integers(-3, 3, (50, 1))).astype(np.float32)
    table[7] = 0
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "rows"], ["found"])], "embedding",
        [helper.make_tensor_value_info("rows", onnx.TensorProto.INT64, ["cells", "genes"])],
        [helper.make_tensor_value_info("found", onnx.TensorProto.FLOAT, ["cells", "genes", 24])],
        [onnx.numpy_helper.from_array(table, "table")],
    )  # fmt: skip
    small = quantized(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    assert small.ByteSize() < 0.5 * table.nbytes
    rows = random.integers(0, 50, (3, 40))
    (found,) = onnxruntime.InferenceSession(small.SerializeToString()).run(None, {"rows": rows})
    assert (np.abs(found - table[rows]) <= np.abs(table[rows]).max(axis=-1, keepdims=True) / 253).all()


def test_lost_labels_are_a_warning(exported):
    few, many = (GraphLoss("int8", exported[1] / "onnx" / "model_int8.onnx", 100, share) for share in (0.98, 0.97))
    assert not few.loses_labels and many.loses_labels
    exported[0].graphs.append(many)
    try:
        assert exported[0].summary().startswith("WARNING: with int8 weights 3.0% of 100 cells get another label")
    finally:
        exported[0].graphs.remove(many)


@pytest.mark.long
def test_all_genes_of_exceiver_are_keys_in_its_graph(background, tmp_path):
    batches = list(made_batches(background.tokenizer))
    path = export_graphs(background, tmp_path, batches)[0]
    session = open_graph(path)
    for batch in batches:
        found = session.run(None, {e.name: batch[e.name].numpy() for e in session.get_inputs()})[0]
        with torch.inference_mode():
            expected = background.network(**batch).pooler_output.numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)
