"""Every model and head as a stranger uses them: their folders, inputs and labels; for scripts without cellglot.

Nothing of cellglot is imported here, so that a process without it can use this file, too.
"""

from typing import NamedTuple

import torch
import transformers


GENES, CELLS = 60, 6


class PlainModel(NamedTuple):
    """A head as it is loaded from the folder of its model.

    Parameters
    ----------
    model
        Name of the folder: ``"exceiver"``, ``"sccello"`` or ``"langcell"``.
    auto_class
        By which it is loaded.
    labels
        Kind of labels: ``"cells"``, ``"genes"``, ``"tokens"``, ``"expression"`` or ``"objectives"``; empty where there
        is no loss.
    prediction
        Output that ``compute_metrics`` gets.
    """

    model: str
    auto_class: str
    labels: str
    prediction: str

    def load(self, root, **options):
        """Load the model from its folder in `root`."""
        torch.manual_seed(0)
        kind = getattr(transformers, self.auto_class)
        return kind.from_pretrained(f"{root}/{self.model}", trust_remote_code=True, **options)

    def batch(self, cells=CELLS, seed=0, labelled=True):
        """Make a batch of cells, with labels of which some are missing."""
        draw = torch.Generator().manual_seed(seed)
        lengths = torch.randint(8, 20, (cells,), generator=draw).tolist()
        width = max(lengths)
        genes = torch.stack([torch.randperm(GENES, generator=draw)[:width] for _ in range(cells)])
        there = torch.arange(width) < torch.tensor(lengths)[:, None]
        if self.model == "exceiver":
            values = torch.randn(cells, width, generator=draw) + 1
            batch = {"input_ids": genes.where(there, GENES), "expression_values": values.where(there, 0.0)}
        else:
            genes = genes + 2
            genes[:, 0] = GENES + 2
            batch = {"input_ids": genes.where(there, 0)}
        batch["attention_mask"] = there.long()
        if labelled:
            batch |= self._labels(batch["input_ids"], there, draw)
        return batch

    def _labels(self, ids, there, draw):
        chosen = there & (torch.rand(ids.shape, generator=draw) < torch.linspace(0.2, 0.8, len(ids))[:, None])
        if self.labels == "cells":
            labels = torch.arange(len(ids)) % 3
            labels[1::4] = -100
            return {"labels": labels}
        if self.labels == "expression":
            values = torch.randn(ids.shape, generator=draw) + 1
            return {"query_ids": ids.where(chosen, GENES), "labels": values.where(chosen, -100.0)}
        if self.labels == "genes":
            return {"labels": (ids % 3).where(chosen, -100)}
        given = {"labels": ids.where(chosen, -100)} if self.labels else {}
        if self.labels == "objectives" and self.model == "sccello":
            given["cell_type_ids"] = torch.arange(len(ids)) % 3
        if self.labels == "objectives" and self.model == "langcell":
            texts = torch.arange(len(ids))[:, None] % 3 * 4 + torch.arange(2, 6)
            given |= {"text_input_ids": texts, "text_attention_mask": torch.ones_like(texts)}
        return given


SEQUENCES, TOKENS = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
MODELS = (
    PlainModel("exceiver", "AutoModel", "", "pooler_output"),
    PlainModel("exceiver", "AutoModelForMaskedLM", "expression", "predicted_expression"),
    PlainModel("exceiver", SEQUENCES, "cells", "logits"),
    PlainModel("sccello", "AutoModel", "", "pooler_output"),
    PlainModel("sccello", "AutoModelForPreTraining", "objectives", "cell_representation"),
    PlainModel("sccello", "AutoModelForMaskedLM", "tokens", "logits"),
    PlainModel("sccello", SEQUENCES, "cells", "logits"),
    PlainModel("sccello", TOKENS, "genes", "logits"),
    PlainModel("langcell", "AutoModel", "", "pooler_output"),
    PlainModel("langcell", "AutoModelForPreTraining", "objectives", "pooler_output"),
    PlainModel("langcell", SEQUENCES, "cells", "logits"),
    PlainModel("langcell", TOKENS, "genes", "logits"),
)


def save_models(root):
    """Write the folder of each model, by cellglot, with the weights of its pretraining."""
    from cellglot.modeling import (
        ExceiverConfig,
        ExceiverForMaskedExpression,
        LangCellConfig,
        LangCellForPreTraining,
        ScCelloConfig,
        ScCelloForPreTraining,
    )

    torch.manual_seed(0)
    small = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    cells = small | {"vocab_size": GENES + 3, "max_position_embeddings": 24}
    still = {"hidden_dropout_prob": 0.0}
    exceiver = ExceiverForMaskedExpression(
        ExceiverConfig(
            **small | {"intermediate_size": 300}, vocab_size=GENES + 2, gene_embedding_size=8, num_latents=4
        )
    )
    exceiver.exceiver.set_background_values(torch.linspace(0.2, 0.9, GENES))
    sccello = ScCelloForPreTraining(ScCelloConfig(**cells, **still, num_cell_types=3))
    levels = torch.tensor([[3, 1, 0], [1, 3, 0], [0, 0, 3]])
    sccello.set_ontology(levels, torch.eye(3, dtype=torch.bool))
    text = small | still | {"vocab_size": 20, "max_position_embeddings": 8, "attention_probs_dropout_prob": 0.0}
    langcell = LangCellForPreTraining(
        LangCellConfig(cell_config=cells | still, text_config=text, projection_dim=8, tau=0.2)
    )
    for name, model in (("exceiver", exceiver), ("sccello", sccello), ("langcell", langcell)):
        model.save_pretrained(f"{root}/{name}")
