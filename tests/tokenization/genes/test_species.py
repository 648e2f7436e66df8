"""Mouse cells: read as human, or refused."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cellglot
from cellglot.evaluation.labelled_cells import open_labelled_cells
from cellglot.tokenization import GeneVocabulary, RankValueTokenizer, read_cells, tokenize_corpus
from cellglot.tokenization.genes.species import is_mouse
from cellglot.tokenization.genes.tables import human_genes, mouse_genes
from cellglot.tokenization.reading.errors import CellFileError
from cellglot.tokenization.tokenization_gene_expression import GeneCoverageError


CD3D, TP53 = "ENSG00000167286", "ENSG00000141510"
SYMBOLS = ["Cd3d", "Trp53", "Cd3e", "Cd4", "Ptprc", "Cd79a", "Gm0", "H2-K1"]


def cells(names, **columns):
    counts = np.arange(1, 1 + 6 * len(names), dtype=np.float32).reshape(6, -1)
    return ad.AnnData(counts, var=pd.DataFrame(columns, index=list(names)))


@pytest.fixture(scope="module")
def mouse_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("mouse") / "mouse.h5ad"
    cells(SYMBOLS).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def vocabulary():
    genes = human_genes().coding_ids()[:2000] + [CD3D, TP53]
    return GeneVocabulary.from_statistics(sorted(set(genes)), medians=np.ones(len(set(genes))))


def test_mouse_cells_have_human_genes_and_keep_their_own_table(mouse_file):
    with read_cells(mouse_file, species="mouse") as opened:
        assert list(opened.counts.index[:2]) == [CD3D, TP53]
        assert opened.counts.index[7] == "mouse:H2-K1"
        assert list(opened.var.index) == SYMBOLS
        assert "mouse genes read as human: 6 of 8 (75%)" in opened.summary()


def test_cells_to_evaluate_have_human_genes(mouse_file):
    labelled = open_labelled_cells(mouse_file, species="mouse")
    assert list(labelled.subset([4, 1]).var_names[:2]) == [CD3D, TP53]
    labelled.cells.close()
    with pytest.raises(ValueError, match="no gene is of mouse"):
        open_labelled_cells(cells(["CD3D", "TP53"]), species="mouse")


def test_ids_and_versions_are_read_too():
    by_human = {human: mouse for mouse, human in mouse_genes().by_id.items()}
    opened = read_cells(cells([f"{by_human[CD3D]}.7", "x"], gene_symbol=["", "Trp53"]), species="mouse")
    assert list(opened.counts.index) == [CD3D, TP53]
    assert not opened.counts.columns


def test_the_report_has_the_share_of_counts(vocabulary):
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary, min_coverage=0.1)
    with read_cells(cells(SYMBOLS), species="mouse") as opened:
        tokenizer(opened.counts)
    report = tokenizer.last_report
    assert report.matched >= 2 and 0 < report.coverage < 1
    assert "mouse genes read as human" in str(report)


@pytest.mark.parametrize("names", [["Cd3d", "Trp53"] * 8, [f"ENSMUSG{i:011d}" for i in range(16)]])
def test_a_human_vocabulary_refuses_mouse_cells(vocabulary, names):
    names = list(dict.fromkeys(names)) if names[0].startswith("ENS") else [f"{n}{i}" for i, n in enumerate(names)]
    with pytest.raises(GeneCoverageError, match="--species mouse"):
        RankValueTokenizer.from_vocabulary(vocabulary)(cells(names))


def test_a_new_vocabulary_refuses_mouse_files(mouse_file, tmp_path):
    with pytest.raises(CellFileError, match=r"mouse\.h5ad: .*--species mouse"):
        tokenize_corpus([mouse_file], tmp_path / "no", processes=1, progress=False)
    human = cellglot.tokenize(mouse_file, tmp_path / "yes", species="mouse", processes=1)
    assert {CD3D, TP53} <= set(human.tokenizer().vocabulary.genes)
    other = cellglot.tokenize(mouse_file, tmp_path / "other", species="other", processes=1)
    assert sorted(other.tokenizer().vocabulary.genes) == sorted(SYMBOLS)


@pytest.mark.parametrize(
    ("names", "mouse"),
    [
        (SYMBOLS, True),
        (["CD3D", "TP53", "CD3E"], False),
        (["Gene1", "Gene2", "Marker"], False),
        (["ENSMUSG00000032094", "ENSMUSG00000053044"], True),
        ([CD3D, TP53], False),
    ],
)
def test_mouse_is_told_from_others(names, mouse):
    assert is_mouse(names, None) is mouse


def test_what_is_not_mouse_is_not_read_as_mouse():
    with pytest.raises(ValueError, match="no gene is of mouse"):
        read_cells(cells(["CD3D", "TP53"]), species="mouse")
    with pytest.raises(ValueError, match="human, mouse, other"):
        read_cells(cells(["CD3D"]), species="rat")
