"""Models that classify cells, or the genes of cells, by a head on an encoder of rank-value tokens."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .cell_losses import joined_loss
from .gene_sums import joined_scores, joined_terms
from .input_checks import check_labels
from .label_losses import ONE_CLASS, in_units, problem_of
from .model_tasks import former_name


class _Classifier:
    """Part of a model class that has an encoder of cells, `dropout` and `classifier`."""

    encoder_name: str  # attribute of the encoder
    config: Any
    dropout: nn.Module
    classifier: nn.Module

    def _scores(self, states: torch.Tensor) -> torch.Tensor:
        """Return the classifier's scores of states, shape (..., hidden size) to (..., classes)."""
        return self.classifier(self.dropout(states))

    def _gene_sums(
        self,
        input_ids: Any,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        measured_genes: torch.Tensor | None,
    ) -> torch.Tensor | None:
        sums = getattr(self, "gene_sums", None)
        if sums is None:
            return None
        if position_ids is not None:
            raise ValueError("gene_sums=True needs each cell in a row of its own: pass no position_ids")
        return sums(input_ids, attention_mask, measured_genes)

    def _classify(
        self,
        states: str,
        inputs: tuple[torch.Tensor | None, ...],
        labels: torch.Tensor | None,
        loss_weights: torch.Tensor | None,
        num_items_in_batch: Any,
        kwargs: dict[str, Any],
        measured_genes: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """Return the output's fields, by one of the encoder's states."""
        config = self.config
        loss_weights = former_name(kwargs, "label_weights", loss_weights)
        if labels is not None and problem_of(config, labels) == ONE_CLASS:
            check_labels("labels", labels, config.num_labels, "classes")
        outputs = getattr(self, self.encoder_name)(*inputs, **kwargs)
        of_network = in_units(config, self._scores(getattr(outputs, states)))
        of_sums = self._gene_sums(inputs[0], inputs[1], inputs[2], measured_genes)
        terms = None if labels is None else joined_terms(config, of_network, of_sums, labels, loss_weights)
        return {
            "loss": joined_loss(terms, labels, num_items_in_batch, config.gather_cells),
            "logits": joined_scores(config, of_network, of_sums),
            "hidden_states": outputs.hidden_states,
            "attentions": outputs.attentions,
        }


class ClassifiesCells(_Classifier):
    """Part of a model class: its head classifies cells, or predicts a value of each."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        loss_weights: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
        measured_genes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Classify cells, or predict a value of each.

        Parameters
        ----------
        input_ids, attention_mask, position_ids
            As for the encoder.
        labels
            Shape (cells,): classes, -100 ignored, or values in their unit, NaN ignored. Shape (cells, classes): 0 or 1
            for each class of a multi-label problem; or, as bool, a set of classes for each cell, one of which is the
            right one: the loss is -log of their summed probability.
        loss_weights
            Weight of each cell in the loss of classes, shape (cells,). Its former name ``label_weights`` works too.
        num_items_in_batch
            Labels of the whole step that are not -100, over accumulated batches and processes, as
            `transformers.Trainer` counts them; see `cell_losses.join_losses`.
        measured_genes
            Whether each token is a gene that was measured, bool, shape (vocabulary,), for models with an imputation of
            the others, see `GeneSums`; from `GeneExpressionTokenizer.measured_genes`. By default all.

        Returns
        -------
        SequenceClassifierOutput
            ``loss``, if there are labels, and ``logits`` of shape (cells, classes), or the value in its unit, shape
            (cells, 1).

        Raises
        ------
        ValueError
            If a label is not a class.
        """
        inputs = (input_ids, attention_mask, position_ids)
        return SequenceClassifierOutput(
            **self._classify("pooler_output", inputs, labels, loss_weights, num_items_in_batch, kwargs, measured_genes)
        )


class ClassifiesGenes(_Classifier):
    """Part of a model class: its head classifies the genes of cells."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        loss_weights: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """Classify genes.

        Parameters
        ----------
        input_ids, attention_mask, position_ids
            As for the encoder.
        labels
            Class of each token, -100 ignored, of the shape of `input_ids`; for other kinds of problem see
            `label_losses.label_terms`.
        loss_weights
            Weight of each token in the loss of classes, shape (cells, tokens). Its former name ``label_weights`` works
            too.
        num_items_in_batch
            As for `ClassifiesCells`.

        Returns
        -------
        TokenClassifierOutput
            ``loss``, if there are labels: the mean over labelled tokens; and ``logits`` of shape (cells, tokens,
            classes).

        Raises
        ------
        ValueError
            If a label is not a class.
        """
        inputs = (input_ids, attention_mask, position_ids)
        return TokenClassifierOutput(
            **self._classify("last_hidden_state", inputs, labels, loss_weights, num_items_in_batch, kwargs)
        )


__all__ = ["ClassifiesCells", "ClassifiesGenes"]
