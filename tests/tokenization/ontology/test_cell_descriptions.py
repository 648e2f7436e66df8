import json

import numpy as np
import pandas as pd
import pytest

from cellglot import CellOntology
from cellglot.tokenization import CellOntologyError
from cellglot.tokenization.ontology.candidates import make_candidates, read_candidates, split_candidates
from cellglot.tokenization.ontology.descriptions import (
    ANNOTATION_TEMPLATE,
    ASPECTS,
    describe_cell_types,
    describe_cells,
    fill_template,
)


B, T, CD4, CD8 = "CL:0000236", "CL:0000084", "CL:0000624", "CL:0000625"


@pytest.fixture(scope="module")
def ontology():
    return CellOntology.blood()


def test_the_released_template(ontology):
    texts = describe_cell_types([B], ontology)
    assert texts == [[f"cell type: B cell. {ontology.definition(B)}; "]]
    assert fill_template(ANNOTATION_TEMPLATE, {"name": "B cell", "definition": ""}) == "cell type: B cell. "


def test_templates_can_be_changed(ontology):
    template = ["{name} ({id}), a kind of {parents}; also {synonyms}.", "{{{name}}}", "{{{name}}}"]
    synonyms = ", ".join(ontology.synonyms(B, "EXACT"))
    assert describe_cell_types([B], ontology, template)[0] == [
        f"B cell (CL:0000236), a kind of lymphocyte of B lineage; also {synonyms}.",
        "{B cell}",
    ]
    assert describe_cell_types(["CL:0000000"], ontology, ["{parents}", "{name}"]) == [["cell"]]
    assert fill_template("{name}, {definition}: {id}!", {"name": "x", "definition": None, "id": 3}) == "x, 3!"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a cell", "has no field such as {name}"),
        ("{nom}", "{nom} is not a field; use {aspect}, {name}"),
        ("{name!r}", "is not a field"),
        ("{name", "write a literal brace twice"),
        ([], "no template is given"),
        ("{parents}", "all texts of CL:0000000 cell are empty"),
    ],
)
def test_wrong_templates(ontology, template, message):
    with pytest.raises(ValueError, match=message):
        describe_cell_types(["CL:0000000"], ontology, template)


@pytest.fixture
def metadata():
    return pd.DataFrame(
        {
            "cell_type": pd.Categorical(["b cell", "doublet", "b cell", None]),
            "cell_type_ontology_term_id": [B, "unknown", B, None],
            "disease": ["normal", "normal", "normal", np.nan],
            "Tissue": ["blood", "na", "blood", "Unknown"],
            "tissue_general": ["blood system"] * 3 + [""],
            "sex": ["female", "unknown", "female", None],
            "assay": ["10x 3' v3"] * 3 + [None],
            "suspension_type": ["cell", "cell", "cell", None],
            "age": [3, 4, 5, 6],
        }
    )


def test_cells_are_described_by_what_their_metadata_has(ontology, metadata):
    found = describe_cells(metadata, ontology)
    assert found.texts == [
        f"cell type: B cell. {ontology.definition(B)}; disease: normal. tissue: blood. organ: blood system. "
        "sex: female. assay: 10x 3' v3, cell. ",
        "cell type: doublet. disease: normal. organ: blood system. assay: 10x 3' v3, cell. ",
    ]
    assert found.text_ids.tolist() == [0, 1, 0, -100] and found.without_text == 1
    assert found.of_cells() == [found.texts[0], found.texts[1], found.texts[0], None]
    assert found.aspects["cell type"] == 3 and found.defined["cell type"] == 2 and found.aspects["tissue"] == 2
    assert "aspects that no cell has: development stage, ethnicity" in str(found)
    assert "1 cells have no text" in str(found)
    assert len(ASPECTS) == 8


def test_aspects_and_templates_of_cells(ontology, metadata):
    chosen = describe_cells(metadata, aspects=("sex", "cell type"), template="{name}/")
    assert chosen.texts == ["female/b cell/", "doublet/"]
    chosen = describe_cells(metadata, ontology, aspects=("cell type",), template={"cell type": "{id}|{name}"})
    assert chosen.texts == [f"{B}|B cell", "doublet"]
    other = describe_cells(metadata, aspects=("sex",), ontologies={"sex": ontology})
    assert other.texts == ["sex: female. "]
    assert describe_cells(metadata.iloc[:0]).texts == []
    assert describe_cells(pd.DataFrame({"organ": ["liver"]})).texts == ["tissue: liver. "]
    with pytest.raises(ValueError, match="aspect 'age': there are cell type, development stage"):
        describe_cells(metadata, aspects=("age",))
    with pytest.raises(ValueError, match="aspect 'sex' has no template"):
        describe_cells(metadata, aspects=("sex",), template={"cell type": "{name}"})


def test_the_aspects_of_real_cells(blood, ontology):
    found = describe_cells(blood.obs, ontology.with_synonyms({"Dendritic": "CL:0000451"}))
    assert found.text_ids.shape == (700,) and len(found.texts) == blood.obs["cell_type"].nunique()
    assert found.defined["cell type"] == 700


def test_candidates_are_names_ids_or_synonyms(ontology):
    made = make_candidates(["b cell", "CL_0000084", "CD14+ Monocyte", "a doublet"], ontology)
    assert made.names == ["B cell", "T cell", "CD14-positive monocyte", "a doublet"]
    assert made.cell_types == [B, T, "CL:0001054", None]
    assert made.texts[0] == describe_cell_types([B], ontology)[0] and made.texts[3] == ["a doublet"]
    assert made.report.own_text == ["a doublet"]
    assert "1 candidates are not in the ontology and are their own text: a doublet" in str(made.report)
    assert "by synonyms that are added or not exact: 'CD14+ Monocyte' -> CL:0001054" in str(made.report)
    assert make_candidates(["B cell"]).texts == [["B cell"]]


def test_duplicates_are_counted_and_asked_once(ontology):
    made = make_candidates(["B cell", "T cell", "CL:0000236", "B cell", "odd", " Odd "], ontology)
    assert made.names == ["B cell", "T cell", "odd"]
    assert made.report.duplicates == [("CL:0000236", "B cell"), ("B cell", "B cell"), (" Odd ", "odd")]
    assert "3 candidates (6 given)" in str(made.report)
    assert "3 duplicates are used once: 'CL:0000236' is 'B cell', B cell" in str(made.report)


def test_prompts_per_class(ontology):
    made = make_candidates({"B cell": ["makes antibody", "has CD19", "has CD19"], "odd": "x", B: "third"}, ontology)
    assert made.names == ["B cell", "odd"]
    assert made.texts == [["makes antibody", "has CD19", "third"], ["x"]]
    several = make_candidates(["B cell"], ontology, template=["{name}", "a {name}"])
    assert several.texts == [["B cell", "a B cell"]]


def test_a_branch(ontology):
    made = make_candidates(ontology=ontology, branch="T cells")
    assert set(made.cell_types) == ontology.descendants(T) and len(made) == made.report.from_branch
    leaves = make_candidates(ontology=ontology, branch=T, leaves_only=True)
    assert CD4 not in leaves.cell_types and "CL:0000900" in leaves.cell_types
    assert not any(ontology.descendants(t) for t in leaves.cell_types)
    seen = make_candidates(ontology=ontology, branch="T cell", among=[CD4, "mature T cell", "B cell", "nothing"])
    assert seen.cell_types == [CD4, "CL:0002419"]
    seen = make_candidates(ontology=ontology, branch="T cell", leaves_only=True, among=[CD4, "mature T cell"])
    assert seen.cell_types == [CD4]
    more = make_candidates(["B cell", CD4], ontology, branch="T cell")
    assert more.cell_types[:2] == [B, CD4] and more.cell_types.count(CD4) == 1


def test_classes_of_labels(ontology):
    made = make_candidates(["B cell", "odd", CD4], ontology)
    assert made.class_of(["B cells", "ODD", CD4, "T cell", None, ""]) == {"B cells": 0, "ODD": 1, CD4: 2}


def test_what_cannot_be_candidates(ontology):
    wrong = {
        "no candidates": {},
        "candidate 2 of 2 is empty": {"candidates": ["B cell", " "]},
        "candidate 'B cell' has an empty text": {"candidates": {"B cell": ["x", ""]}},
        "'B cell' has an empty text": {"candidates": {"B cell": []}},
        "has no descendants": {"branch": "CL:0000900"},
        "among the labels given": {"branch": "T cell", "among": ["B cell"]},
        "leaves_only and among need a branch": {"candidates": ["B cell"], "leaves_only": True},
    }
    for message, arguments in wrong.items():
        with pytest.raises(ValueError, match=message):
            make_candidates(**({"ontology": ontology} | arguments))
    with pytest.raises(CellOntologyError, match="'leukozyte' is not a known cell type.*leukocyte"):
        make_candidates(ontology=ontology, branch="leukozyte")
    with pytest.raises(CellOntologyError, match="'a doublet' is not a known cell type"):
        make_candidates(["B cell", "a doublet"], ontology, branch="leukocyte")
    with pytest.raises(ValueError, match="needs an ontology"):
        make_candidates(branch="leukocyte")
    with pytest.raises(TypeError, match="pass a list of names"):
        make_candidates("B cell", ontology)


def test_commas_inside_names_do_not_split(ontology):
    text = "B cell, CD4-positive, alpha-beta T cell,odd, one,T cell"
    assert split_candidates(text, ontology) == ["B cell", "CD4-positive, alpha-beta T cell", "odd", "one", "T cell"]
    assert split_candidates("a,,b") == ["a", "", "b"]
    assert split_candidates("plasma, B,,T cell", ontology) == ["plasma", "B", "", "T cell"]


def test_candidates_from_files(tmp_path):
    (tmp_path / "c.txt").write_text("B cell\n\nCD4-positive, alpha-beta T cell\n")
    assert read_candidates(tmp_path / "c.txt") == ["B cell", "CD4-positive, alpha-beta T cell"]
    (tmp_path / "c.json").write_text(json.dumps({"B cell": ["x", "y"], "odd": "z"}))
    assert read_candidates(tmp_path / "c.json") == {"B cell": ["x", "y"], "odd": "z"}
    for content, message in (
        ("{", "is not JSON"),
        ("3", "must contain a list"),
        ('{"a": 3}', "'a' has 3, not a text"),
    ):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_candidates(tmp_path / "c.json")


@pytest.mark.long
@pytest.mark.reference
def test_the_whole_ontology(reference_data):
    ontology = CellOntology.from_file(reference_data / "cell_ontology" / "cl.owl.gz")
    made = make_candidates(ontology=ontology, branch="leukocyte", leaves_only=True)
    assert len(made) > 200 and all(t[0].startswith("cell type: ") and len(t) == 1 for t in made.texts)
    assert len({t[0] for t in made.texts}) == len(made)
