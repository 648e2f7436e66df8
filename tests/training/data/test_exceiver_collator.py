import numpy as np
import pytest
import torch

from cellglot.training.data.collators import ExceiverCollator


PAD = 90


@pytest.fixture
def cells():
    """Cells of different lengths, as a data set gives them."""
    random = np.random.default_rng(0)
    return [
        {
            "epoch": 0,
            "cell": number,
            "input_ids": np.sort(random.choice(PAD, n, replace=False)),
            "expression_values": random.normal(1, 1, n).astype(np.float32),
            "cell_type": f"type {number % 2}",
        }
        for number, n in enumerate((40, 12, 25, 60, 33))
    ]


def drawn(batch):
    return [batch["query_ids"][i].tolist() for i in range(len(batch["query_ids"]))]


def test_masked_genes_are_queries_and_labels(cells):
    batch = ExceiverCollator(PAD, 6)(cells)
    assert batch["input_ids"].shape == batch["masked_genes"].shape == (5, 60)
    assert batch["query_ids"].shape == batch["labels"].shape == (5, 6)
    for i, cell in enumerate(cells):
        n = len(cell["input_ids"])
        assert batch["input_ids"][i, :n].tolist() == cell["input_ids"].tolist()
        assert (batch["input_ids"][i, n:] == PAD).all()
        assert batch["attention_mask"][i].tolist() == [1] * n + [0] * (60 - n)
        masked = batch["masked_genes"][i]
        assert masked.sum() == 6 and not masked[n:].any()
        assert torch.equal(batch["input_ids"][i, masked], batch["query_ids"][i])
        assert torch.equal(batch["expression_values"][i, masked], batch["labels"][i])


def test_masks_do_not_depend_on_the_batch(cells):
    collator = ExceiverCollator(PAD, 6, seed=3)
    whole = drawn(collator(cells))
    assert [drawn(collator([cell]))[0] for cell in cells] == whole
    assert drawn(collator(cells[::-1])) == whole[::-1]
    assert drawn(collator(cells[3:])) == whole[3:]


def test_masks_depend_on_seed_epoch_and_cell(cells):
    cell = cells[3]
    masks = {
        (seed, epoch, number): tuple(
            drawn(ExceiverCollator(PAD, 6, seed=seed)([cell | {"epoch": epoch, "cell": number}]))[0]
        )
        for seed in (0, 1)
        for epoch in (-1, 0, 1)
        for number in (0, 1)
    }
    assert len(set(masks.values())) == len(masks)


def test_every_gene_is_masked_as_often(cells):
    collator = ExceiverCollator(PAD, 12)
    often = np.zeros(PAD + 1)
    for epoch in range(500):
        often[collator([cells[3] | {"epoch": epoch}])["query_ids"][0]] += 1
    shares = often[cells[3]["input_ids"]] / 500
    assert shares.mean() == pytest.approx(12 / 60)
    assert np.abs(shares - 0.2).max() < 0.08  # four standard deviations


def test_a_short_cell_gets_half_of_its_genes_masked(cells):
    for n, masked in ((12, 6), (3, 1), (1, 0), (0, 0)):
        short = {**cells[1], **{k: cells[1][k][:n] for k in ("input_ids", "expression_values")}}
        batch = ExceiverCollator(PAD, 8)([short])
        assert batch["masked_genes"].sum() == masked
        assert (batch["query_ids"] != PAD).sum() == masked
        assert batch["input_ids"].shape == (1, max(n, 1))


def test_nothing_masked_gives_no_queries(cells):
    batch = ExceiverCollator(PAD, 0)(cells)
    assert set(batch) == {"input_ids", "expression_values", "attention_mask"}


def test_classes_are_labels_and_expression_stands_beside(cells):
    filler = {"epoch": 0, "cell": -1, "input_ids": np.empty(0), "expression_values": np.empty(0)}
    classes = {"type 1": 7}
    batch = ExceiverCollator(PAD, 4, labels=classes, label_column="cell_type")([*cells, filler])
    assert batch["labels"].tolist() == [-100, 7, -100, 7, -100, -100]
    assert batch["expression_labels"].shape == (6, 4)
    assert not batch["attention_mask"][-1].any() and not batch["masked_genes"][-1].any()


def test_classes_can_be_numbers_in_the_corpus(cells):
    numbered = [cell | {"cluster": number} for number, cell in enumerate(cells)]
    batch = ExceiverCollator(PAD, 0, labels={str(i): i for i in range(5)}, label_column="cluster")(numbered)
    assert batch["labels"].tolist() == [0, 1, 2, 3, 4]


def test_a_batch_without_cells_is_refused():
    with pytest.raises(ValueError, match="no cells"):
        ExceiverCollator(PAD, 4)([])
