import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from cellglot.tokenization import CellFileError, read_cells
from cellglot.tokenization.reading import selection
from cellglot.tokenization.reading.filters import FilterError, check_filter, with_preset


@pytest.fixture(scope="module")
def cells():
    obs = pd.DataFrame(
        {
            "tissue": pd.Categorical(["lung", "blood", "lung", None]),
            "disease": ["normal", "Lung Carcinoma", None, "COVID-19"],
            "age": [10.0, 20.0, np.nan, 40.0],
            "stage": pd.array([1, 2, None, 4], dtype="Int64"),
            "is_primary_data": [True, False, True, True],
            "as_text": ["True", "false", "True", "true"],
            "CellType": ["a", "b", "c", "a"],
            "odd name": [1, 2, 3, 4],
        },
        index=list("pqrs"),
    )
    counts = sp.csr_matrix(np.arange(1, 13).reshape(4, 3))
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=["CD3D", "CD19", "NKG7"]))


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ('tissue == "lung"', "pr"),
        ('tissue != "lung"', "qs"),
        ('not tissue == "lung"', "qs"),
        ('tissue in ["lung", "blood"]', "pqr"),
        ('tissue not in ["lung"]', "qs"),
        ("tissue in []", ""),
        ("tissue is None", "s"),
        ("tissue != None", "pqr"),
        ('"carcinoma" in disease', "q"),
        ('"carcinoma" not in disease', "prs"),
        ("age > 10", "qs"),
        ("10 < age", "qs"),
        ("not age > 10", "pr"),
        ("age != 20", "prs"),
        ("age in [10, 40]", "ps"),
        ("stage >= 2", "qs"),
        ("is_primary_data", "prs"),
        ("is_primary_data == False", "q"),
        ("as_text == True and age < 40", "p"),
        ('tissue == "lung" and age == 10 or stage == 4', "ps"),
        ('cell_type == "a"', "ps"),  # the name of the schema
        ('attr("odd name") <= 2', "pq"),
    ],
)
def test_cells_that_meet_a_filter(cells, text, met):
    if not met:
        with pytest.raises(CellFileError, match="the AnnData: none of its 4 cells meets the filter"):
            read_cells(cells, filter=text)
        return
    chosen = read_cells(cells, filter=text)
    assert list(chosen.names()) == list(met)
    assert chosen.row_numbers().tolist() == ["pqrs".index(name) for name in met]
    assert np.array_equal(chosen.to_anndata().X.toarray(), cells[list(met)].X.toarray())
    assert chosen.metadata()["disease"].tolist() == cells.obs["disease"][list(met)].tolist()
    assert f"the filter leaves out {4 - len(met)} of 4 cells" in chosen.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty or too long"),
        ("tissue =", "cannot be read: a filter is, for example"),
        ("age + 1 == 2", r"'age \+ 1 == 2', which is unsupported"),
        ('__import__("os").system("x")', "which is unsupported"),
        ("1 < age < 3", "which is unsupported"),
        ("tissue > None", "which is unsupported"),
        ("tissue in 3", "which is unsupported"),
        ('preset("other")', "no preset 'other' of filters: it is one of sccello"),
    ],
)
def test_filters_that_cannot_be_read(text, message):
    with pytest.raises(FilterError, match=message):
        check_filter(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "tisue == 'lung' or none > 1",
            "has no column 'none', 'tisue', which the filter names; it has tissue",
        ),
        ("age == 'old'", r"'age' has values such as 10\.0: compare it with numbers, not with 'old'"),
        ("tissue == 1", "'tissue' has values such as 'lung': compare it with texts in quotes, not with 1"),
        ("tissue == True", "compare it with texts in quotes, not with True"),
        ("is_primary_data == 'True'", "'is_primary_data' has values such as True: compare it with True or False"),
        ("'1' in age", "'age' has numbers, in which the text '1' cannot be looked for"),
    ],
)
def test_filters_that_do_not_fit_the_columns(cells, text, message):
    with pytest.raises(FilterError, match=message):
        read_cells(cells, filter=text)


def test_the_preset_of_sccello_is_human_primary_10x_and_not_cancer(cells):
    table = pd.DataFrame(
        {
            "organism": ["Homo sapiens"] * 6 + ["Mus musculus"],
            "is_primary_data": [True, True, False, True, True, True, True],
            "assay": ["10x 3' v2", "Smart-seq2", "10x 3' v3", "10x 5' v1", "10x 3' v3", "10x multiome", "10x 3' v3"],
            "disease": ["normal", "normal", "normal", "lung adenocarcinoma", "COVID-19", "B-cell lymphoma", "normal"],
        },
        index=list("abcdefg"),
    )
    made = AnnData(sp.csr_matrix(np.ones((7, 2))), obs=table, var=pd.DataFrame(index=["CD3D", "CD19"]))
    wanted = with_preset(None, "sccello")
    assert list(read_cells(made, filter=wanted).names()) == ["a", "e"]
    assert list(read_cells(made, filter=with_preset('disease == "COVID-19"', "sccello")).names()) == ["e"]
    del made.obs["organism"]  # as in Census, where each species has an experiment
    assert list(read_cells(made, filter=wanted).names()) == ["a", "e", "g"]
    with pytest.raises(FilterError, match="no column 'assay', 'is_primary_data'"):
        read_cells(AnnData(made.X, obs=table[["disease"]], var=made.var), filter=wanted)


def test_cells_far_apart_are_read_in_parts_of_bounded_size(blood, blood_file, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "CELLS_AT_ONCE", 8)
    monkeypatch.setattr(selection, "FAR_APART", 3)
    read = []
    real = selection.read_rows
    monkeypatch.setattr(selection, "read_rows", lambda m, a, b: (read.append(b - a), real(m, a, b))[1])
    types = blood.obs["cell_type"].astype(str)
    text = f'cell_type in ["{types.iloc[0]}", "{types.iloc[1]}"]'
    wanted = types.isin([types.iloc[0], types.iloc[1]]).to_numpy()
    with read_cells(blood_file, filter=text, folder=tmp_path) as cells:
        assert (blood.X[wanted] != cells.to_anndata().X).nnz == 0
        assert list(cells.names()) == list(blood.obs_names[wanted])
    assert max(read) == 8
    kept = list(tmp_path.glob("selected-*.npy"))
    assert len(kept) == 1
    monkeypatch.setattr(selection, "selected", None)  # the numbers are kept
    with read_cells(blood_file, filter=text, folder=tmp_path) as cells:
        assert cells.n_cells == wanted.sum()


def test_a_backed_anndata_is_filtered_as_its_file(blood, blood_file):
    import anndata as ad

    backed = ad.read_h5ad(blood_file, backed="r")
    some = blood.obs["cell_type"].astype(str).iloc[0]
    chosen = read_cells(backed, filter=f'cell_type == "{some}"')
    assert (blood.X[(blood.obs["cell_type"] == some).to_numpy()] != chosen.to_anndata().X).nnz == 0
    backed.file.close()
