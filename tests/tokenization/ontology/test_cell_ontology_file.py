import gzip
import logging
import re
import urllib.request

import pytest

from cellglot.tokenization import CellOntology, CellOntologyError
from cellglot.tokenization.ontology import parsing as cell_ontology_file
from cellglot.tokenization.ontology import releases as cell_ontology_release


OBO = """format-version: 1.2
data-version: cl/releases/2024-04-05/cl.owl
ontology: cl
import: http://purl.obolibrary.org/obo/cl/never-fetched.owl

[Term]
id: CL:0000000
name: cell
def: "The unit of life." [REF:1]

[Term]
id: CL:0000001
name: naïve cell
synonym: "young cell" EXACT []
synonym: "γδ cell" BROAD []
alt_id: CL:0000080
is_a: CL:0000000 ! cell
is_a: GO:0005737 ! cytoplasm, in a file of its own

[Term]
id: CL:0000002
name: old cell
is_a: CL:0000000 ! cell

[Term]
id: CL:0000090
name: obsolete cell
is_obsolete: true
replaced_by: CLO:0000019
consider: CL:0000002

[Term]
id: MYLAB:0000001
name: our cell
is_a: CL:0000001

[Typedef]
id: part_of
name: part of
"""

OWL = """<?xml version="1.0"?>
<rdf:RDF xml:base="http://purl.obolibrary.org/obo/cl.owl" xmlns:obo="http://purl.obolibrary.org/obo/"
 xmlns:owl="http://www.w3.org/2002/07/owl#" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:rdfs="http://www.w3.org/2000/01/rdf-schema#" xmlns:oboInOwl="http://www.geneontology.org/formats/oboInOwl#">
<owl:Ontology rdf:about="http://purl.obolibrary.org/obo/cl.owl">
 <owl:versionIRI rdf:resource="http://purl.obolibrary.org/obo/cl/releases/2024-04-05/cl.owl"/>
 <owl:versionInfo>2024-04-05</owl:versionInfo>
</owl:Ontology>
<owl:Class rdf:about="http://purl.obolibrary.org/obo/CL_0000000"><rdfs:label>cell</rdfs:label>
 <obo:IAO_0000115>The unit of life.</obo:IAO_0000115>
</owl:Class>
<owl:Class rdf:about="http://purl.obolibrary.org/obo/CL_0000001"><rdfs:label>naïve cell</rdfs:label>
 <rdfs:subClassOf rdf:resource="http://purl.obolibrary.org/obo/CL_0000000"/>
 <rdfs:subClassOf rdf:resource="http://purl.obolibrary.org/obo/GO_0005737"/>
 <oboInOwl:hasExactSynonym>young cell</oboInOwl:hasExactSynonym>
 <oboInOwl:hasBroadSynonym>γδ cell</oboInOwl:hasBroadSynonym>
 <oboInOwl:hasAlternativeId>CL:0000080</oboInOwl:hasAlternativeId>
</owl:Class>
<owl:Class rdf:about="http://purl.obolibrary.org/obo/CL_0000002"><rdfs:label>old cell</rdfs:label>
 <rdfs:subClassOf rdf:resource="http://purl.obolibrary.org/obo/CL_0000000"/>
</owl:Class>
<owl:Class rdf:about="http://purl.obolibrary.org/obo/CL_0000090"><rdfs:label>obsolete cell</rdfs:label>
 <owl:deprecated rdf:datatype="http://www.w3.org/2001/XMLSchema#boolean">true</owl:deprecated>
 <obo:IAO_0100001 rdf:resource="http://purl.obolibrary.org/obo/CLO_0000019"/>
 <oboInOwl:consider>CL:0000002</oboInOwl:consider>
</owl:Class>
</rdf:RDF>
"""


@pytest.fixture
def read(tmp_path):
    """Write a file and read it, with a cache of its own."""

    def make(content: str | bytes, name: str = "cl.obo", **options) -> CellOntology:
        content = content.encode("utf-8") if isinstance(content, str) else content
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return CellOntology.from_file(tmp_path / name, cache_folder=tmp_path / "cache", **options)

    return make


def terms(ontology):
    return list(ontology._terms.values())


@pytest.mark.parametrize("name", ["cl.obo", "cl.obo.gz", "cl.owl", "cl.owl.gz", "no_suffix"])
def test_obo_and_owl_say_the_same(read, name):
    ontology = read(OWL if "owl" in name else OBO, name)
    assert ontology.cell_types == ["CL:0000000", "CL:0000001", "CL:0000002"]
    assert ontology.release == "2024-04-05"
    assert ontology.left_out == {"is_a another ontology": 1, "is_a an obsolete class": 0}
    term = ontology.term("CL:0000001")
    assert (term.name, term.parents) == ("naïve cell", ("CL:0000000",))
    assert term.synonyms == (("young cell", "EXACT"), ("γδ cell", "BROAD"))
    assert term.alternate_ids == ("CL:0000080",)
    assert ontology.definition("CL:0000000") == "The unit of life."
    old = ontology._terms["CL:0000090"]
    assert (old.obsolete, old.replaced_by, old.consider) == (True, ("CLO:0000019",), ("CL:0000002",))


def test_cell_types_of_ones_own_have_a_prefix_of_ones_own(read):
    assert "MYLAB:0000001" not in read(OBO)
    ontology = read(OBO, prefixes=("CL", "MYLAB"))
    assert ontology.ancestors("mylab_0000001") == {"CL:0000000", "CL:0000001"}
    assert ontology.resolve(["our cell"]).cell_types == ["MYLAB:0000001"]


def test_edges_to_obsolete_classes_are_left_out_counted_and_said(read, caplog):
    with caplog.at_level(logging.WARNING):
        ontology = read(OBO.replace("is_a: GO:0005737", "is_a: CL:0000090"))
    assert ontology.left_out["is_a an obsolete class"] == 1
    assert "left out" in caplog.text


# -------------------------------------------------------------------- cache


@pytest.fixture
def parses(monkeypatch):
    """Count how often a file is parsed."""
    seen = []
    parse = cell_ontology_file._parse
    monkeypatch.setattr(cell_ontology_file, "_parse", lambda *a: seen.append(a) or parse(*a))
    return seen


def test_what_was_read_is_kept_by_checksum(read, parses, tmp_path):
    first, second = read(OBO), read(OBO, "same content, other name.obo")
    assert len(parses) == 1
    assert terms(first) == terms(second)
    assert first.metadata | {"source": ""} == second.metadata | {"source": ""}
    read(OBO.replace("old cell", "elderly cell"))
    read(OBO, prefixes=("CL", "MYLAB"))
    assert len(parses) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize(
    "damage", [b"", b"no gzip", gzip.compress(b"no json", mtime=0), gzip.compress(b'{"terms": [{}]}', mtime=0), None]
)
def test_a_damaged_cache_is_made_anew(read, parses, tmp_path, damage, caplog):
    read(OBO)
    (kept,) = (tmp_path / "cache").iterdir()
    content = kept.read_bytes()
    kept.write_bytes(content[:-20] if damage is None else damage)
    assert len(read(OBO)) == 3
    assert len(parses) == 2
    assert "damaged" in caplog.text
    assert kept.read_bytes() == content


def test_a_cache_that_cannot_be_written_costs_time_only(read, parses, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(read(OBO)) == len(read(OBO)) == 3
    assert len(parses) == 2
    assert "cannot be written to" in caplog.text


def test_the_cache_lies_in_the_assets_of_huggingface_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(cell_ontology_file, "cached_assets_path", lambda **names: tmp_path.joinpath(*names.values()))
    (tmp_path / "cl.obo").write_text(OBO, encoding="utf-8")
    CellOntology.from_file(tmp_path / "cl.obo")
    assert len(list((tmp_path / "cellglot" / "cell_ontology").iterdir())) == 1


# -------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("is_a: GO:0005737", "is_a: CL:0000077", r"CL:0000001 naïve cell is_a CL:0000077"),
        (
            'def: "The unit of life." [REF:1]',
            "is_a: CL:0000001",
            r"cycle: CL:0000000 cell is_a CL:0000001 naïve cell is_a CL:0000000 cell",
        ),
        (
            'def: "The unit of life." [REF:1]',
            "is_a: CL:0000000",
            r"cycle: CL:0000000 cell is_a CL:0000000 cell",
        ),
        ("CL:", "XY:", r"of \d classes, but no id starts with CL:: pass the prefixes"),
        ("id: CL:0000002", "id: CL:0000001", r"defines classes more than once: CL:0000001; keep one \[Term\] of each"),
        ('synonym: "young cell" EXACT []', 'synonym: "young cell" EX', "cannot be read as an ontology"),
    ],
)
def test_bad_obo(read, old, new, message):
    for name in ("cl.obo", "cl.obo.gz"):
        with pytest.raises(CellOntologyError, match=message) as raised:
            read(OBO.replace(old, new), name)
        assert name in str(raised.value)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("Dear colleague,\n\nplease find the cells attached.\n", "letter.txt", "neither OBO nor OWL"),
        ("", "empty.obo", "neither OBO nor OWL"),
        ("", "empty.obo.gz", "neither OBO nor OWL"),
        ('<?xml version="1.0"?><html></html>', "page.owl", "cannot be read as an ontology"),
        (OWL[: len(OWL) // 2], "half.owl", "cannot be read as an ontology"),
        (OBO.encode("utf-16"), "wide.obo", "neither OBO nor OWL"),
        (OBO.encode("latin-1", "replace"), "latin.obo", "cannot be read as an ontology"),
    ],
)
def test_files_that_are_no_ontology(read, content, name, message):
    with pytest.raises(CellOntologyError, match=message) as raised:
        read(content, name)
    assert name in str(raised.value)


@pytest.mark.parametrize("text", [OBO, OWL])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_archive(tmp_path, text, share):
    whole = gzip.compress(text.encode("utf-8"))
    (tmp_path / "cl.gz").write_bytes(whole[: max(int(len(whole) * share), 3)])
    with pytest.raises(CellOntologyError, match=r"cl\.gz is cut short or damaged"):
        CellOntology.from_file(tmp_path / "cl.gz", cache_folder=tmp_path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        CellOntology.from_file(tmp_path / "missing.obo")
    with pytest.raises(CellOntologyError, match="is a folder"):
        CellOntology.from_file(tmp_path)


# -------------------------------------------------------------------- releases


@pytest.fixture
def served(monkeypatch, tmp_path):
    """Serve releases from a folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setattr(cell_ontology_release, "RELEASE_URL", folder.as_uri() + "/{release}.obo")
    monkeypatch.setattr(cell_ontology_release, "is_offline_mode", lambda: False)
    return folder


def test_a_release_is_fetched_once(served, tmp_path):
    (served / "2024-04-05.obo").write_text(OBO, encoding="utf-8")
    ontology = CellOntology.from_release("2024-04-05", cache_folder=tmp_path / "cache")
    assert (len(ontology), ontology.source) == (3, "cl-2024-04-05.obo")
    (served / "2024-04-05.obo").unlink()
    assert len(CellOntology.from_release("2024-04-05", cache_folder=tmp_path / "cache")) == 3
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".gz", ".obo"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be downloaded from file.*pass it to CellOntology\.from_file, or use CellOntology\.shipped"),
        (OBO.replace("2024-04-05", "2023-01-01"), "contains release 2023-01-01, not 2024-04-05"),
        ("<html>log in first</html>", "neither OBO nor OWL"),
    ],
)
def test_a_release_that_cannot_be_had(served, tmp_path, content, message):
    if content is not None:
        (served / "2024-04-05.obo").write_text(content, encoding="utf-8")
    with pytest.raises(CellOntologyError, match=message):
        CellOntology.from_release("2024-04-05", cache_folder=tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".gz"]


def test_a_release_of_which_a_part_comes(served, tmp_path, monkeypatch):
    (served / "2024-04-05.obo").write_text(OBO, encoding="utf-8")
    open_url = urllib.request.urlopen

    def claim_more(*arguments, **options):
        response = open_url(*arguments, **options)
        response.headers.replace_header("Content-length", "999999")
        return response

    monkeypatch.setattr(urllib.request, "urlopen", claim_more)
    with pytest.raises(CellOntologyError, match="of 999,999 bytes"):
        CellOntology.from_release("2024-04-05", cache_folder=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_network_by_choice(served, tmp_path, monkeypatch):
    monkeypatch.setattr(cell_ontology_release, "is_offline_mode", lambda: True)
    with pytest.raises(CellOntologyError, match="HF_HUB_OFFLINE"):
        CellOntology.from_release("2024-04-05", cache_folder=tmp_path / "cache")


@pytest.mark.parametrize("release", ["latest", "2024", "../../x", ""])
def test_a_release_is_a_date(release, tmp_path):
    with pytest.raises(CellOntologyError, match=re.escape(f"{release!r} is not a release")):
        CellOntology.from_release(release, cache_folder=tmp_path)
