"""Embedding cells of mixed lengths with scCello at its published size, against padding to the longest of the corpus.

python benchmarks/sccello_embedding.py

Cells of several sets, the released vocabulary, random weights. Ours is `cellglot.evaluation.embed_cells`: batches of
cells of similar length, padded to the longest of the batch. The other way makes batches in the order of the cells,
padded to the longest of all cells. Both read the same tokens and give the same embeddings. Target: twice as fast.
"""

import anndata
import numpy as np
import torch
from measure import DATA, alternate, median, parser, ratio, report
from scipy.sparse import csr_matrix, vstack

from cellglot.evaluation import embed_cells
from cellglot.modeling import ScCelloConfig, ScCelloModel
from cellglot.tokenization import GeneVocabulary, RankValueTokenizer, read_cells


SETS = {"pbmc_facs": 0.7, "cellxgene_perturbation": 0.1, "lung_cell_lines": 0.2}
BATCH = 16


def mixed_cells(tokenizer: RankValueTokenizer, number: int) -> anndata.AnnData:
    """Return cells of several sets in a seeded order, on the genes of the vocabulary."""
    random = np.random.default_rng(0)
    column = {gene: i for i, gene in enumerate(tokenizer.vocabulary.genes)}
    parts = []
    for name, share in SETS.items():
        cells = read_cells(DATA / "cells" / f"{name}.h5ad").to_anndata()
        chosen = cells[random.choice(cells.n_obs, min(int(share * number), cells.n_obs), replace=False)]
        at = np.array([column.get(str(gene), -1) for gene in chosen.var_names])
        counts = csr_matrix(chosen.X)[:, at >= 0].tocoo()
        shape = (chosen.n_obs, len(column))
        parts.append(csr_matrix((counts.data, (counts.row, at[at >= 0][counts.col])), shape=shape))
    matrix = vstack(parts, format="csr")
    matrix = matrix[random.permutation(matrix.shape[0])]
    result = anndata.AnnData(matrix)
    result.var_names = list(column)
    return result


def embed_padded(model: ScCelloModel, tokens: dict[str, torch.Tensor]) -> np.ndarray:
    """Embed cells in their order, all padded to the longest."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(tokens["input_ids"]), BATCH):
            batch = {name: values[start : start + BATCH] for name, values in tokens.items()}
            parts.append(model(**batch).pooler_output.numpy())
    return np.concatenate(parts)


def main() -> None:
    given = parser(__doc__, repeats=1).parse_args()
    released = (DATA / "genes" / "token_dictionary.pkl", DATA / "genes" / "gene_median_dictionary.pkl")
    tokenizer = RankValueTokenizer.from_vocabulary(GeneVocabulary.from_released(*released))
    cells = mixed_cells(tokenizer, 100 if given.quick else 1000)
    torch.manual_seed(0)
    model = ScCelloModel(ScCelloConfig(num_cell_types=0)).eval()
    tokens = dict(tokenizer(cells, return_tensors="pt"))
    lengths = tokens["attention_mask"].sum(dim=1)
    sides = {
        "padded to the longest": lambda: embed_padded(model, tokens),
        "ours": lambda: embed_cells(model, tokenizer, cells, batch_size=BATCH, progress=False, device="cpu"),
    }
    some = {name: values[:BATCH] for name, values in tokens.items()}
    first = embed_cells(model, tokenizer, cells[:BATCH], batch_size=4, progress=False, device="cpu")
    np.testing.assert_allclose(first, embed_padded(model, some), atol=1e-4)
    times = alternate(sides, given.repeats, untimed=0)  # both have already run on some cells
    speed = ratio(times["padded to the longest"], times["ours"])
    row = {
        "cells": len(lengths),
        "tokens, median": int(lengths.median()),
        "tokens, most": int(lengths.max()),
        "padded to the longest, s": median(times["padded to the longest"]),
        "ours, s": median(times["ours"]),
        "times as fast": speed,
    }
    report(given, [row], [("times as fast as padding to the longest", 2, speed, speed >= 2)])


if __name__ == "__main__":
    main()
