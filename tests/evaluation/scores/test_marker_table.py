import pytest

from cellglot.evaluation.scores.marker_table import marker_tokens, markers_of, read_marker_table
from cellglot.tokenization import CellOntology


TABLES = {
    "several genes in a field": ("t.tsv", "cellType\tgeneMarker\nB cell\tCD19, MS4A1\nNK cell\tGNLY|NKG7\n"),
    "a gene a row": (
        "t.csv",
        "species,cell_type,symbol\nh,B cell,CD19\nh,B cell,MS4A1\nh,NK cell,GNLY\nh,NK cell,NKG7\n",
    ),
    "gene sets": ("t.gmt", "B cell\thttp://x\tCD19\tMS4A1\nNK cell\t\tGNLY\tNKG7\t\n"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_of_every_form(case, tmp_path):
    name, content = TABLES[case]
    (tmp_path / name).write_text(content)
    assert read_marker_table(tmp_path / name) == {"B cell": ["CD19", "MS4A1"], "NK cell": ["GNLY", "NKG7"]}


def test_columns_can_be_named_and_must_exist(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("what\twhich\nB cell\tCD19\n")
    assert read_marker_table(path, "what", "which") == {"B cell": ["CD19"]}
    with pytest.raises(ValueError, match="no column of cell types found among what, which: pass cell_type_column"):
        read_marker_table(path)
    with pytest.raises(ValueError, match="no column 'gene'; it has what, which"):
        read_marker_table(path, "what", "gene")
    path.write_text("celltype\tgene\nB cell\t\n")
    with pytest.raises(ValueError, match="contains no marker genes"):
        read_marker_table(path)


def test_labels_find_their_markers_by_name_ontology_and_what_is_given():
    table = {"b CELL": ["CD19"], "Natural killer cell": ["GNLY"], "NK": ["NKG7"], "Monocyte, classical": ["LYZ"]}
    found = markers_of(["B cell", "CD56+ NK", "CD34+"], table, CellOntology.blood())
    assert found.genes == {"B cell": ["CD19"], "CD56+ NK": ["GNLY", "NKG7"]}
    assert found.found_as["CD56+ NK"] == ["Natural killer cell", "NK"] and found.without == ["CD34+"]
    assert found.found_as["B cell"] == ["b CELL"]
    given = markers_of(["CD14+"], table, types={"CD14+": "Monocyte, classical"})
    assert given.genes == {"CD14+": ["LYZ"]}


def test_labels_without_any_markers_are_an_error():
    with pytest.raises(ValueError, match="no cell type for any label: labels are 'a'; the table has 'B cell'"):
        markers_of(["a"], {"B cell": ["CD19"]}, CellOntology.blood())
    with pytest.raises(ValueError, match="has no cell type 'C cell'; it has 'B cell'"):
        markers_of(["a"], {"B cell": ["CD19"]}, types={"a": "C cell"})


def test_genes_become_tokens(vocabulary):
    markers = markers_of(["B cell"], {"B cell": ["CD79A", "MS4A1", "no gene"]})
    tokens = marker_tokens(markers, vocabulary)["B cell"]
    assert tokens == set(vocabulary.resolve(["CD79A", "MS4A1"]).token_ids.tolist())


@pytest.mark.reference
def test_published_tables_are_read(reference_data):
    cells = read_marker_table(reference_data / "markers" / "cellmarkers.tsv")
    assert len(cells) > 500 and {"CD19", "MS4A1"} <= set(cells["B cell"])
    assert "BANF1" in read_marker_table(reference_data / "markers" / "reactome.gmt")["REACTOME_2_LTR_CIRCLE_FORMATION"]
