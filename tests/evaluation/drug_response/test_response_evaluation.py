import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import cellglot
from cellglot.cli import app
from cellglot.evaluation.drug_response.baselines import BASELINES
from cellglot.evaluation.drug_response.folder import read_drug_response
from cellglot.model_cards.card.evaluation import read_evaluation


@pytest.fixture(scope="module")
def models(gene_classifiers, model_folders, cell_text_folder):
    return {"rank": gene_classifiers["adapter"], "values": model_folders["classifier"], "texts": cell_text_folder}


def test_the_command_evaluates_lines_without_cells_and_resumes(models, write_response, tmp_path):
    output, folder = tmp_path / "out", write_response()
    named = [f"{name}={path}" for name, path in models.items()]
    given = ["evaluate", *named, "--tasks", "drug-response", "--drug-response", str(folder), "-o", str(output)]
    done = CliRunner().invoke(app, given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record = json.loads((output / "evaluation.json").read_text())
    row = record["results"]["drug-response: lines held out"]
    assert set(row) == {*models, *BASELINES} and all(
        np.isfinite(row[m]["metrics"]["pearson"]["value"]) for m in models
    )
    assert row["mean of the drug"]["undefined"]["pearson_in_drug"] == "no drug has 10 test pairs"
    table = (output / "evaluation.md").read_text()
    assert "| drug response: lines held out, Pearson within a drug, median |" in table
    assert "320 pairs of 40 cell lines and 8 drugs, 60 genes, expression read as log2" in table
    assert "– (1)" in table and "lines: 40 cell lines" in table and (output / "scores.png").exists()
    card = read_evaluation(output / "evaluation.json", "rank", "lab/rank")
    assert any(result.task == "drug-response: random pairs" for result in card.results)
    again = CliRunner().invoke(app, given, catch_exceptions=False)
    assert again.exit_code == 0 and "drug-response is already evaluated" in again.output + (again.stderr or "")


def test_lines_are_evaluated_beside_cells(models, write_response, blood):
    done = cellglot.evaluate(
        {"rank": models["rank"]}, blood[:60], tasks=["clustering", "drug-response"], labels="cell_type",
        drug_response=write_response(), drug_values="relative", baselines=False,
    )  # fmt: skip
    assert "rank" in done.results["clustering"] and "rank" in done.results["drug-response: both held out"]
    assert "read as relative" in done.record.summary()


def test_what_is_missing_is_said(models, write_response, response_tables, blood):
    given = {"rank": models["rank"]}
    with pytest.raises(ValueError, match="needs a folder of drug response"):
        cellglot.evaluate(given, blood, tasks=["drug-response"])
    with pytest.raises(ValueError, match="'clustering' needs cells"):
        cellglot.evaluate(given, tasks=["clustering"], drug_response=write_response("a"))
    with pytest.raises(ValueError, match="pass cells, or a folder of drug response"):
        cellglot.evaluate(given)
    with pytest.raises(FileNotFoundError, match="folder of drug response"):
        cellglot.evaluate(given, drug_response="nowhere")
    table = response_tables["expression"].set_index("cell_line")
    scores = write_response("b", expression=(table - table.mean()).reset_index())
    with pytest.raises(ValueError, match="z-scores.*--drug-values relative"):
        cellglot.evaluate(given, drug_response=scores)


def test_without_rdkit_one_sentence_says_what_to_install(write_response, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match=r"pip install 'cellglot\[chemistry\]'"):
        read_drug_response(write_response())
