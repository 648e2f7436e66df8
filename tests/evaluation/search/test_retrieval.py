import numpy as np
import pytest
import torch

from cellglot.evaluation.embedding import embed_cells
from cellglot.evaluation.search.retrieval import cell_embedding, find_cells, find_texts, nearest, recall_at_k
from cellglot.evaluation.text_model import embed_texts
from cellglot.modeling import ExceiverModel
from cellglot.modeling.any_model import load_cell_text_model


QUIET = {"progress": False, "device": "cpu"}
TEXTS = ["cell type: B cell. ", "cell type: monocyte. ", "cell type: T cell. "]


def unit(n, size, seed):
    rows = np.random.default_rng(seed).normal(size=(n, size)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("blocks", [(1024, 1 << 16), (3, 4), (7, 1), (1, 50)])
@pytest.mark.parametrize("k", [1, 5, 80])
def test_search_is_exact_however_it_is_cut(k, blocks):
    queries, items = unit(11, 6, 0), unit(50, 6, 1)
    found = nearest(queries, items, k, queries_at_once=blocks[0], items_at_once=blocks[1])
    products = queries @ items.T
    order = np.argsort(-products, axis=1)[:, :k]
    np.testing.assert_array_equal(found.numbers, order)
    np.testing.assert_allclose(found.scores, np.take_along_axis(products, order, 1), atol=1e-6)


def test_no_more_than_a_block_is_held(tmp_path, monkeypatch):
    np.save(tmp_path / "items.npy", unit(500, 6, 1))
    items = np.load(tmp_path / "items.npy", mmap_mode="r")
    sizes, topk = [], torch.Tensor.topk
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda self, *a, **k: (sizes.append(self.numel()), topk(self, *a, **k))[1]
    )
    found = nearest(unit(20, 6, 0), items, 3, queries_at_once=10, items_at_once=16)
    assert max(sizes) <= 160
    np.testing.assert_array_equal(found.numbers[:, 0], (unit(20, 6, 0) @ unit(500, 6, 1).T).argmax(1))


def test_what_cannot_be_searched():
    items = unit(5, 6, 0)
    for queries, among, k, message in (
        (items, items[:0], 1, "at least one item"),
        (items, items, 0, "at least one item"),
        (unit(2, 4, 0), items, 1, "queries have size 4, but items have size 6"),
    ):
        with pytest.raises(ValueError, match=message):
            nearest(queries, among, k)


def test_recall_by_hand():
    texts = np.eye(3, dtype=np.float32)
    cells = np.array([[1, 0, 0], [0.9, 1.1, 0], [0, 1, 0], [0, 0.8, 0.7], [5, 5, 5]], dtype=np.float32)
    ids = np.array([0, 0, 1, 2, -100])
    found = recall_at_k(cells, texts, ids, ks=(1, 2))
    assert found["cell_to_text_recall@1"] == 0.5 and found["cell_to_text_recall@2"] == 1.0
    assert found["text_to_cell_recall@1"] == pytest.approx(2 / 3)
    assert (found["cells"], found["texts"]) == (4, 3)
    assert found["cell_to_text_recall@1_chance"] == pytest.approx(1 / 3)
    assert found["text_to_cell_recall@1_chance"] == pytest.approx((2 / 4 + 1 / 4 + 1 / 4) / 3)
    assert found["text_to_cell_recall@2_chance"] == pytest.approx((1 - 2 / 4 * 1 / 3 + 1 / 2 + 1 / 2) / 3)


def test_recall_of_a_random_order_is_chance():
    ids = np.repeat(np.arange(40), 5)
    found = [recall_at_k(unit(200, 32, s), unit(40, 32, 100 + s), ids, ks=(1, 5)) for s in range(40)]
    for name in ("cell_to_text_recall@5", "text_to_cell_recall@5"):
        assert np.mean([f[name] for f in found]) == pytest.approx(found[0][f"{name}_chance"], abs=0.015)


def test_recall_refuses():
    cells, texts = unit(4, 3, 0), unit(2, 3, 1)
    for ids, message in (
        (np.zeros(3, int), "for 4 cells"),
        (np.full(4, 2), "text_ids has 2, but there are 2 texts"),
        (np.full(4, -100), "no cell has a text"),
    ):
        with pytest.raises(ValueError, match=message):
            recall_at_k(cells, texts, ids)


@pytest.fixture(scope="module")
def loaded(cell_text_folder):
    return load_cell_text_model(cell_text_folder)


def test_cells_to_texts_and_back(loaded, blood, model_folders):
    model, processor = loaded
    few = blood[:30].copy()
    cells = embed_cells(model, processor.tokenizer, few, **QUIET)
    texts = embed_texts(model, processor, TEXTS, device="cpu")
    with torch.no_grad():
        tokens = processor(text=TEXTS, return_tensors="pt")
        expected = model.get_text_features(tokens["text_input_ids"], tokens["text_attention_mask"]).numpy()
    np.testing.assert_allclose(texts, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    for given in (cells, few):
        found = find_cells(model, processor, given, TEXTS[0], k=4, **QUIET)
        np.testing.assert_array_equal(found.numbers[0], np.argsort(-(cells @ texts[0]))[:4])
        found = find_texts(model, processor, given, TEXTS, k=2, **QUIET)
        np.testing.assert_array_equal(found.numbers[:, 0], (cells @ texts.T).argmax(1))
    by_counts = cell_embedding(model, processor, few.X.toarray(), genes=list(few.var_names), **QUIET)
    np.testing.assert_allclose(by_counts, cells, atol=1e-5)
    with pytest.raises(ValueError, match=r"shape \(30, 3\), but this model's have size 8"):
        find_cells(model, processor, cells[:, :3], TEXTS, **QUIET)
    with pytest.raises(ValueError, match="text 1 of 2 is empty"):
        embed_texts(model, processor, ["x", " "], device="cpu")
    with pytest.raises(ValueError, match="no candidates"):
        embed_texts(model, processor, [], device="cpu")
    exceiver = ExceiverModel.from_pretrained(model_folders["model"])
    with pytest.raises(ValueError, match="does not read texts"):
        find_cells(exceiver, processor, few, TEXTS, **QUIET)
