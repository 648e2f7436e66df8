"""Features that are not genes are left out of everything, in every format; types that say nothing are kept."""

import gzip

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from cellglot.tokenization import ExceiverTokenizer, GeneVocabulary, RankValueTokenizer, read_cells
from cellglot.tokenization.count_audit import NotCountsError
from cellglot.tokenization.feature_types import features_of


N_GENES, N_CELLS = 40, 30
IDS = [f"ENSG{i:011d}" for i in range(N_GENES)]
SYMBOLS = [f"SYM{i}A" for i in range(N_GENES)]
OTHERS = {3: "Antibody Capture", 17: "Peaks", 29: "CRISPR Guide Capture", 43: "Multiplexing Capture"}
VOCABULARY = GeneVocabulary.from_statistics(
    IDS,
    medians=np.linspace(1, 2, N_GENES),
    means=np.linspace(0, 1, N_GENES),
    stds=np.ones(N_GENES),
    symbols=dict(zip(IDS, SYMBOLS, strict=True)),
)


@pytest.fixture(scope="module")
def rna():
    counts = np.random.default_rng(0).poisson(1.5, (N_CELLS, N_GENES)).astype(np.float32)
    counts[:, 0] = np.maximum(counts[:, 0], 1)
    return ad.AnnData(sp.csr_matrix(counts), var=pd.DataFrame({"gene_ids": IDS}, index=SYMBOLS))


@pytest.fixture(scope="module")
def mixed(rna):
    """The same genes with four features of other types between them, named as genes are, and of large values."""
    n = N_GENES + len(OTHERS)
    genes = [i for i in range(n) if i not in OTHERS]
    counts = np.zeros((N_CELLS, n), dtype=np.float32)
    counts[:, genes] = rna.X.toarray()
    counts[:, list(OTHERS)] = 70_000
    names, ids, types = (np.empty(n, dtype=object) for _ in range(3))
    names[genes], ids[genes], types[genes] = SYMBOLS, IDS, "Gene Expression"
    for k, (place, kind) in enumerate(OTHERS.items()):
        names[place], ids[place], types[place] = SYMBOLS[k], SYMBOLS[k], kind
    var = pd.DataFrame({"gene_ids": ids, "feature_types": types}, index=names)
    return ad.AnnData(sp.csr_matrix(counts), var=var)


def write_10x_h5(path, cells):
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        counts = cells.X.tocsr()
        group["data"], group["indices"], group["indptr"] = counts.data.astype(int), counts.indices, counts.indptr
        group["shape"], group["barcodes"] = counts.shape[::-1], np.array(list(cells.obs_names), "S")
        group["features/id"] = np.array(list(cells.var["gene_ids"]), "S")
        group["features/name"] = np.array(list(cells.var_names), "S")
        group["features/feature_type"] = np.array(list(cells.var["feature_types"]), "S")


def write_folder(path, cells):
    path.mkdir()
    scipy.io.mmwrite(path / "matrix.mtx", sp.coo_matrix(cells.X.T.astype(int)))
    rows = zip(cells.var["gene_ids"], cells.var_names, cells.var["feature_types"], strict=True)
    with gzip.open(path / "features.tsv.gz", "wt") as file:
        file.write("".join("\t".join(row) + "\n" for row in rows))
    (path / "barcodes.tsv").write_text("".join(f"{b}\n" for b in cells.obs_names))


def write_loom(path, cells):
    with h5py.File(path, "w") as file:
        file["matrix"] = cells.X.T.toarray()
        file["row_attrs/Gene"] = np.array(list(cells.var_names), "S")
        file["row_attrs/Accession"] = np.array(list(cells.var["gene_ids"]), "S")
        file["row_attrs/FeatureType"] = np.array(list(cells.var["feature_types"]), "S")
        file["col_attrs/CellID"] = np.array(list(cells.obs_names), "S")


def opened(form, cells, folder):
    """Return the cells in a format, as what tokenizers take."""
    cells = cells.copy()
    layout = {"csc": sp.csc_matrix, "dense": lambda x: x.toarray()}.get(form.split()[-1], sp.csr_matrix)
    cells.X = layout(cells.X)
    if form.startswith("memory"):
        return cells
    if form == "view":
        return cells[np.arange(cells.n_obs)]
    path = folder / {"10x": "a.h5", "folder": "folder", "loom": "a.loom"}.get(form, f"a.{form.split()[0]}")
    if form in ("10x", "folder", "loom"):
        {"10x": write_10x_h5, "folder": write_folder, "loom": write_loom}[form](path, cells)
    elif form.startswith("zarr"):
        cells.write_zarr(path)
    elif form.startswith("backed"):
        cells.write_h5ad(path)
        return ad.read_h5ad(path, backed="r")
    else:
        cells.write_h5ad(path)
    return read_cells(path)


FORMS = [
    "h5ad csr", "h5ad csc", "h5ad dense", "zarr csr", "zarr csc", "10x", "folder", "loom", "memory csr", "memory csc",
    "memory dense", "view", "backed csr", "backed dense",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_those_of_rna_alone(form, rna, mixed, tmp_path):
    cells = opened(form, mixed, tmp_path)
    for kind in (RankValueTokenizer, ExceiverTokenizer):
        tokenizer = kind.from_vocabulary(VOCABULARY)
        expected = tokenizer(rna)
        assert tokenizer(cells) == expected
        report = tokenizer.last_report
        assert (report.genes, report.matched, report.coverage) == (N_GENES, N_GENES, 1.0)
        assert report.left_out == dict.fromkeys(OTHERS.values(), 1)
        assert "1 Antibody Capture" in report.summary()
    if not hasattr(cells, "chunks"):
        cells = read_cells(cells)
    assert any("4 " not in note and "1 Peaks" in note for note in cells.notes)
    assert (cells.to_anndata().X != rna.X).nnz == 0 and list(cells.var.index) == SYMBOLS


def test_values_of_other_features_are_not_audited_and_bad_counts_of_genes_are(mixed):
    cells = mixed.copy()
    cells.X[:, 3] = -0.25  # antibodies as DSB normalises them
    tokens = RankValueTokenizer.from_vocabulary(VOCABULARY)(cells)["input_ids"]
    assert tokens == RankValueTokenizer.from_vocabulary(VOCABULARY)(mixed)["input_ids"]
    for layout in (sp.csr_matrix, sp.csc_matrix):
        cells.X = layout(cells.X)
        assert read_cells(cells).counts.location == "X"
    cells.X = cells.X.tocsr()
    cells.X[2, 0] = 0.5
    with pytest.raises(NotCountsError):
        RankValueTokenizer.from_vocabulary(VOCABULARY)(cells)


def test_raw_without_types_has_those_of_var(rna, mixed):
    cells = mixed.copy()
    cells.var_names_make_unique()
    cells.raw = cells.copy()
    del cells.raw.var["feature_types"]
    cells.X = cells.X.copy()
    cells.X.data = np.log1p(cells.X.data / 3)
    with read_cells(cells) as found:
        assert (found.counts.location, found.n_genes) == ("raw.X", N_GENES)
    assert (
        RankValueTokenizer.from_vocabulary(VOCABULARY)(cells)["input_ids"]
        == (RankValueTokenizer.from_vocabulary(VOCABULARY)(rna)["input_ids"])
    )


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("feature_types", "antibody capture"), ("feature_type", "Antibody_Capture"), ("Feature-Type", "ADT"),
        ("modality", "prot"), ("modality", b"atac"), ("mod", "HTO"), ("featureType", "Hashtags"),
        ("feature_types", "VDJ-T"), ("feature_types", "Custom"), ("feature_types", "Negative Control Probe"),
        ("assay", "ADT"), ("type", "Antibody Capture"), ("library_type", "CRISPR Guide Capture"),
    ],
)  # fmt: skip
def test_spellings_of_other_types(column, kind):
    for gene in ("Gene Expression", "gene_expression", "RNA", "", None, np.nan, "protein_coding"):
        values = pd.Series([gene, kind, gene], dtype=object)
        for stored in (values, values.tolist(), values.astype("category") if isinstance(kind, str) else values):
            features = features_of(["A", "A-1", "B"], {column: stored})
            assert features.genes.tolist() == [True, False, True]
            assert sum(features.left_out.values()) == 1


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("feature_types", "NA"), ("feature_type", "protein_coding"), ("feature_types", np.nan), ("modality", "x"),
        ("feature_types", ""), ("feature_types", "snRNA:GRCh38"),
    ],
)  # fmt: skip
def test_types_that_say_nothing_are_kept_with_a_note(column, kind):
    features = features_of(["A", "B"], {column: [kind, kind]})
    assert features.genes is None and not features.left_out
    assert column in features.note


@pytest.mark.parametrize("kind", ["custom", "guide_RNA", "protein", "tag"])
def test_short_words_are_not_believed_where_columns_say_more_than_types(kind):
    assert features_of(["A"], {"type": [kind]}).genes is None
    assert features_of(["A", "B"], {"feature_type": ["protein_coding", "guide_RNA"]}).genes is None


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("chr1:100-200", True), ("chr1-9776-10668", True), ("GL000194.1:55758-56597", True), ("chrX_10_20", True),
        ("CD3_TotalSeqB", True), ("CD4-TotalA", True), ("adt_CD4", True), ("CD4-ADT", True), ("prot:CD4", True),
        ("CD3:SK7|CD3E|AHS0231|pAbO", True), ("Hashtag1", True), ("HTO_3", True), ("CMO301", True), ("ADTRP", False),
        ("PROTOR", False), ("CMOXY1", False), ("HLA-A", False), ("NKX2-1", False), ("CHRNA1", False),
        ("RP11-34P13.7", False), ("TOTAL", False), ("ENSG00000141510", False),
    ],
)  # fmt: skip
def test_names_of_intervals_and_of_antibodies(name, left_out):
    features = features_of(["A", name], None)
    assert (features.genes is not None) == left_out
    told = features_of(["A", name], {"feature_types": ["Gene Expression"] * 2})
    assert told.genes is None  # the file says what it is


def test_a_file_without_genes_is_refused_by_name(mixed, tmp_path):
    path = tmp_path / "proteins.h5ad"
    cells = mixed[:, [3, 17]].copy()
    cells.write_h5ad(path)
    with pytest.raises(ValueError, match=r"proteins\.h5ad.*no genes.*1 Antibody Capture, 1 Peaks"):
        read_cells(path)


def test_mudata_in_memory_is_named_for_what_it_is():
    class Container:
        mod = {"rna": None, "prot": None}
        obs_names = ["a"]

    with pytest.raises(TypeError, match=r"MuData of rna, prot.*\['rna'\]"):
        RankValueTokenizer.from_vocabulary(VOCABULARY)(Container())
