"""The losses of few-shot learning: a LangCell compares cells with the texts of classes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from cellglot.modeling.cell_losses import count_items, cross_entropy_terms, join_losses
from cellglot.modeling.modeling_langcell import LangCellModel


ALPHA = 0.1


@dataclass
class FewShotOutput(ModelOutput):
    """Output of `FewShotObjective`.

    Parameters
    ----------
    loss
        Sum of both losses.
    similarity_loss
        Cross entropy of the similarity logits over the texts of the classes.
    matching_loss
        Cross entropy of P(match) over the texts of the classes.
    logits
        Scores of zero-shot annotation, shape (cells, classes).
    """

    loss: torch.Tensor | None = None
    similarity_loss: torch.Tensor | None = None
    matching_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class FewShotObjective(nn.Module):
    """A LangCell with the texts of the classes, and the losses of few-shot learning.

    The losses are those of the released code: the cross entropy of cosines over tau, and that of P(match), which is
    used like logits, as in zero-shot annotation.

    Parameters
    ----------
    model
        Both encoders and their projections are trained. The matching head is not, as in the released code.
    text_input_ids, text_attention_mask
        Text of each class, shape (classes, tokens).
    alpha
        Weight of similarity in the scores.
    """

    def __init__(
        self,
        model: LangCellModel,
        text_input_ids: torch.Tensor,
        text_attention_mask: torch.Tensor,
        alpha: float = ALPHA,
    ):
        super().__init__()
        self.model, self.config, self.alpha = model, model.config, alpha
        self.register_buffer("text_input_ids", text_input_ids, persistent=False)
        self.register_buffer("text_attention_mask", text_attention_mask, persistent=False)
        model.requires_grad_(True)
        model.matching_head.requires_grad_(False)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: Any = None,
    ) -> FewShotOutput:
        """Compare cells with the text of every class.

        Parameters
        ----------
        input_ids, attention_mask
            Cells, shape (cells, tokens).
        labels
            Class of each cell, -100 for none, shape (cells,).
        num_items_in_batch
            As for `LangCellForPreTraining`.
        """
        model, texts = self.model, (self.text_input_ids, self.text_attention_mask)
        similarity = model(input_ids, attention_mask, *texts).logits
        matching = model.match(input_ids, attention_mask, *texts)
        parts = {
            "similarity_loss": cross_entropy_terms(similarity, labels),
            "matching_loss": cross_entropy_terms(matching, labels),
        }
        number = count_items(labels, parts["similarity_loss"].count)
        losses = join_losses(parts, number, num_items_in_batch, torch.is_grad_enabled())
        scores = self.alpha * similarity.softmax(dim=1) + (1 - self.alpha) * matching.softmax(dim=1)
        return FewShotOutput(loss=losses["similarity_loss"] + losses["matching_loss"], **losses, logits=scores)


__all__ = ["ALPHA", "FewShotObjective", "FewShotOutput"]
