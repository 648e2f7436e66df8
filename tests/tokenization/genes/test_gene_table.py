import pickle

import pytest

from cellglot.tokenization.genes.gene_catalogue import gene_catalogue, read_gene_table


def ids(*numbers):
    return [f"ENSG{n:011d}" for n in numbers]


def test_names_of_one_file_serve_another():
    with_ids = (ids(1, 2), {"feature_name": ["ONE", "TWO"]})
    with_names = (["ONE", "THREE", "ERCC-00002"], {})
    catalogue = gene_catalogue([with_ids, with_names])
    assert catalogue.genes == [*ids(1, 2), "THREE"]
    assert catalogue.resolve(*with_names).report().matched_by_rule["symbol"] == 2
    assert catalogue.resolve(*with_names).known.tolist() == [True, True, False]


def test_versions_are_left_out_and_names_of_several_genes_are_ambiguous():
    catalogue = gene_catalogue([(["ENSG00000000001.3", ids(2)[0]], {"symbol": ["SAME", "SAME"]}), (["SAME"], {})])
    assert catalogue.genes == ids(1, 2)
    assert catalogue.resolve(["SAME"]).report().ambiguous == 1


def test_a_table_gives_ids_and_aliases(tmp_path):
    table = tmp_path / "hgnc.tsv"
    table.write_text(
        "hgnc_id\tsymbol\talias_symbol\tprev_symbol\tensembl_gene_id\n"
        f"1\tONE\tUNO|PRIMUS\t\t{ids(1)[0]}\n2\tTWO\t\tDUO\t{ids(2)[0]}.4\n3\tTHREE\t\t\t\n"
    )
    names = read_gene_table(table)
    assert names.symbols == dict(zip(ids(1, 2), ["ONE", "TWO"], strict=True))
    assert names.aliases == {ids(1)[0]: ["UNO", "PRIMUS"], ids(2)[0]: ["DUO"]}
    catalogue = gene_catalogue([(["UNO", "DUO", "NEW"], {})], names)
    assert catalogue.genes == [*ids(1, 2), "NEW"]


@pytest.mark.parametrize("row", [f"{ids(2)[0]}", f"{ids(2)[0]}\tTWO"])
def test_rows_may_be_cut_short(tmp_path, row):
    (tmp_path / "genes.tsv").write_text(f"ensembl_gene_id\tsymbol\talias\n{ids(1)[0]}\tONE\tUNO\n{row}\n")
    assert read_gene_table(tmp_path / "genes.tsv").symbols[ids(1)[0]] == "ONE"


def test_the_released_dictionary_of_names_is_a_table(tmp_path):
    (tmp_path / "names.pkl").write_bytes(pickle.dumps({"ONE": ids(1)[0], "UNO": ids(1)[0]}))
    names = read_gene_table(tmp_path / "names.pkl")
    assert (names.symbols, names.aliases) == ({ids(1)[0]: "ONE"}, {ids(1)[0]: ["UNO"]})


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n1,2\n", "no column of Ensembl gene ids"), (f"id,b\n{ids(1)[0]},2\n", "no column of symbols")],
)
def test_tables_without_ids_or_names(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_gene_table(tmp_path / "t.csv")


def test_only_some_genes():
    tables = [(ids(1, 2, 3), {"symbol": ["ONE", "TWO", "THREE"]})]
    assert gene_catalogue(tables, only=["TWO", ids(3)[0], "MISSING"]).genes == ids(2, 3)
    with pytest.raises(ValueError, match="no gene is left"):
        gene_catalogue(tables, only=["MISSING"])
