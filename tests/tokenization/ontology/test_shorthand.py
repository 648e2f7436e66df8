"""Labels as people write them."""

import pytest

from cellglot.tokenization import CellOntology, CellTerm
from cellglot.tokenization.ontology.shorthand import read_shorthand, shorthand_key


MEANT = {
    "CL:0001054": ["CD14+ Mono", "CD14 Mono", "CD14_Mono", "Mono CD14", "CD14+ Monocytes", "CD14-positive mono"],
    "CL:0000875": ["FCGR3A+ Mono", "CD16 Mono", "CD14dimCD16+ Mono", "Non-classical monocytes", "ncMono"],
    "CL:0002393": ["CD14+CD16+ Mono", "Intermediate mono"],
    "CL:0000236": ["B", "B cell", "B_cells", "CD19+ B", "B Activated", "B intermediate kappa"],
    "CL:0000904": ["CD4 TCM", "CD4 TCM_2", "CD4+ Tcm", "CD4 central memory T cells", "T CD4 central-memory"],
    "CL:0000895": ["Naive CD4 T", "CD4 Naive", "CD4+ naïve T-cells", "CD4+/CD45RA+/CD25- Naive T"],
    "CL:0000913": ["CD8 TEM_4", "CD8+ effector memory T", "Tem CD8"],
    "CL:0000934": ["CD4 CTL", "CD4+ cytotoxic T cells"],
    "CL:0000815": ["Treg", "T regs", "Regulatory T cells", "Treg proliferating"],
    "CL:0000798": ["gdT", "gdT_3", "γδ T cells", "gamma-delta T", "Tgd"],
    "CL:0000940": ["MAIT", "MAIT cells"],
    "CL:0002489": ["dnT", "dnT_1"],
    "CL:0000938": ["NK_CD56bright", "CD56bright NK", "NK CD56 hi", "CD16- NK cells"],
    "CL:0000939": ["CD16+ NK cells", "NK_CD56dim"],
    "CL:0000623": ["NK", "NK_4", "NK Proliferating", "CD56+ NK", "Natural killer cells"],
    "CL:0001065": ["ILC"],
    "CL:0000990": ["cDC", "Conventional DC"],
    "CL:0002394": ["cDC1", "DC1", "CLEC9A+ DC"],
    "CL:0002399": ["cDC2", "cDC2_2", "DC2", "CD1C+ DC"],
    "CL:0000784": ["pDC", "Plasmacytoid DCs"],
    "CL:0017009": ["ASDC", "AXL+ DC"],
    "CL:0000764": ["Eryth", "Erythroid", "Ery"],
    "CL:0000233": ["Platelet", "Platelets", "PLT"],
    "CL:0008001": ["HSPC", "CD34+", "HSC/MPP"],
    "CL:0000980": ["Plasmablast"],
    "CL:0000786": ["Plasma", "Plasma cells"],
    "CL:0000542": ["T/NK cells", "NK/T"],
}


def an_ontology(*ids):
    return CellOntology([CellTerm("CL:0000000", "cell"), *(CellTerm(i, f"type {i}", ("CL:0000000",)) for i in ids)])


@pytest.fixture(scope="module")
def everything():
    return an_ontology(*read_shorthand().labels)


@pytest.mark.parametrize("cell_type", MEANT)
def test_usual_labels_mean_one_type(everything, cell_type):
    assert everything.resolve(MEANT[cell_type]).cell_types == [cell_type] * len(MEANT[cell_type])


@pytest.mark.parametrize("ontology", [CellOntology.blood, CellOntology.shipped])
def test_common_labels_have_a_type_in_small_and_whole_ontologies(ontology):
    report = ontology().resolve([label for labels in MEANT.values() for label in labels]).report
    assert (report.coverage, report.ambiguous, report.unresolved) == (1.0, {}, {})


@pytest.mark.parametrize(
    "label",
    ["EC", "PC", "DN", "CD16 monocyte or NK", "NK T", "Cycling cells", "Megakaryocytes/platelets", "K562", "doublets"],
)
def test_ambiguous_labels_say_why(everything, label):
    report = everything.resolve([label, "B"]).report
    assert (report.unresolved, list(report.reasons)) == ({label: 1}, [label])
    assert f"{label!r}: {report.reasons[label]}" in str(report)


@pytest.mark.parametrize("label", ["CD25- CD4 T", "not B", "B or T", "T B", "CD4-CD14+ Mono", "Mono CD14 or CD16"])
def test_labels_that_say_something_else_are_not_taken(everything, label):
    assert everything.resolve([label]).cell_types == [None]


def test_absent_markers_and_doubled_signs_stay():
    assert shorthand_key("CD14+CD16- mono") != shorthand_key("CD14+CD16+ mono")
    assert shorthand_key("CD14+CD16++ mono") != shorthand_key("CD14+CD16+ mono")
    assert shorthand_key("CD14+/CD16+ Monocytes") == shorthand_key("mono CD16_CD14")


def test_names_and_added_synonyms_go_before_shorthand():
    own = CellOntology(
        [CellTerm("CL:0000000", "cell"), CellTerm("CL:0000236", "B cell"), CellTerm("CL:0000084", "T")],
        added_synonyms={"B": "CL:0000000"},
    )
    match = own.resolve(["T", "B", "Bcells"])
    assert (match.cell_types, match.rules) == (
        ["CL:0000084", "CL:0000000", "CL:0000236"],
        ["name", "added_synonym", "shorthand"],
    )
    assert match.report.matched_by_rule["shorthand"] == 1


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("CD4 TCM", "CD4-positive, alpha-beta memory T cell"),
        ("CD8 TEM_2", "CD8-positive, alpha-beta T cell"),
        ("cDC1", "conventional dendritic cell"),
        ("NK_CD56bright", "natural killer cell"),
        ("B naive", "B cell"),
    ],
)
def test_a_small_ontology_gives_the_nearest_type_above(label, name):
    blood = CellOntology.blood()
    assert blood.name(blood.resolve([label]).cell_types[0]) == name


def test_the_shipped_ontology_knows_every_shorthand():
    shipped, table = CellOntology.shipped(), read_shorthand()
    assert len(shipped) > 2_700 and shipped.release == "2024-04-05"
    for cell_type, labels in table.labels.items():
        assert shipped.resolve(labels).found_types == [cell_type]
    assert shipped.definition("CL:0000236") == CellOntology.blood().definition("CL:0000236")
    assert shipped.definition("CL:0000182") == ""


def test_a_type_that_an_ontology_does_not_have_is_not_given():
    assert an_ontology("CL:0000084").resolve(["B", "T"]).cell_types == [None, "CL:0000084"]
