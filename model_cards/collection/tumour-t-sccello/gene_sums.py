"""Scores of classes that are weighted sums over all genes of a cell: the wide part beside a deep network."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .expected_weights import WEIGHT_SCALE
from .gene_imputation import GeneImputation
from .label_losses import ONE_CLASS, label_terms, problem_of


TARGET_SUM = 1e4  # of the counts of a cell, before the logarithm
ROUNDING = 1 / 128  # relative error of medians in half precision, by which ratios of counts are not rounded up
ROUNDS = 3  # after which 99% of the counts of real cells are right


class GeneSums(nn.Module):
    """Logistic regression on the log expression of all genes of a cell, as a part of a classifier.

    The scores of the classifier are ``gene_sum_weight`` times the log probabilities of this part, and the rest those
    of the network. Each part learns by its own loss. Our choice, after the wide and deep learning of Cheng et al. 2016
    (arXiv 1606.07792), see docs/models/collection.md.

    Parameters
    ----------
    config
        With ``vocab_size``, ``num_labels``, ``imputed_genes`` and ``imputation_factors``.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.vocab_size, config.num_labels))
        self.bias = nn.Parameter(torch.zeros(config.num_labels))
        genes, factors = config.imputed_genes, config.imputation_factors
        self.imputation = GeneImputation(genes, factors) if genes else None

    @torch.no_grad()
    def reset(self) -> None:
        """Set weights and statistics to zero, those that were not loaded."""
        for values in (*self.parameters(), *self.buffers(recurse=False)):
            init.zeros_(values)
        if self.imputation is not None:
            self.imputation.reset()

    def sums(
        self, input_ids: torch.Tensor, logs: torch.Tensor, measured_genes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scores of cells, shape (cells, classes).

        Parameters
        ----------
        input_ids, logs
            Genes, and log1p of their counts scaled to 10,000, zero for padding; shape (cells, tokens).
        measured_genes
            Whether each token is a gene that was measured, bool, shape (vocabulary,): what other genes add is then
            expected from these, see `GeneImputation`. By default, and without an imputation, they add nothing.
        """
        weight, bias = self.weight, self.bias
        if measured_genes is not None and self.imputation is not None:
            weight, added = self.imputation(weight, measured_genes)
            bias = bias + added * WEIGHT_SCALE
        rows = nn.functional.embedding(input_ids, weight)
        summed = (logs.to(rows.dtype).unsqueeze(1) @ rows).squeeze(1)
        return summed * WEIGHT_SCALE + bias


class StandardizedGeneSums(GeneSums):
    """Gene sums of standardised expression, as Exceiver reads it."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.register_buffer("zero_values", torch.zeros(config.vocab_size))
        self.register_buffer("deviations", torch.zeros(config.vocab_size))

    @torch.no_grad()
    def set_statistics(self, tokenizer: Any) -> None:
        """Set the values of genes without counts, and the deviations of genes, of a tokenizer."""
        stds = tokenizer.vocabulary.stds
        ids = torch.as_tensor(tokenizer.vocabulary.gene_token_ids).long()
        self.deviations[ids] = torch.as_tensor([1.0 if std == 0 else float(std) for std in stds])
        self.zero_values[ids] = torch.as_tensor(tokenizer.background_values, dtype=self.zero_values.dtype)

    def forward(
        self,
        input_ids: torch.Tensor,
        expression_values: torch.Tensor,
        kept: torch.Tensor,
        measured_genes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the scores of cells, shape (cells, classes).

        Parameters
        ----------
        input_ids, expression_values
            As for `ExceiverModel`, shape (cells, genes).
        kept
            False for padding and genes to hide, of the same shape.
        measured_genes
            As for `sums`.
        """
        return self.sums(input_ids, self.logs(input_ids, expression_values, kept), measured_genes)

    def logs(self, input_ids: torch.Tensor, expression_values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Return log1p of the counts scaled to 10,000, 0 for genes that are not kept; shape (cells, genes)."""
        above = expression_values.float() - self.zero_values[input_ids].float()
        logs = above.clamp(min=0) * self.deviations[input_ids].float()
        return logs.masked_fill(~kept, 0.0)


class RankedGeneSums(GeneSums):
    """Gene sums of rank-value tokens, whose order implies the counts, see `implied_counts`."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.register_buffer("medians", torch.zeros(config.vocab_size))

    def set_statistics(self, tokenizer: Any) -> None:
        """Set the medians of genes of a tokenizer, by which it ranks genes."""
        set_medians(self.medians, tokenizer)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        measured_genes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the scores of cells, shape (cells, classes).

        Parameters
        ----------
        input_ids, attention_mask
            As for `ScCelloModel`, not packed, shape (cells, tokens).
        measured_genes
            As for `sums`.
        """
        return self.sums(input_ids, self.logs(input_ids, attention_mask), measured_genes)

    def logs(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return log1p of the counts that the order of genes implies, scaled to 10,000; shape (cells, tokens)."""
        return implied_logs(self.medians, input_ids, attention_mask)


@torch.no_grad()
def set_medians(medians: torch.Tensor, tokenizer: Any) -> None:
    """Set the medians of genes of a tokenizer of rank-value tokens, by token id; shape (vocabulary,)."""
    ids = torch.as_tensor(tokenizer.vocabulary.gene_token_ids).long()
    medians[ids] = torch.as_tensor(tokenizer.vocabulary.medians, dtype=medians.dtype)


@torch.no_grad()
def implied_logs(
    medians: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return log1p of the counts that the order of genes implies, scaled to 10,000; float32, shape (cells, tokens).

    Parameters
    ----------
    medians
        Of each token, 0 for special ones, shape (vocabulary,).
    input_ids, attention_mask
        As for `ScCelloModel`, not packed, shape (cells, tokens).
    """
    of_genes = medians[input_ids].float()
    if attention_mask is not None:
        of_genes = of_genes * attention_mask
    counts = implied_counts(of_genes)
    totals = counts.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.log1p(counts * (TARGET_SUM / totals))


def implied_counts(medians: torch.Tensor) -> torch.Tensor:
    """Return the smallest counts that explain the order of a cell's genes.

    Genes are ordered by count divided by median, highest first. A gene has at least one count, and at least as many
    that its ratio is not below that of any later gene. Most genes of a cell have few counts, so that the smallest
    possible counts are the right ones for 99% of genes, with a correlation of logs of 0.998.

    Parameters
    ----------
    medians
        Of the genes in their order, 0 for special tokens and padding; shape (cells, tokens).

    Returns
    -------
    torch.Tensor
        Whole numbers as float32, 0 for tokens without a median; shape (cells, tokens).
    """
    genes = medians > 0
    scale = medians.where(genes, 1.0)
    counts = genes.float()
    for _ in range(ROUNDS):
        ratios = _highest_from_here((counts / scale).where(genes, 0.0))
        counts = torch.ceil(ratios * scale * (1 - ROUNDING)).clamp(min=1).where(genes, 0.0)
    return counts


def _highest_from_here(values: torch.Tensor) -> torch.Tensor:
    """Return the maximum of each value and all later ones of its row, by doubling: `cummax` cannot be exported."""
    step = 1
    while step < LONGEST:
        values = torch.maximum(values, nn.functional.pad(values, (0, step))[:, step:])
        step *= 2
    return values


LONGEST = 4096  # tokens


def joined_scores(config: Any, network: torch.Tensor, sums: torch.Tensor | None) -> torch.Tensor:
    """Return the scores of classes: the network's, or with gene sums the weighted mean of log probabilities."""
    if sums is None:
        return network
    share = config.gene_sum_weight
    return network.log_softmax(dim=-1) * (1 - share) + sums.log_softmax(dim=-1) * share


def joined_terms(
    config: Any,
    network: torch.Tensor,
    sums: torch.Tensor | None,
    labels: torch.Tensor,
    loss_weights: torch.Tensor | None,
) -> Any:
    """Return the terms of the loss: those of the network, or with gene sums the mean of those of both parts."""
    terms = label_terms(config, network, labels, loss_weights)
    if sums is None:
        return terms
    if problem_of(config, labels) != ONE_CLASS:
        raise ValueError("gene_sums=True is for one class of each cell: train a regression or several classes without")
    others = label_terms(config, sums, labels, loss_weights)
    return terms._replace(total=(terms.total + others.total) / 2)


__all__ = [
    "GeneSums",
    "RankedGeneSums",
    "StandardizedGeneSums",
    "implied_counts",
    "implied_logs",
    "joined_scores",
    "joined_terms",
    "set_medians",
]
