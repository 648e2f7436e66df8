import numpy as np
import pytest

from cellglot.training.data.rank_value_collator import RankValueCollator


PAD, MASK, CLS, GENES = 0, 1, 102, np.arange(2, 102)


def cell(number, n_genes, epoch=0, **columns):
    genes = np.random.default_rng(number).permutation(GENES)[:n_genes]
    return {"epoch": epoch, "cell": number, "input_ids": np.concatenate([[CLS], genes]), **columns}


def make(**options):
    return RankValueCollator(PAD, MASK, CLS, GENES, **options)


def test_padding_and_masks():
    cells = [cell(0, 90), cell(1, 40), cell(2, 0)]
    batch = make()(cells)
    ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    assert ids.shape == labels.shape == batch["attention_mask"].shape == (3, 91)
    assert batch["attention_mask"].sum(dim=1).tolist() == [91, 41, 1]
    masked = labels != -100
    assert masked[:2].any(axis=1).all() and not masked[2].any()
    for row, example in enumerate(cells):
        own = example["input_ids"]
        kept = np.where(masked[row, : len(own)], labels[row, : len(own)], ids[row, : len(own)])
        assert (kept == own).all(), "what is not masked stays, and labels are the genes that stood there"
        assert (ids[row, len(own) :] == PAD).all()
    assert (ids[:, 0] == CLS).all(), "<cls> is never masked"


def test_masked_share_and_what_becomes_of_masked_genes():
    cells = [cell(n, 100) for n in range(400)]
    batch = make(mask_fraction=0.15)(cells)
    ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    masked = labels != -100
    assert 0.14 < masked.sum() / 40_000 < 0.16
    fates = ids[masked]
    assert 0.78 < (fates == MASK).mean() < 0.82
    assert 0.085 < (fates == labels[masked]).mean() < 0.125
    others = fates[(fates != MASK) & (fates != labels[masked])]
    assert np.isin(others, GENES).all() and len(np.unique(others)) > 90


def test_a_cells_masks_depend_on_seed_epoch_and_cell_alone():
    alone = make()([cell(5, 60)])
    among = make()([cell(1, 80), cell(5, 60)])
    assert (among["input_ids"][1, :61] == alone["input_ids"][0]).all()
    assert (make()([cell(5, 60, epoch=1)])["input_ids"] != alone["input_ids"]).any()
    assert (make(seed=1)([cell(5, 60)])["input_ids"] != alone["input_ids"]).any()


def test_without_masks_there_are_no_labels_of_genes():
    batch = make(mask_fraction=0.0)([cell(0, 10)])
    assert set(batch) == {"input_ids", "attention_mask"}


def test_long_cells_are_cut_to_the_genes_of_the_lowest_ranks():
    batch = make(mask_fraction=0.0, max_length=21)([cell(0, 50), cell(1, 10)])
    assert batch["input_ids"].shape == (2, 21)
    assert batch["input_ids"][0].tolist() == cell(0, 50)["input_ids"][:21].tolist()


def test_cell_types_come_from_the_first_column_whose_label_is_known():
    collator = make(
        mask_fraction=0.0,
        cell_types={"CL:0000236": 0, "T cell": 1, "CL:0000540": -100},
        cell_type_columns=["cell_type_ontology_term_id", "cell_type"],
    )
    cells = [
        cell(0, 5, cell_type_ontology_term_id="CL:0000236", cell_type="T cell"),
        cell(1, 5, cell_type_ontology_term_id=None, cell_type="T cell"),
        cell(2, 5, cell_type_ontology_term_id=float("nan"), cell_type=None),
        cell(3, 5, cell_type_ontology_term_id="unknown", cell_type="T cell"),
        cell(4, 5, cell_type_ontology_term_id="CL:0000540", cell_type="T cell"),
        cell(5, 5, cell_type_ontology_term_id="unknown", cell_type="weather"),
        {"epoch": 0, "cell": -1, "input_ids": np.empty(0)},
    ]
    assert collator(cells)["cell_type_ids"].tolist() == [0, 1, -100, 1, -100, -100, -100]


def test_no_cells():
    with pytest.raises(ValueError, match="no cells to make a batch of"):
        make()([])
