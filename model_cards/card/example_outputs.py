"""Outputs of a model for the example cells of its card."""

from typing import Any

import numpy as np

from cellglot.model_cards.card.example_cells import ExampleCells, as_input
from cellglot.model_cards.card.facts import Example, ModelFacts
from cellglot.model_cards.checks.clean_process import Outcome


SHOWN_SCORES = 3
SHOWN_VALUES = 5


def make_examples(facts: ModelFacts, cells: ExampleCells, outcome: Outcome, tokenizer: Any) -> list[Example]:
    """Return the example cells with the model's outputs; `tokenizer` is that of the cells."""
    head = "PeftModel" if facts.adapter is not None else facts.auto_class
    names = {"zero-shot annotation": "AutoModel.annotate: scores", "embedding": "AutoModel: pooler_output"}
    values = outcome.arrays[names.get(facts.purpose, f"{head}: logits")]
    examples = [Example(name, as_input(cell)) for name, cell in zip(cells.names, cells.cells, strict=True)]
    for number, example in enumerate(examples):
        row = np.asarray(values[number], dtype=np.float64)
        example.size = row.size
        if facts.purpose == "gene classification":
            tokens = np.asarray(outcome.arrays["AutoTokenizer: input_ids"][number])
            example.scores = _of_genes(row, tokens, facts.labels, tokenizer)
        elif facts.purpose == "zero-shot annotation":
            example.scores = _best(row / row.sum(), facts.candidates)
        elif facts.purpose == "multi-label classification":
            example.scores = _best(1 / (1 + np.exp(-row)), facts.labels)
        elif facts.labels:
            example.scores = _best(_softmax(row), facts.labels)
        else:
            example.values = [round(float(v), 4) for v in row.ravel()[:SHOWN_VALUES]]
    return examples


def _softmax(row: np.ndarray) -> np.ndarray:
    raised = np.exp(row - row.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def _best(scores: np.ndarray, classes: list[str]) -> list[tuple[str, float]]:
    order = np.argsort(-scores, kind="stable")[:SHOWN_SCORES]
    return [(classes[i], round(float(scores[i]), 4)) for i in order]


def _of_genes(row: np.ndarray, tokens: np.ndarray, classes: list[str], tokenizer: Any) -> list[tuple[str, float]]:
    """Return the classes of the first genes of a cell, without special tokens."""
    places = [i for i, token in enumerate(tokens.tolist()) if token not in tokenizer.all_special_ids][:SHOWN_SCORES]
    scores = _softmax(row[places])
    names = [
        f"{tokenizer.decode([int(tokens[i])])}: {classes[int(s.argmax())]}"
        for i, s in zip(places, scores, strict=True)
    ]
    return [(name, round(float(s.max()), 4)) for name, s in zip(names, scores, strict=True)]


__all__ = ["make_examples"]
