"""``pipeline("fill-gene-expression", ...)``: what a model expects of genes that are hidden from it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .cell_pipeline import CellPipeline, cells_with_genes


class FillGeneExpressionPipeline(CellPipeline):
    """Expected expression of genes (Exceiver), or ranked candidates in their place (scCello, LangCell).

    Exceiver: the expression of each target that the model expects from the cell's other genes, as logarithm of
    normalised counts (log1p, in the tokenizer's total), and standardised as the model computes it. A target that the
    cell expresses is hidden from the model. scCello and LangCell: the tokens of the targets are replaced by
    ``<mask>``, all at once, and the genes are ranked that the model would put there.

    Parameters
    ----------
    model
        A pretrained model with its head of masked genes.
    *args
        The tokenizer, as for `CellPipeline`, which also lists the forms of cells.
    **kwargs
        As for `CellPipeline`. Options of a call, or their defaults:
        ``targets``: the genes, by symbol, alias or Ensembl id.
        ``top_k``: scCello and LangCell: number of candidates, 5 by default.

    Examples
    --------
    >>> fill = pipeline("fill-gene-expression", model=folder, trust_remote_code=True)
    >>> fill(adata, targets=["CD79A"])[0]
    [{'gene': 'CD79A', 'gene_id': 'ENSG00000105369', 'expression': 1.62, 'standardized': 0.84}]
    """

    of_a_call = (*CellPipeline.of_a_call, "targets", "target_ids")
    options_of_model = ("targets", "top_k")

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        self.targets: list[str] = []
        self.target_ids = np.zeros(0, dtype=np.int64)
        self.predicts_values = hasattr(model, "expression_head")
        if not self.predicts_values and not hasattr(model, "masked_gene_scores"):
            name = model.config.name_or_path or type(model).__name__
            raise ValueError(f"{name}: {type(model).__name__} has no head of masked genes: take the pretrained model")
        super().__init__(model, *args, **kwargs)

    def prepare(
        self, targets: str | Sequence[str] | None = None, top_k: int | None = None, **of_model: Any
    ) -> dict[str, Any]:
        """Find the targets in the vocabulary.

        Parameters
        ----------
        targets, top_k
            As the class says.
        **of_model
            Further options of the model.

        Raises
        ------
        ValueError
            If there are no targets, one is unknown, or `top_k` is below 1 or for a model of expression.
        """
        named = [targets] if isinstance(targets, str) else list(targets or [])
        if not named:
            raise ValueError('no genes to fill: name them, targets=["CD79A", ...]')
        if top_k is not None and self.predicts_values:
            raise ValueError("top_k is for models that rank genes (scCello, LangCell): Exceiver predicts a value")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}: it has to be at least 1")
        try:
            self.target_ids = np.asarray(self.tokenizer.find_genes(named), dtype=np.int64)
        except KeyError as error:
            raise ValueError(f"targets: {error.args[0]}") from error
        self.targets = named
        return {} if self.predicts_values else {"top_k": min(5 if top_k is None else top_k, self._number_of_genes())}

    def _number_of_genes(self) -> int:
        return len(self.tokenizer.vocabulary.genes)

    def _forward(self, batch: dict[str, torch.Tensor], **of_model: Any) -> dict[str, torch.Tensor]:
        asked = torch.from_numpy(self.target_ids).to(batch["input_ids"].device)
        if not self.predicts_values:
            return {"values": self._candidates(batch, asked, of_model["top_k"])}
        queries = asked.expand(len(batch["input_ids"]), -1)
        hidden = torch.isin(batch["input_ids"], asked)
        values = self.model(**batch, query_ids=queries, masked_genes=hidden).predicted_expression.float()
        known = cells_with_genes(batch, self.tokenizer)
        return {"values": values.masked_fill(~known[:, None], float("nan"))}

    def _candidates(self, batch: dict[str, torch.Tensor], asked: torch.Tensor, top_k: int) -> torch.Tensor:
        """Return ids and scores of the best genes, shape (cells, targets, 2, top_k); NaN for genes not expressed."""
        ids = batch["input_ids"]
        found = ids[:, :, None] == asked
        hidden = found.any(dim=2)
        values = torch.full((len(ids), len(asked), 2, top_k), float("nan"), device=ids.device)
        if hidden.any():
            inputs = batch | {"input_ids": ids.masked_fill(hidden, self.model.config.mask_token_id)}
            logits = self.model.masked_gene_scores(**inputs).float()
            special = [number for number in self.tokenizer.all_special_ids if number is not None]
            logits[:, special] = float("-inf")
            best = logits.softmax(dim=-1).topk(top_k)
            cells, places = hidden.nonzero(as_tuple=True)
            which = found[cells, places].long().argmax(dim=1)
            values[cells, which] = torch.stack([best.indices.float(), best.values], dim=1)
        return values

    def postprocess(self, values: np.ndarray) -> list[list[dict[str, Any]]]:
        """Name the results of each cell.

        Parameters
        ----------
        values
            Standardised expression + 1, shape (cells, targets); or ids and scores of candidates, shape
            (cells, targets, 2, top_k).

        Returns
        -------
        list
            For each cell a list with a dictionary for each target: ``gene`` as it was asked for, ``gene_id``; from
            Exceiver ``expression`` and ``standardized``, None for a cell that expresses no known gene; from scCello
            and LangCell ``candidates``, a list of ``gene``, ``gene_id`` and ``score``, which is empty where the cell
            does not express the target.
        """
        tokens = self.tokenizer.convert_ids_to_tokens(self.target_ids.tolist())
        named = [{"gene": gene, "gene_id": token} for gene, token in zip(self.targets, tokens, strict=True)]
        if not self.predicts_values:
            return [
                [target | {"candidates": self._ranked(*of)} for target, of in zip(named, row, strict=True)]
                for row in values
            ]
        vocabulary = self.tokenizer.vocabulary
        rows = np.searchsorted(vocabulary.gene_token_ids, self.target_ids)
        means, stds = np.asarray(vocabulary.means)[rows], np.asarray(vocabulary.stds)[rows]
        standardized = values - 1
        expression = standardized * np.where(stds == 0, 1.0, stds) + means
        return [
            [
                target | {"expression": _number(e), "standardized": _number(s)}
                for target, e, s in zip(named, *row, strict=True)
            ]
            for row in zip(expression, standardized, strict=True)
        ]

    def _ranked(self, ids: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        if np.isnan(scores).all():
            return []
        tokens = self.tokenizer.convert_ids_to_tokens(ids.astype(np.int64).tolist())
        symbol = self.tokenizer.vocabulary.symbol
        return [
            {"gene": symbol(token), "gene_id": token, "score": float(score)}
            for token, score in zip(tokens, scores, strict=True)
        ]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


__all__ = ["FillGeneExpressionPipeline"]
