import numpy as np
import pandas as pd
import pytest


SMILES = [
    "CCO", "CCCO", "c1ccccc1O", "CC(=O)O", "CC(=O)Nc1ccc(O)cc1", "CN1CCC[C@H]1c1cccnc1", "O=c1[nH]cc(F)c(=O)[nH]1",
    "CCN",
]  # fmt: skip


@pytest.fixture(scope="session")
def response_tables(vocabulary):
    """Tables of 40 lines in three types, 60 genes and 8 drugs whose effects follow genes of the line."""
    random = np.random.default_rng(5)
    genes = [gene for gene in vocabulary.genes if not gene.startswith("<")][:60]
    lines = [f"LINE-{n}" for n in range(40)]
    states = random.normal(size=(40, 3))
    log2 = np.maximum(states @ random.normal(size=(3, 60)) + 3 + random.normal(0, 0.2, (40, 60)), 0)
    drugs = [f"drug {n}" for n in range(8)]
    weights = random.normal(size=(3, 8))
    ic50 = random.normal(0, 3, 8) + states @ weights + random.normal(0, 0.2, (40, 8))
    return {
        "expression": pd.DataFrame(log2.astype(np.float32), columns=genes).assign(cell_line=lines),
        "cell_lines": pd.DataFrame({"cell_line": lines, "tcga_code": ["LUAD", "BRCA", "SKCM", ""] * 10}),
        "drugs": pd.DataFrame({"drug": drugs, "smiles": SMILES}),
        "response": pd.DataFrame(
            [(line, drug, ic50[i, j]) for i, line in enumerate(lines) for j, drug in enumerate(drugs)],
            columns=["cell_line", "drug", "ln_ic50"],
        ),
    }


@pytest.fixture
def write_response(response_tables, tmp_path):
    """Write the tables, some of them changed or left out (None), to a folder."""

    def write(name="lines", **changes):
        folder = tmp_path / name
        folder.mkdir()
        for table, content in (response_tables | changes).items():
            if content is None:
                continue
            if table == "expression":
                content.to_parquet(folder / "expression.parquet")
            else:
                content.to_csv(folder / f"{table}.tsv", sep="\t", index=False)
        return folder

    return write
