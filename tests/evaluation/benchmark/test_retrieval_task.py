"""The task "retrieval": texts for cells and cells for texts."""

import numpy as np
import pytest
from rich.console import Console

from cellglot.evaluation.benchmark.evaluate import evaluate_models
from cellglot.evaluation.benchmark.jobs import JobMaker, Settings
from cellglot.evaluation.benchmark.models import load_evaluated_model
from cellglot.evaluation.benchmark.record import EvaluationRecord
from cellglot.evaluation.benchmark.retrieval import RetrievalJobs
from cellglot.evaluation.benchmark.runner import Runner
from cellglot.evaluation.labelled_cells import open_labelled_cells
from cellglot.evaluation.search.retrieval import recall_at_k
from cellglot.evaluation.text_model import embed_texts
from cellglot.tokenization import CellOntology


SMALL = {"draws": 20, "progress": False, "device": "cpu", "tasks": ["retrieval"]}


@pytest.fixture(scope="module")
def jobs(blood):
    return RetrievalJobs(open_labelled_cells(blood), CellOntology.shipped(), 100, draws=20)


@pytest.fixture(scope="module")
def model(cell_text_folder):
    return load_evaluated_model(cell_text_folder, name="langcell", device="cpu")


def test_scores_are_those_of_recall_at_k(jobs, model, blood, model_folders):
    models = {"langcell": model, "values": load_evaluated_model(model_folders["model"], name="values", device="cpu")}
    done = evaluate_models(list(models.values()), blood, retrieval_cells=100, **SMALL)
    found = done.results["retrieval"]
    assert set(found) == {"langcell"}  # the other reads no texts
    numbers, ids = jobs.drawn
    texts = [own[0] for own in jobs.candidates.texts]
    assert found["langcell"].details["cells"] == len(numbers) == 100 and len(texts) == 10
    assert all(text.startswith("cell type: ") for text in texts) and "Antigen-presenting" in texts[-1]
    cells = model.embed_cells(blood[numbers], progress=False)
    expected = recall_at_k(cells, embed_texts(model.network, model.processor, texts, device="cpu"), ids)
    for name, score in found["langcell"].metrics.items():
        assert score.value == pytest.approx(expected[name]) and 0 <= score.low <= score.value <= score.high <= 1
        assert found["langcell"].details["chance"][name] == pytest.approx(expected[f"{name}_chance"])
    assert "cell_to_text_recall@10" not in found["langcell"].metrics  # all of them
    assert "retrieval: texts for cells, recall@5" in done.table()
    assert "Chance of recall@1, 5 and 10: texts for cells 0.100, 0.500, 1.000" in done.record.summary()


def test_cells_that_are_their_text_are_found(jobs, model):
    texts = embed_texts(model.network, model.processor, [own[0] for own in jobs.candidates.texts], device="cpu")
    embedding = np.full((len(jobs.data), texts.shape[1]), np.nan, dtype=np.float32)
    numbers, ids = jobs.drawn
    embedding[numbers] = texts[ids]
    embedding[numbers[0]] = np.nan
    result = jobs.of_model(model, lambda: embedding)["retrieval"]
    assert all(score.value == 1 for score in result.metrics.values()) and len(result.metrics) == 5
    assert result.details["cells_without_embedding"] == 1 and result.details["cells"] == 99


def test_without_two_labels_it_is_undefined(blood, model):
    one = blood[:20].copy()
    one.obs["cell_type"] = "B cell"
    done = evaluate_models([model], one, **SMALL)
    assert "1 cell type" in done.results["retrieval"]["langcell"].undefined["cell_to_text_recall@1"]
    bare = blood[:40].copy()
    del bare.obs["cell_type"]
    done = evaluate_models([model], bare, **SMALL)
    assert "no cell types" in done.results["retrieval"]["langcell"].undefined["cell_to_text_recall@1"]


@pytest.mark.parametrize("asked", [True, False])
def test_that_a_model_reads_no_texts_is_said_if_retrieval_is_asked_for(blood, model_folders, capsys, asked):
    values = load_evaluated_model(model_folders["model"], name="values", device="cpu")
    jobs = JobMaker(open_labelled_cells(blood[:40].copy()), Settings(), CellOntology.shipped())
    record = EvaluationRecord.open(None, {})
    runner = Runner(jobs, ["retrieval"], lambda task: {}, record, Console(), asked=["retrieval"] * asked)
    runner.model(values, "values")
    assert ("values: no retrieval" in capsys.readouterr().out) == asked
