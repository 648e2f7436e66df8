"""Names of genes as files write them: cleaned where that is certain, refused where they are numbers, else said."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

from cellglot.cli import app
from cellglot.tokenization import GeneVocabulary, RankValueTokenizer
from cellglot.tokenization.corpus.corpus import CorpusError
from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.tokenization.gene_names import NameCleaner, unique_spellings
from cellglot.tokenization.genes.gene_catalogue import gene_catalogue
from cellglot.tokenization.reading.matrices import CellFileError
from cellglot.tokenization.tokenization_gene_expression import GeneCoverageError


ID = "ENSG00000141510"
IDS = [f"ENSG{i:011d}" for i in range(1, 31)]
SYMBOLS = ["HLQ-A", "NQX2-1", "C1orf912", "AC-1.2", *(f"SYM{i}" for i in range(5, 31))]


@pytest.fixture(scope="module")
def vocabulary():
    return GeneVocabulary.from_statistics(IDS, medians=np.ones(30), symbols=dict(zip(IDS, SYMBOLS, strict=True)))


def cells(names, seed=0, **columns):
    counts = np.random.default_rng(seed).poisson(2.0, (16, len(names))) + 1.0
    return ad.AnnData(sp.csr_matrix(counts), var=pd.DataFrame(columns, index=list(names)))


def write(folder, **files):
    paths = []
    for name, content in files.items():
        paths.append(folder / f"{name}.h5ad")
        content.write_h5ad(paths[-1])
    return paths


def tokenize(paths, output, **options):
    options = {"validation_fraction": 0.0} | options
    return tokenize_corpus(paths, output, tokenizer="rank-value", processes=1, progress=False, **options)


@pytest.mark.parametrize(
    "pattern",
    [
        "{s}_{i}", "{i}_{s}", "{s}|{i}", "{i}|{s}", "{s} ({i})", "{i}.7_{s}", "{s}-{i}.12", "GRCh38_{i}", "hg19___{s}",
        "GRCh38---{s}", "hg38:{s}", "'{s}'", "{s}|7157", "GRCh38-2020-A_{s}",
    ],
)  # fmt: skip
def test_longer_names_are_taken_for_the_gene_in_them(pattern, vocabulary):
    names = [pattern.format(s=s, i=i) for s, i in zip(SYMBOLS, IDS, strict=True)]
    match = vocabulary.resolve(names)
    assert match.token_ids.tolist() == vocabulary.gene_token_ids.tolist()
    report = match.report()
    assert report.matched_by_rule["cleaned_name"] == 30
    assert report.cleaned_names[0] == (names[0], IDS[0]) and names[0] in report.summary()


@pytest.mark.parametrize(
    ("name", "gene"),
    [
        ("HLQ.A", IDS[0]), ("NQX2.1", IDS[1]), ("C1ORF912", IDS[2]), ("AC.1.2", IDS[3]), ("ensg00000000005", IDS[4]),
        ("SYM5", IDS[4]), ("sym5", None), ("mm10_SYM5", None), (f"{IDS[4]}_PAR_Y", None), (f"{IDS[4]}-U", None),
        (f"{IDS[4]}:E002", None), (f"antisense to {IDS[4]}", None), (f"{IDS[4]}_{IDS[5]}", None), ("SYM5-1", None),
    ],
)  # fmt: skip
def test_names_are_cleaned_only_where_that_is_certain(name, gene, vocabulary):
    match = vocabulary.resolve([name])
    assert [vocabulary.tokens.get(int(t)) for t in match.token_ids] == [gene]


def test_numbers_that_made_names_unique_are_dropped_beside_the_name_itself(vocabulary):
    match = vocabulary.resolve(["SYM5", "SYM5-1", "SYM5-2", "SYM6", "SYM6.1", "SYM7-1", "SYM8", "SYM8-2"])
    known = [vocabulary.tokens.get(int(t)) for t in match.token_ids]
    assert known == [IDS[4], IDS[4], IDS[4], IDS[5], IDS[5], None, IDS[7], None]
    assert match.report().summed == 3
    proteins = NameCleaner(["SYM5", "SYM6", "SYM7", "OTHER", "SYM5-1", "IgG1", "SYM6-1", "SYM7-1", "CD3"])
    assert not proteins.made_unique  # at the end of a file they may be proteins named as their genes
    assert not NameCleaner(["SNORD115", "SNORD115-1", "X"]).made_unique


def test_a_dotted_name_of_two_genes_is_ambiguous():
    both = GeneVocabulary.from_statistics(["A-B", "A:B"])
    assert both.resolve(["A.B"]).report().ambiguous == 1
    assert unique_spellings(["A-B", "A:B", "A.B"]) == {}
    assert unique_spellings(["A-B", "A.B", "C.1"]) == {"A.B": "A-B"}


def test_names_that_are_found_as_they_are_written_stay(vocabulary):
    own = GeneVocabulary.from_statistics([f"SYM5_{IDS[4]}", "SYM5", "SYM5-1", "GRCh38_SYM5", "HLQ.A", "HLQ-A"])
    assert own.resolve(own.genes).token_ids.tolist() == list(range(6))


# -------------------------------------------------------------------- catalogues


def test_a_new_vocabulary_has_a_gene_once_whatever_its_spelling():
    catalogue = gene_catalogue(
        [
            ([f"ONE_{IDS[0]}", f"{IDS[1]}|TWO", "hg19_THREE", "HLA-DRA", "C2orf1"], {}),
            (["ONE", "TWO", "THREE", "HLA.DRA", "C2ORF1", "7", "ERCC-00002"], {}),
        ]
    )
    assert catalogue.genes == ["C2orf1", IDS[0], IDS[1], "HLA-DRA", "THREE"]
    assert (catalogue.symbols, catalogue.aliases) == ({IDS[0]: "ONE", IDS[1]: "TWO"}, {"HLA-DRA": ["HLA.DRA"]})
    assert catalogue.resolve(["ONE", "HLA.DRA", "hg19_THREE"]).known.all()


def test_genomes_of_two_species_stay_in_front_of_names():
    assert gene_catalogue([(["GRCh38_H19"], {}), (["mm10_H19"], {})]).genes == ["GRCh38_H19", "mm10_H19"]
    human = gene_catalogue([([IDS[0]], {"gene_name": ["GRCh38_H19"]}), (["GRCh38_H19", "mm10_H19"], {})])
    assert (human.genes, human.symbols) == ([IDS[0], "mm10_H19"], {IDS[0]: "H19"})


def test_a_column_of_names_serves_where_the_index_has_numbers():
    catalogue = gene_catalogue([(["0", "1"], {"gene_symbols": ["ONE", "TWO"]})])
    assert catalogue.genes == ["ONE", "TWO"]
    assert catalogue.resolve(["0", "1"], {"gene_symbols": ["TWO", "ONE"]}).token_ids.tolist() == [1, 0]


# -------------------------------------------------------------------- corpora


@pytest.mark.parametrize("names", [[str(i) for i in range(30)], [f"X{i}" for i in range(30)], [f"{i}.0" for i in IDS]])
def test_numbers_are_refused_and_passed_over(names, tmp_path):
    numbers = not names[0].startswith("ENSG")
    paths = write(tmp_path, good=cells(SYMBOLS), bad=cells(names, chromosome=["chr1"] * 30, label=SYMBOLS))
    if not numbers:  # ids with a version are no numbers
        assert len(tokenize(paths, tmp_path / "tokens").tokenizer().vocabulary.genes) == 60
        return
    with pytest.raises(CellFileError, match=r"bad\.h5ad: .*numbers \('.?0'.*--gene-column.*label \(e\.g\. 'HLQ-A'\)"):
        tokenize(paths, tmp_path / "tokens")
    corpus = tokenize(paths, tmp_path / "tokens", skip_broken=True)
    assert list(corpus.manifest["broken"]) == ["bad"] and "skipped bad" in corpus.summary()
    named = tokenize(paths[1:], tmp_path / "named", gene_column="label")
    assert sorted(named.tokenizer().vocabulary.genes) == sorted(SYMBOLS)


def test_the_report_says_what_became_of_names(tmp_path):
    var = {"gene_ids": IDS[:20] + [""] * 10, "feature_types": ["Gene Expression"] * 29 + ["Antibody Capture"]}
    paths = write(tmp_path, one=cells(SYMBOLS, **var), two=cells([f"hg38_{s}" for s in SYMBOLS[:25]]))
    corpus = tokenize(paths, tmp_path / "tokens")
    assert corpus.manifest["vocabulary"]["without_id"] == 9
    summary = corpus.summary()
    assert "29 genes, 9 of them without an Ensembl id ('SYM21', 'SYM22', 'SYM23', ...)" in summary
    assert "100.0%" not in summary and "warning" not in summary
    assert "two: 16 cells, counts in X, 25 genes, 25 names cleaned ('hg38_HLQ-A' for ENSG00000000001" in summary
    assert "left out 1 Antibody Capture" in summary


def test_a_column_of_ids_that_is_not_looked_at_is_named(tmp_path):
    paths = write(tmp_path, one=cells(SYMBOLS, accession_of=IDS, feature_types=["NA"] * 30))
    summary = tokenize(paths, tmp_path / "tokens").summary()
    assert f"the column 'accession_of' of var contains Ensembl ids (e.g. '{IDS[0]}')" in summary
    assert "30 of them without an Ensembl id" in summary and "feature_types has 'NA' (30)" in summary
    named = tokenize(paths, tmp_path / "named", gene_column="accession_of")
    assert named.manifest["vocabulary"] == {"genes": 30, "without_id": 0, "examples": [], "warnings": []}


def test_files_that_share_no_genes_are_warned_of(tmp_path):
    paths = write(
        tmp_path, one=cells(SYMBOLS), two=cells(SYMBOLS[::-1], seed=1), mouse=cells([f"Sym{i}" for i in range(30)])
    )
    corpus = tokenize(paths, tmp_path / "tokens")
    (warning,) = corpus.manifest["vocabulary"]["warnings"]
    assert warning.startswith("mouse shares 0 of its 30 genes ('Sym0', ") and f"warning: {warning}" in corpus.summary()


def test_a_file_held_out_that_shares_no_genes_is_named_and_passed_over(tmp_path):
    paths = write(tmp_path, one=cells(SYMBOLS), mouse=cells([f"Sym{i}" for i in range(30)]))
    with pytest.raises(CorpusError, match=r"one\.h5ad: the vocabulary covers no gene.*\n.*--skip-broken"):
        tokenize(paths, tmp_path / "tokens", validation_fraction=0.5, seed=1)
    corpus = tokenize(paths, tmp_path / "tokens", validation_fraction=0.5, seed=1, skip_broken=True)
    assert list(corpus.manifest["broken"]) == ["one"]


def test_a_file_without_genes_of_the_vocabulary_is_named_and_passed_over(vocabulary, tmp_path):
    others = [f"Gm{i}" for i in range(30)]
    paths = write(tmp_path, a=cells(SYMBOLS), odd=cells(others), odder=cells(others, gene=[f"{n}x" for n in others]))
    vocabulary.save(tmp_path / "vocabulary")
    with pytest.raises(GeneCoverageError) as error:
        tokenize(paths, tmp_path / "tokens", vocabulary=tmp_path / "vocabulary")
    message = str(error.value)
    assert "odd.h5ad: the vocabulary covers no gene" in message and "e.g. 'Gm0', 'Gm1'" in message
    assert "odder.h5ad" in message and "gene (e.g. 'Gm0x')" in message and "'HLQ-A'" in message
    result = CliRunner().invoke(
        app,
        ["tokenize", *map(str, paths), "-o", str(tmp_path / "t"), "--tokenizer", "rank-value", "--skip-broken"]
        + ["--vocabulary", str(tmp_path / "vocabulary")],
    )
    assert result.exit_code == 0, result.output
    assert "skipped odd:" in result.output and "skipped odder:" in result.output


def test_a_column_that_a_file_lacks_is_said_before_work_begins(tmp_path):
    paths = write(tmp_path, a=cells(SYMBOLS, name2=IDS), b=cells(SYMBOLS, place=["chr1"] * 30))
    with pytest.raises(CellFileError, match=r"b\.h5ad has no column 'name2' in var.*place \(e\.g\. 'chr1'\)"):
        tokenize(paths, tmp_path / "tokens", gene_column="name2")


def test_a_tokenizer_names_the_file_whose_genes_it_does_not_know(vocabulary, tmp_path):
    from cellglot.tokenization import read_cells

    (path,) = write(tmp_path, strange=cells([f"Gm{i}" for i in range(30)]))
    with read_cells(path) as opened, pytest.raises(GeneCoverageError, match=r"strange\.h5ad: .*e\.g\. 'Gm0'"):
        RankValueTokenizer.from_vocabulary(vocabulary)(opened)


def test_all_files_of_numbers_leave_nothing(tmp_path):
    paths = write(tmp_path, a=cells(list("0123456789")), b=cells(list("9876543210")))
    with pytest.raises((CellFileError, CorpusError), match="2 of 2 files"):
        tokenize(paths, tmp_path / "tokens", skip_broken=True)
