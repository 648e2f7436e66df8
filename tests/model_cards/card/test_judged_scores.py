import json

from cellglot.evaluation.scores.bootstrap import Score
from cellglot.evaluation.scores.task_result import TaskResult
from cellglot.model_cards.card.evaluation import read_evaluation


def test_embeddings_without_batches_are_not_another_model(tmp_path):
    """Scores of judges are on the card, those of the model after Harmony are not: it is not what is published."""

    def result(value):
        facts = {"package": "scib-metrics 0.5.10", "cells": 700}
        return TaskResult({"total": Score(value)}, {}, facts).to_dict()

    content = {
        "command": "python study.py",
        "arguments": {"tasks": ["clustering", "scib-metrics"], "seed": 1},
        "data": {"source": "blood.h5ad", "sha256": "0" * 64, "cells": 700, "cells_without_label": 0},
        "models": {"m": {}, "m + Harmony": {"batches_removed_of": "chip"}, "HVG": {"baseline": True}},
        "results": {"scib-metrics": {"m": result(0.5), "m + Harmony": result(0.9), "HVG": result(0.4)}},
        "seconds": 3.0,
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    found = read_evaluation(tmp_path / "evaluation.json", "folder", "mine")
    assert "| | mine | *HVG* |" in found.table and "| scib-metrics: total | **0.500** | 0.400 |" in found.table
    assert found.command == "cellglot evaluate mine --cells blood.h5ad --tasks clustering --with scib-metrics --seed 1"
    assert [r.value for r in found.results] == [0.5] and "its own code on 700 cells" in found.summary
