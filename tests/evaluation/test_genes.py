"""Embeddings of genes: against loops over single cells; neighbours, gene sets, attention, resuming, files."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
import typer

import cellglot
from cellglot.evaluation.genes import embed_genes as embed_genes_module
from cellglot.evaluation.genes.attention import sum_attention
from cellglot.evaluation.genes.files import read_gene_embeddings
from cellglot.evaluation.genes.gene_sets import (
    RandomSets,
    average_precision,
    expression_bins,
    match_sets,
    score_sets,
    weighted_auroc,
)
from cellglot.evaluation.genes.neighbours import nearest_genes
from cellglot.evaluation.genes.vectors import Coexpressed, Embedded, selection
from cellglot.outputs import OutputError


CPU = {"device": "cpu", "batch_size": 4}


@pytest.fixture(scope="module")
def cells(blood):
    """Sixteen cells, one of them without counts."""
    few = blood[:16].copy()
    counts = few.X.tolil()
    counts[4] = 0
    few.X = counts.tocsr()
    few.obs["state"] = ["resting"] * 8 + ["active"] * 8
    return few


@pytest.fixture(scope="module")
def models(model_folders, gene_classifiers):
    return {
        "exceiver": model_folders["classifier"],
        "sccello": gene_classifiers["base"],
        "adapter": gene_classifiers["adapter"],
    }


@pytest.mark.parametrize("name", ["exceiver", "sccello", "adapter"])
def test_contextual_embeddings_are_means_over_cells(models, cells, name):
    found = cellglot.genes(models[name], cells, min_cells=2, column="state", cell_type="resting", **CPU)
    model = cellglot.load_model(models[name])
    vocabulary, encoder = model.tokenizer.vocabulary, model.encoder
    network = model.network.get_base_model() if name == "adapter" else model.network
    sums, numbers = {}, {}
    for row in np.setdiff1d(np.arange(8), [4]):
        cell = model.tokenizer(cells[row], return_tensors="pt", min_coverage=0.0)
        with torch.inference_mode():
            output = encoder(**cell).last_hidden_state
            if name == "exceiver":
                output = network.decoder(encoder.gene_embedding(cell["input_ids"]), output)
        for token, state in zip(cell["input_ids"][0].tolist(), output[0].numpy().astype(float), strict=True):
            if vocabulary.tokens[token] not in vocabulary.special_tokens:
                sums[token] = sums.get(token, 0.0) + state
                numbers[token] = numbers.get(token, 0) + 1
    assert found.states_from == ("decoder" if name == "exceiver" else "hidden states")
    table = encoder.get_input_embeddings().weight.detach().numpy()
    for place, token in enumerate(vocabulary.gene_token_ids.tolist()):
        np.testing.assert_allclose(found.static[place], table[token], rtol=1e-6)
        assert found.genes["cells"].iloc[place] == numbers.get(token, 0)
        if token in sums:
            np.testing.assert_allclose(found.contextual[place], sums[token] / numbers[token], rtol=1e-3, atol=2e-5)
        else:
            assert np.isnan(found.contextual[place]).all()
    assert "8 cells of AnnData (resting)" in str(found)


def test_without_cells_there_are_static_embeddings(models, tmp_path):
    sets = {"many": ["CD79A", "CD74", "HLA-DRA", "LYZ"], "few": ["LYZ", "nothing"]}
    found = cellglot.genes(
        models["sccello"],
        output=tmp_path / "genes.parquet",
        neighbours=3,
        gene_sets=sets,
        set_genes=(3, 9),
        permutations=20,
    )
    assert found.contextual is None and "matched by the mean log count" in str(found) and "1 gene sets" in str(found)
    assert found.neighbours.groupby("gene").size().eq(3).all() and set(found.gene_sets["embedding"]) == {"static"}
    names, values = read_gene_embeddings(tmp_path / "genes.parquet", "static")
    np.testing.assert_array_equal(values, found.static)
    assert names == list(found.genes.index)
    with pytest.raises(ValueError, match="has no 'contextual' embeddings"):
        read_gene_embeddings(tmp_path / "genes.parquet", "contextual")


def test_files_of_the_command(models, cells, tmp_path, monkeypatch, capsys):
    from cellglot.cli import app

    monkeypatch.chdir(tmp_path)
    cells.write_h5ad("cells.h5ad")
    symbols = list(cells.var_names)
    (tmp_path / "sets.gmt").write_text("one\t-\t" + "\t".join(symbols[:40]) + "\ntwo\t-\t" + "\t".join(symbols[20:60]))
    words = ["genes", str(models["sccello"]), "cells.h5ad", "-o", "out.parquet", "--neighbours", "2"]
    words += ["--gene-sets", "sets.gmt", "--set-genes", "5,50", "--permutations", "9", "--attention", "--edges", "50"]
    words += ["--min-cells", "3", "--device", "cpu"]
    command = typer.main.get_command(app)
    command.main(words, standalone_mode=False)
    said = capsys.readouterr().out
    ends = ("", "_attention", "_neighbours")
    assert all((tmp_path / f"out{end}.parquet").exists() and f"out{end}.parquet" in said for end in ends)
    assert (tmp_path / "out_attention.png").stat().st_size > 10_000
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "cells.h5ad", "out.parquet", "out_attention.parquet", "out_attention.png", "out_gene_sets.csv",
        "out_neighbours.parquet", "sets.gmt",
    ]  # fmt: skip
    edges = pd.read_parquet("out_attention.parquet")
    assert len(edges) == 50 and (edges["cells"] >= 3).all() and edges["weight"].is_monotonic_decreasing
    scores = pd.read_csv("out_gene_sets.csv")
    assert set(scores["set"]) == {"one", "two"} and set(scores["embedding"]) == {"static", "contextual"}
    written = pd.read_parquet("out.parquet")
    assert written["contextual"].isna().sum() == (written["cells"] == 0).sum() > 0
    with pytest.raises(OutputError, match="exists"):
        command.main(words, standalone_mode=False)


def test_a_stopped_run_is_resumed(models, cells, tmp_path, monkeypatch):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    given = (models["exceiver"], tmp_path / "cells.h5ad")
    whole = cellglot.genes(*given, **CPU)
    real, calls = embed_genes_module.gene_states, []

    def failing(*arguments):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(embed_genes_module, "gene_states", failing)
    output = tmp_path / "genes.parquet"
    with pytest.raises(KeyboardInterrupt):
        cellglot.genes(*given, output=output, **CPU)
    assert (tmp_path / "genes.parquet.unfinished" / "sums.npz").exists() and not output.exists()
    with pytest.raises(OutputError, match="sums of a run with other"):
        cellglot.genes(models["sccello"], given[1], output=output, **CPU)
    again = cellglot.genes(*given, output=output, **CPU)
    assert "2 batches of cells were finished by an earlier run" in str(again) and len(calls) == 5
    np.testing.assert_allclose(again.contextual, whole.contextual, rtol=1e-5, atol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells.h5ad", "genes.parquet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": True, "cells": None}, "summed over cells: name a file"),
        ({"cells": None, "cell_type": "resting"}, "choose cells: name a file"),
        ({"output": "genes.csv"}, "written as .parquet"),
        ({"gene_sets": {"a": ["LYZ", "CD74"]}}, "none of 1 gene sets has 10 to 500 genes to score"),
        ({"gene_sets": {"a": ["LYZ"]}, "set_genes": (1, 5)}, "at least 2 genes"),
        ({"neighbours": -1}, "neighbours -1"),
        ({"neighbours": 2, "min_cells": 31}, "lower min_cells"),
        ({"cell_type": "resting", "column": "stade"}, "no column 'stade'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(models, cells, options, message):
    given = {"cells": cells} | options
    with pytest.raises(ValueError, match=message):
        cellglot.genes(models["sccello"], given.pop("cells"), device="cpu", **given)


def test_missing_sets_and_foreign_cells_are_refused(models, cells, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"sets.gmt does not exist"):
        cellglot.genes(models["sccello"], cells, gene_sets=tmp_path / "sets.gmt")
    empty = cells[4:5].copy()
    with pytest.raises(ValueError, match="none of 1 cells of AnnData expresses a gene of"):
        cellglot.genes(models["sccello"], empty, min_coverage=0.0, **CPU)


# -------------------------------------------------------------------- neighbours, gene sets, attention


def test_neighbours_are_those_of_all_pairs():
    values = np.random.default_rng(0).normal(size=(30, 5)) + 3.0
    values[7] = np.nan
    genes, neighbours, similarities = nearest_genes(values, 4)
    centred = values - np.nanmean(values, axis=0)
    cosines = centred @ centred.T / np.outer(*[np.linalg.norm(centred, axis=1)] * 2)
    np.fill_diagonal(cosines, np.nan)
    assert genes.tolist() == [g for g in range(30) if g != 7]
    for gene, near, found in zip(genes, neighbours, similarities, strict=True):
        order = np.argsort(-np.nan_to_num(cosines[gene], nan=-9))[:4]
        assert near.tolist() == order.tolist()
        np.testing.assert_allclose(found, cosines[gene][order], rtol=1e-4, atol=1e-6)
    assert nearest_genes(values[:2], 5)[1].tolist() == [[1], [0]]


def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import average_precision_score, roc_auc_score

    random = np.random.default_rng(1)
    scores, inside = random.integers(0, 20, 200) / 3.0, random.random(200) < 0.2
    weights = np.where(inside, 0.0, random.random(200))
    expected = roc_auc_score(inside, scores, sample_weight=np.where(inside, 1.0, weights))
    assert weighted_auroc(scores, inside, weights) == pytest.approx(expected)
    assert average_precision(scores, inside) == pytest.approx(average_precision_score(inside, scores))


def planted(random, genes=400, size=6):
    """Embeddings of which the first 20 genes point one way, and any expression."""
    values = random.normal(size=(genes, size))
    values[:20] += [3.0] * size
    return values, random.random(genes)


def test_planted_sets_are_found_and_random_ones_are_not(vocabulary):
    random = np.random.default_rng(2)
    values, expression = planted(random)
    names = vocabulary.genes[:400]
    sets = {"planted": names[:20], "outside": ["nothing"] * 3}
    sets |= {
        f"random {i}": [names[g] for g in random.choice(np.arange(20, 400), 20, replace=False)] for i in range(40)
    }
    place = np.full(vocabulary.vocab_size, -1)
    place[[vocabulary.token_ids[g] for g in names]] = np.arange(400)
    matched = match_sets(sets, vocabulary, place, 5, 50)
    assert matched.left_out == 1 and matched.names[0] == "planted"
    bins = expression_bins(expression[matched.genes], len(matched.genes))
    table = score_sets(Embedded.centred(values[matched.genes]), matched, bins, 999).set_index("set")
    first, others = table.loc["planted"], table.drop(index="planted")
    assert first["p_value"] == 1 / 1000 and first["fdr"] < 0.05 and first["auroc"] > 0.95 and first["auprc"] > 0.5
    assert others["p_value"].mean() > 0.35 and (others["fdr"] < 0.05).sum() <= 2
    assert abs(others["auroc"].mean() - 0.5) < 0.03 and abs(others["similarity"].mean()) < 0.03
    expected = Embedded.centred(values[matched.genes]).rows[matched.members[0]]
    pairs = expected @ expected.T
    assert first["similarity"] == pytest.approx(pairs[~np.eye(20, dtype=bool)].mean(), rel=1e-4)
    without = score_sets(Embedded.centred(values[matched.genes]), matched, bins, 0)
    assert without["p_value"].isna().all()


def test_expression_alone_is_no_agreement(vocabulary):
    """An embedding that only says how strongly genes are expressed, and sets of strongly expressed genes."""
    random = np.random.default_rng(3)
    expression = np.sort(random.random(400))
    angle = expression * 2
    values = np.stack([np.cos(angle), np.sin(angle)], axis=1) + random.normal(scale=0.05, size=(400, 2))
    names = vocabulary.genes[:400]
    place = np.full(vocabulary.vocab_size, -1)
    place[[vocabulary.token_ids[g] for g in names]] = np.arange(400)
    sets = {f"strong {i}": [names[g] for g in 300 + random.choice(100, 20, replace=False)] for i in range(20)}
    sets["all"] = names
    matched = match_sets(sets, vocabulary, place, 5, 400)
    bins = expression_bins(expression[matched.genes], len(matched.genes))
    table = score_sets(Embedded.centred(values[matched.genes]), matched, bins, 100).set_index("set").drop(index="all")
    assert table["auroc"].mean() > 0.75 and abs(table["auroc_matched"].mean() - 0.5) < 0.06
    assert (table["p_value"] > 0.01).mean() > 0.9


def test_random_sets_keep_the_expression_of_theirs():
    bins = np.repeat([0, 1, 2], [10, 20, 30])
    drawn = RandomSets(bins, 50).like(np.array([0, 1, 12, 40, 41, 42]))
    assert drawn.shape == (50, 6)
    assert all(np.bincount(bins[row]).tolist() == [2, 1, 3] and len(set(row.tolist())) == 6 for row in drawn)
    assert RandomSets(bins, 3, seed=1).like(np.array([5])).max() < 10
    assert expression_bins(np.array([5.0, 1.0, 3.0, 2.0]), 4, 2).tolist() == [1, 0, 1, 0]


def test_coexpression_is_the_correlation(random_counts):
    counts = random_counts(60, 12)
    logs = np.log1p(counts.toarray())
    logs[:, 3] = 0
    logs = sp.csr_matrix(logs)
    vectors = Coexpressed.of(logs)
    sets = [np.array([0, 1, 5]), np.array([2, 3])]
    sums = vectors.sums(selection(sets, 12))
    with np.errstate(invalid="ignore"):
        correlations = np.nan_to_num(np.corrcoef(logs.toarray().T))
    for number, own in enumerate(sets):
        np.testing.assert_allclose(vectors.products(sums)[:, number], correlations[:, own].sum(axis=1), atol=1e-5)
        np.testing.assert_allclose(vectors.squares(sums)[number], correlations[np.ix_(own, own)].sum(), atol=1e-5)
    assert vectors.lengths.tolist() == [float(g != 3) for g in range(12)]


@pytest.mark.parametrize("symmetric", [False, True])
def test_attention_in_blocks_is_that_of_one_matrix(symmetric):
    random, genes = np.random.default_rng(4), np.array([3, 5, 6, 8, 9, 11])
    cells = []
    for _ in range(9):
        tokens = random.permutation(14)[: random.integers(2, 9)]
        weights = random.random((len(tokens), len(tokens))).astype(np.float32)
        cells.append((tokens, weights + weights.T if symmetric else weights))
    total, both = np.zeros((14, 14)), np.zeros((14, 14), dtype=int)
    for tokens, weights in cells:
        total[np.ix_(tokens, tokens)] += weights
        both[np.ix_(tokens, tokens)] += 1
    ids = np.array([f"id {t}" for t in range(14)], dtype=object)
    symbols = np.array([f"g{t}" for t in range(14)], dtype=object)
    passes = []

    def read(add):
        passes.append(0)
        for cell in cells:
            add(*cell)

    options = {"edges": 5, "min_cells": 2, "symmetric": symmetric, "ids": ids, "symbols": symbols}
    found = sum_attention(read, genes, at_once=13, **options)
    assert found.passes == len(passes) == 3
    pairs = [(a, b) for a in genes for b in genes if (a < b if symmetric else a != b)]
    assert found.pairs == sum(both[p] > 0 for p in pairs) and found.genes == 6
    best = sorted((p for p in pairs if both[p] >= 2), key=lambda p: -total[p])[:5]
    assert [tuple(e) for e in found.edges[["from_symbol", "to_symbol"]].to_numpy()] == [
        (f"g{a}", f"g{b}") for a, b in best
    ]
    np.testing.assert_allclose(found.edges["weight"], [total[p] for p in best], rtol=1e-5)
    assert found.edges["cells"].tolist() == [both[p] for p in best]
    inside = total[np.ix_(genes, genes)] * ~np.eye(6, dtype=bool)
    rows, columns = inside.sum(axis=1), inside.sum(axis=0)
    a, b = (list(genes).index(g) for g in best[0])
    assert found.edges["lift"].iloc[0] == pytest.approx(total[best[0]] * inside.sum() / rows[a] / columns[b], rel=1e-4)
    assert found.total == pytest.approx(inside.sum(), rel=1e-5)


@pytest.mark.reference
@pytest.mark.parametrize("name", ["blood-exceiver", "blood-sccello"])
def test_real_pathways_are_nearer_than_random_genes(reference_data, name):
    found = cellglot.genes(
        name,
        reference_data / "cells" / "pbmc_facs.h5ad",
        max_cells=64,
        gene_sets=reference_data / "markers" / "reactome.gmt",
        permutations=20,
        device="cpu",
    )
    contextual = found.gene_sets[found.gene_sets["embedding"] == "contextual"].set_index("set")
    assert contextual["auroc_matched"].mean() > 0.52
    assert contextual.loc["REACTOME_EUKARYOTIC_TRANSLATION_ELONGATION", "auroc_matched"] > 0.7
