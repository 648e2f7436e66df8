"""A record of each model: how to make it and its batches; and what every check of a model does with both.

A new family is a class with `make` and `batch`, and its rows in `RECORDS`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from cellglot.modeling import (
    ExceiverForMaskedExpression,
    ExceiverForSequenceClassification,
    ExceiverModel,
    LangCellCellModel,
    LangCellForPreTraining,
    LangCellForSequenceClassification,
    LangCellForTokenClassification,
    LangCellModel,
    LangCellTextModel,
    ScCelloForMaskedLM,
    ScCelloForPreTraining,
    ScCelloForSequenceClassification,
    ScCelloForTokenClassification,
    ScCelloModel,
)


LEVELS = torch.tensor([[9, 1, 4, 3, 2], [1, 9, 2, 5, 2], [4, 2, 9, 3, 1], [3, 5, 3, 9, 1], [2, 2, 1, 1, 9]])
ANCESTORS = torch.eye(5, dtype=torch.bool)
ANCESTORS[1:, 0] = True


# -------------------------------------------------------------------- families


class Exceiver:
    """40 genes; padding is 40."""

    padding = {"input_ids": 40, "expression_values": 7.0, "attention_mask": 0, "masked_genes": False}

    @staticmethod
    def make(model_class, config, **changes):
        torch.manual_seed(0)
        model = model_class(config(**{"num_labels": 3, **changes}))
        getattr(model, "exceiver", model).set_background_values(torch.randn(40))
        return model.eval()

    @staticmethod
    def batch(model, lengths=(17, 9, 24), seed=0, **more):
        """Cells of these lengths, padded; masked genes and queries where the model takes them."""
        random = torch.Generator().manual_seed(seed)
        shape = len(lengths), max(lengths)
        batch = {
            "input_ids": torch.full(shape, 40),
            "expression_values": torch.zeros(shape),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "masked_genes": torch.zeros(shape, dtype=torch.bool),
        }
        for cell, n in enumerate(lengths):
            batch["input_ids"][cell, :n] = torch.randperm(40, generator=random)[:n].sort().values
            batch["expression_values"][cell, :n] = 1 + torch.randn(n, generator=random)
            batch["attention_mask"][cell, :n] = 1
            batch["masked_genes"][cell, torch.randperm(n, generator=random)[: n // 4]] = True
        if not isinstance(model, ExceiverModel):
            queries = torch.randint(0, 40, (len(lengths), 5), generator=random)
            queries[0, -1] = 40  # padded
            targets = torch.randn(len(lengths), 5, generator=random)
            batch["query_ids"] = queries
            if isinstance(model, ExceiverForSequenceClassification):
                batch |= {"labels": torch.arange(len(lengths)) % 3, "expression_labels": targets}
            else:
                batch["labels"] = targets
        return batch | more


class ScCello:
    """39 genes and the special tokens, five cell types."""

    padding = {"input_ids": 0, "attention_mask": 0, "labels": -100}

    @staticmethod
    def make(model_class, config, **changes):
        torch.manual_seed(0)
        model = model_class(config(**{"num_labels": 3, **changes}))
        if model_class is ScCelloForPreTraining:
            model.set_ontology(LEVELS, ANCESTORS)
        return model.eval()

    @staticmethod
    def batch(model, lengths=(17, 9, 24, 13), seed=0, **more):
        """Cells of these lengths, padded, with the labels that the model takes."""
        random = torch.Generator().manual_seed(seed)
        shape = len(lengths), max(lengths)
        input_ids = torch.randint(2, 41, shape, generator=random)
        input_ids[:, 0] = 41
        mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
        drawn = (torch.rand(shape, generator=random) < 0.3) & mask
        drawn[:, 0] = False
        batch = {"input_ids": input_ids.masked_fill(~mask, 0), "attention_mask": mask.long()}
        if isinstance(model, (ScCelloForPreTraining, ScCelloForMaskedLM)):
            batch["labels"] = batch["input_ids"].masked_fill(~drawn, -100)
            batch["input_ids"] = batch["input_ids"].masked_fill(drawn, 1)
        if isinstance(model, ScCelloForPreTraining):
            batch["cell_type_ids"] = torch.tensor([3, 0, 3, 1, 4, 2])[: len(lengths)]
        if isinstance(model, ScCelloForSequenceClassification):
            batch["labels"] = torch.arange(len(lengths)) % 3
        if isinstance(model, ScCelloForTokenClassification):
            batch["labels"] = torch.randint(0, 3, shape, generator=random).masked_fill(~drawn, -100)
        return batch | more


class LangCell:
    """39 genes and the special tokens; texts of a vocabulary of 50."""

    padding = {
        "input_ids": 0, "attention_mask": 0, "text_input_ids": 0, "text_attention_mask": 0, "labels": -100,
        "cell_hidden_states": 9.0, "cell_attention_mask": 0,
    }  # fmt: skip

    @staticmethod
    def make(model_class, config, **changes):
        torch.manual_seed(0)
        made = config(**{"num_labels": 3, **changes})
        tower = {LangCellCellModel: "cell_config", LangCellTextModel: "text_config"}.get(model_class)
        return model_class(getattr(made, tower) if tower else made).eval()

    @staticmethod
    def rows(lengths, low, high, first, random):
        """Random tokens behind a first one, padded by 0; and where there are some."""
        rows = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
        for row, length in enumerate(lengths):
            rows[row, :length] = torch.randint(low, high, (length,), generator=random)
        rows[:, 0] = first
        return rows, (rows != 0).long()

    @classmethod
    def batch(cls, model, lengths=(13, 7, 10), texts=(9, 4, 6), seed=0):
        """Cells and texts of these lengths, and what else the model takes."""
        random = torch.Generator().manual_seed(seed)
        input_ids, mask = cls.rows(lengths, 2, 41, 41, random)
        text_input_ids, text_mask = cls.rows(texts, 5, 50, 2, random)
        if isinstance(model, LangCellTextModel):
            return {
                "input_ids": text_input_ids,
                "attention_mask": text_mask,
                "cell_hidden_states": torch.randn(len(lengths), max(lengths), 16, generator=random),
                "cell_attention_mask": mask,
            }
        batch = {"input_ids": input_ids, "attention_mask": mask}
        if isinstance(model, LangCellModel):
            batch |= {"text_input_ids": text_input_ids, "text_attention_mask": text_mask}
        if isinstance(model, LangCellForPreTraining):
            masked = (torch.rand(input_ids.shape, generator=random) < 0.3) & (input_ids > 1) & (input_ids < 41)
            batch |= {"input_ids": input_ids.masked_fill(masked, 1), "labels": input_ids.masked_fill(~masked, -100)}
        if isinstance(model, LangCellForSequenceClassification):
            batch["labels"] = torch.arange(len(lengths)) % 3
        if isinstance(model, LangCellForTokenClassification):
            batch["labels"] = (input_ids % 3).masked_fill(mask == 0, -100)
        return batch


# -------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Record:
    """A model that every check runs on.

    Parameters
    ----------
    family
        How models of its family and their batches are made.
    model_class, auto
        Its class, and the Auto class that loads it.
    changes
        Fields of its family's tiny configuration that differ.
    rows
        Outputs that have a row for each cell, which no other cell has a part in.
    compiled
        Whether the long tests compile it to machine code, too.
    """

    family: Any
    model_class: type
    auto: str
    changes: dict[str, Any] = field(default_factory=dict)
    rows: tuple[str, ...] = ("last_hidden_state", "pooler_output")
    compiled: bool = False

    def __str__(self):
        return "-".join((self.model_class.__name__, *(str(v) for v in self.changes.values())))

    def model(self, fixture, **changes):
        config = fixture(f"{self.family.__name__.lower()}_config")
        return self.family.make(self.model_class, config, **self.changes, **changes)

    def batch(self, model, **options):
        return self.family.batch(model, **options)


def padded(record, batch, more):
    """Return the batch with so many more places of padding in each row of tokens."""
    wider = dict(batch)
    for name, value in record.family.padding.items():
        if name not in batch or (name == "labels" and batch[name].shape != batch["input_ids"].shape):
            continue
        places = (0, 0, 0, more) if batch[name].ndim == 3 else (0, more)
        wider[name] = torch.nn.functional.pad(batch[name], places, value=value)
    return wider


CELLS, GENES = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
STATES, EXPRESSION = ("last_hidden_state",), ("last_hidden_state", "predicted_expression")
RECORDS = (
    *(
        Record(Exceiver, model_class, auto, {"unexpressed_genes": mode}, rows, rows is EXPRESSION)
        for mode in ("exclude", "bias")
        for model_class, auto, rows in (
            (ExceiverModel, "AutoModel", ("last_hidden_state", "pooler_output")),
            (ExceiverForMaskedExpression, "AutoModelForMaskedLM", EXPRESSION),
            (ExceiverForSequenceClassification, CELLS, ("last_hidden_state", "predicted_expression", "logits")),
        )
    ),
    Record(ScCello, ScCelloModel, "AutoModel"),
    Record(
        ScCello, ScCelloForPreTraining, "AutoModelForPreTraining", rows=(*STATES, "cell_representation"), compiled=True
    ),
    Record(ScCello, ScCelloForMaskedLM, "AutoModelForMaskedLM", rows=("logits",)),
    Record(ScCello, ScCelloForSequenceClassification, CELLS, rows=("logits",)),
    Record(ScCello, ScCelloForTokenClassification, GENES, rows=("logits",)),
    Record(
        LangCell,
        LangCellModel,
        "AutoModel",
        rows=("last_hidden_state", "pooler_output", "text_last_hidden_state", "text_features"),
    ),
    Record(LangCell, LangCellCellModel, "AutoModel"),
    Record(LangCell, LangCellTextModel, "AutoModel", rows=STATES, compiled=True),
    Record(LangCell, LangCellForPreTraining, "AutoModelForPreTraining", rows=("pooler_output", "text_features")),
    Record(LangCell, LangCellForSequenceClassification, CELLS, rows=("logits",)),
    Record(LangCell, LangCellForTokenClassification, GENES, rows=("logits",)),
)


# -------------------------------------------------------------------- what is compared


def outputs(model, batch, seed=1):
    """Tensors of the output, states of padding as zeros; hard negatives and dropout are drawn from the seed."""
    torch.manual_seed(seed)
    found = {n: v for n, v in model(**batch).items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    for name, mask in (("last_hidden_state", "attention_mask"), ("text_last_hidden_state", "text_attention_mask")):
        if name in found and mask in batch and found[name].shape[:2] == batch[mask].shape:
            found[name] = found[name] * batch[mask][..., None]
    return found


def assert_same(a, b, tolerance=2e-5):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=tolerance, atol=tolerance), name


def some_loss(states):
    """Depend on every state; a plain sum of squares does not change under a layer norm."""
    weights = torch.randn(states[0].numel(), generator=torch.Generator().manual_seed(3))
    return (states.flatten(1) * weights).sum()


def gradients(model, batch, seed=1):
    """Gradients of the loss, or of something that depends on all of the output."""
    model.zero_grad()
    torch.manual_seed(seed)
    result = model(**batch)
    loss = result.get("loss")
    if loss is None:
        names = ("logits", "pooler_output", "last_hidden_state")
        loss = sum(some_loss(result[name]) for name in names if result.get(name) is not None)
    loss.backward()
    return {
        name.removeprefix("_orig_mod."): p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def assert_same_gradients(a, b, tolerance=2e-4):
    assert a.keys() == b.keys()
    largest = max(float(gradient.abs().max()) for gradient in a.values())
    for name in a:  # some gradients are zero but for rounding: the bias of keys shifts all logits alike
        scale = max(float(a[name].abs().max()), 0.01 * largest)
        assert torch.allclose(a[name], b[name], rtol=tolerance, atol=tolerance * scale), name


def without_dropout(model):
    """Switch dropout off, so that a model in training has one result."""
    for config in (model.config, *(getattr(model.config, f"{t}_config", None) for t in ("cell", "text"))):
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if hasattr(config, name):
                setattr(config, name, 0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model
