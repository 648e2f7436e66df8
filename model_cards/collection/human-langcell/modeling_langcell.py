"""LangCell: cells and texts in one space, and a matcher of both (Zhao et al. 2024, arXiv 2405.06708)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .cached_batches import BatchPart, WholeBatch, shares_of_step, step_factors
from .cell_classifiers import ClassifiesCells, ClassifiesGenes
from .cell_losses import (
    IGNORED,
    GatheredCells,
    LossTerms,
    count_items,
    cross_entropy_terms,
    every_weight_counts,
    gather_cells,
    join_losses,
    masked_gene_loss,
)
from .cell_text_losses import (
    MatchedPairs,
    cell_cell_loss,
    cell_text_loss,
    draw_hard_negatives,
    gather_texts,
    matching_loss,
    number_texts,
    pairs_to_match,
)
from .configuration_langcell import LangCellCellConfig, LangCellConfig
from .cpu_layers import Dropout
from .gene_sums import RankedGeneSums
from .input_checks import check_labels
from .linear_latent import pooled_size
from .modeling_langcell_text import LangCellPreTrainedModel, LangCellTextModel, LangCellTextModelOutput, normalized
from .modeling_sccello import ScCelloModel, count_cells, refuse_part_of_cells
from .packed_texts import CellKeys, DistinctTexts, cells_in_rows, distinct_texts, pack_texts, trim_cells
from .plain_layers import works_alone


logger = logging.get_logger(__name__)

# Pairs of a cell and a text whose hidden states are in memory at the same time, by default.
PAIRS_ON_CPU, PAIRS_ON_ACCELERATOR = 32, 512

# Cells whose keys and values are in memory at the same time when texts come in several parts.
CELLS_WITH_KEYS = 4


@dataclass
class LangCellModelOutput(ModelOutput):
    """Output of `LangCellModel`.

    Parameters
    ----------
    last_hidden_state
        Hidden states of cells, shape (cells, tokens, hidden size).
    pooler_output
        Cell embedding, normalised, float32, shape (cells, projection size).
    logits
        Similarity, cosine over tau, shape (cells, texts), if there are texts.
    text_features
        Text embedding, normalised, float32, shape (texts, projection size), if there are texts.
    text_last_hidden_state
        Hidden states of texts, shape (texts, tokens, hidden size), if there are texts.
    hidden_states, attentions
        Of the cell encoder, on request, as for `LangCellCellModel`.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    text_last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class LangCellAnnotation(ModelOutput):
    """Output of `LangCellModel.annotate`.

    Parameters
    ----------
    scores
        ``alpha * similarity + (1 - alpha) * matching``, shape (cells, classes); rows add up to 1.
    similarity
        Softmax over classes of cosines over tau, shape (cells, classes).
    matching
        Softmax over classes of the probabilities below, as released; shape (cells, classes).
    matching_probability
        P(match), shape (cells, classes); NaN for classes that are not in a cell's shortlist.
    """

    scores: torch.Tensor | None = None
    similarity: torch.Tensor | None = None
    matching: torch.Tensor | None = None
    matching_probability: torch.Tensor | None = None


@dataclass
class LangCellForPreTrainingOutput(ModelOutput):
    """Output of `LangCellForPreTraining`.

    Parameters
    ----------
    loss
        Sum of the losses below, each times its weight in the configuration; None if none was computed.
    masked_gene_loss
        Cross entropy of masked genes against the vocabulary; 0 if no position is masked.
    cell_cell_loss
        Cross entropy of cells against second passes of all cells.
    cell_text_loss
        Cross entropy of cells against texts and of texts against cells, the mean of both.
    matching_loss
        Cross entropy of the matching head over true pairs and hard negatives.
    hard_negatives
        Number of hard negatives that this process matched, shape (); 0 if all cells share one text.
    logits
        Scores of all tokens at masked positions, shape (masked positions, vocabulary); on request during training.
    pooler_output
        Cell embedding, normalised, float32, shape (cells, projection size).
    text_features
        Text embedding of each cell's text, normalised, float32, shape (cells, projection size).
    representations
        Inputs of the objectives between cells by name, for a part of a batch (`cached_batches`).
    last_hidden_state
        Hidden states of cells, shape (cells, tokens, hidden size).
    hidden_states, attentions
        Of the cell encoder, on request; of both passes if there are two.
    """

    loss: torch.Tensor | None = None
    masked_gene_loss: torch.Tensor | None = None
    cell_cell_loss: torch.Tensor | None = None
    cell_text_loss: torch.Tensor | None = None
    matching_loss: torch.Tensor | None = None
    hard_negatives: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    representations: dict[str, torch.Tensor] | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


# -------------------------------------------------------------------- the cell encoder


class LangCellCellModel(ScCelloModel):
    """Cell encoder: scCello's network over the same tokens, with LangCell's sizes and projection.

    Parameters
    ----------
    config
        The configuration of the cell encoder.
    add_projection
        Whether the cell embedding is the normalised projection of the pooled hidden state, or that state.
    """

    config: LangCellCellConfig
    config_class = LangCellCellConfig
    base_model_prefix = "cell_model"
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^matching_head\.", r"^gene_head\.", r"^gene_sums\."]

    def __init__(self, config: LangCellCellConfig, add_projection: bool = True):
        super().__init__(config)
        self.projection = nn.Linear(pooled_size(config), config.projection_dim) if add_projection else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode cells.

        Parameters
        ----------
        input_ids
            ``<cls>`` and genes by rank, shape (cells, tokens); or packed, as for `ScCelloModel`.
        attention_mask
            1 for tokens, 0 for padding, shape (cells, tokens); by default computed from the id of padding.
        position_ids
            Ranks, as for `ScCelloModel`.

        Returns
        -------
        BaseModelOutputWithPooling
            ``last_hidden_state`` of shape (cells, tokens, hidden size); ``pooler_output``, the cell embedding:
            normalised, float32, shape (cells, projection size).
        """
        outputs = super().forward(input_ids, attention_mask, position_ids, **kwargs, return_dict=True)
        if self.projection is not None:
            outputs.pooler_output = normalized(self.projection(outputs.pooler_output))
        return outputs


# -------------------------------------------------------------------- both


class LangCellModel(LangCellPreTrainedModel):
    """Both encoders and the matching head: similarity, matching, zero-shot annotation.

    Parameters
    ----------
    config
        The configuration.
    """

    prediction = "pooler_output"
    _keys_to_ignore_on_load_unexpected = [r"^gene_head\.", r"^pooler\.", r"^classifier\.", r"^gene_sums\."]

    def __init__(self, config: LangCellConfig):
        super().__init__(config)
        self.cell_model = LangCellCellModel(config.cell_config)
        self.text_model = LangCellTextModel(config.text_config)
        self.matching_head = nn.Linear(config.text_config.hidden_size, 2)
        self.post_init()

    # ---------------------------------------------------------------- what is trained

    def freeze_cell_encoder(self, frozen: bool = True, projection: bool = False) -> None:
        """Freeze the cell encoder, or let it learn again.

        Parameters
        ----------
        frozen
            Whether its weights are frozen.
        projection
            Whether its projection is frozen, too; by default it keeps learning (our choice).
        """
        self.cell_model.requires_grad_(not frozen)
        if not projection and self.cell_model.projection is not None:
            self.cell_model.projection.requires_grad_(True)

    def freeze_text_encoder(
        self, frozen: bool = True, projection: bool = False, cross_attention: bool = False
    ) -> None:
        """Freeze the text encoder, or let it learn again.

        Parameters
        ----------
        frozen
            Whether the weights that a BERT has are frozen.
        projection, cross_attention
            Whether the projection and the blocks of cross attention are frozen, too. By default they keep learning
            (our choice): a plain BERT has neither.
        """
        self.text_model.requires_grad_(not frozen)
        if not projection:
            self.text_model.projection.requires_grad_(True)
        if not cross_attention:
            for layer in self.text_model.layers:
                layer.cross_attn.requires_grad_(True)
                layer.norm_cross_attention.requires_grad_(True)

    # ---------------------------------------------------------------- embeddings

    def get_cell_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return cell embeddings, normalised, float32, shape (cells, projection size).

        Parameters
        ----------
        input_ids, attention_mask
            As for `LangCellCellModel`.
        """
        return self.cell_model(input_ids, attention_mask).pooler_output

    def get_text_features(
        self,
        text_input_ids: torch.LongTensor,
        text_attention_mask: torch.Tensor | None = None,
        texts_at_once: int | None = None,
    ) -> torch.Tensor:
        """Return text embeddings, normalised, float32, shape (texts, projection size).

        Identical texts are computed once, and padding is not computed.

        Parameters
        ----------
        text_input_ids, text_attention_mask
            As for `LangCellTextModel`, in text mode.
        texts_at_once
            Texts whose hidden states are in memory at the same time; by default 32 on the CPU, 512 elsewhere.
        """
        texts = self._texts(text_input_ids, text_attention_mask)
        number = texts_at_once or self._pairs_by_default(text_input_ids)
        return self.text_model.encode_texts(texts.input_ids, texts.key_mask, number)[texts.inverse]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        text_input_ids: torch.LongTensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LangCellModelOutput:
        """Encode cells, and texts if there are some, and compare them.

        Parameters
        ----------
        input_ids, attention_mask
            As for `LangCellCellModel`.
        text_input_ids, text_attention_mask
            As for `LangCellTextModel`, in text mode.
        """
        cells = self.cell_model(input_ids, attention_mask, **kwargs)
        texts = logits = None
        if text_input_ids is not None:
            texts = self.text_model(text_input_ids, text_attention_mask)
            logits = cells.pooler_output @ texts.pooler_output.T / self.config.tau
        return LangCellModelOutput(
            last_hidden_state=cells.last_hidden_state,
            pooler_output=cells.pooler_output,
            logits=logits,
            text_features=None if texts is None else texts.pooler_output,
            text_last_hidden_state=None if texts is None else texts.last_hidden_state,
            hidden_states=cells.hidden_states,
            attentions=cells.attentions,
        )

    # ---------------------------------------------------------------- matching

    def match(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        text_input_ids: torch.LongTensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        pairs_at_once: int | None = None,
    ) -> torch.Tensor:
        """Return P(match) of every cell with every text; differentiable.

        The result is that of running every pair, but work that pairs share is done once: a cell's keys and values in
        each layer for all texts, embeddings and first self-attention of texts for all cells (for groups of 4 cells if
        texts come in several parts), identical texts. Padding is not computed, and the last layer computes ``[CLS]``
        only.

        Parameters
        ----------
        input_ids, attention_mask
            Cells, as for `LangCellCellModel`.
        text_input_ids, text_attention_mask
            Texts, as for `LangCellTextModel`.
        pairs_at_once
            Pairs whose hidden states are in memory at the same time, by default 32 on the CPU, 512 elsewhere: memory
            does not grow with the number of texts.

        Returns
        -------
        torch.Tensor
            Shape (cells, texts), float32.

        Raises
        ------
        ValueError
            If there are no texts.
        """
        texts = self._texts(text_input_ids, text_attention_mask)
        cells = self.cell_model(input_ids, attention_mask)
        key_mask = self._cell_key_mask(input_ids, attention_mask)
        pairs = pairs_at_once or self._pairs_by_default(input_ids)
        return self._match(cells.last_hidden_state, key_mask, texts, None, pairs)[:, texts.inverse]

    @torch.no_grad()
    def annotate(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        text_input_ids: torch.LongTensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        alpha: float = 0.1,
        *,
        text_class_ids: torch.LongTensor | None = None,
        text_features: torch.Tensor | None = None,
        shortlist: int | None = None,
        pairs_at_once: int | None = None,
    ) -> LangCellAnnotation:
        """Annotate cells with classes that are described by texts, as in the released code.

        Similarity is the softmax over classes of cosines over tau. Matching is the softmax over classes of P(match): a
        softmax of probabilities, as the published numbers were computed.

        Parameters
        ----------
        input_ids, attention_mask
            Cells, as for `LangCellCellModel`.
        text_input_ids, text_attention_mask
            Texts of the classes, as for `LangCellTextModel`. Identical texts are computed once.
        alpha
            Weight of similarity, from 0 to 1; that of matching is ``1 - alpha``. 0.1 as released.
        text_class_ids
            Class of each text, counted from 0, shape (texts,), if classes have several texts: cosines and P(match) are
            averaged in each class before the softmaxes (our choice). By default every text is a class.
        text_features
            Result of `get_text_features` for these texts, shape (texts, projection size).
        shortlist
            Number of classes to match each cell with, those of the highest similarity. For the others P(match) is 0
            (our choice): their scores stay above 0 and in the order of their similarity.
        pairs_at_once
            As for `match`.

        Returns
        -------
        LangCellAnnotation
            ``scores``, ``similarity``, ``matching``, ``matching_probability``, each float32 of shape (cells, classes).

        Raises
        ------
        ValueError
            If there are no texts, a class has no text, or a setting is out of bounds.
        """
        texts = self._texts(text_input_ids, text_attention_mask)
        classes = _check_classes(text_class_ids, len(texts.inverse), texts.inverse.device)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha}: the weight of similarity has to be between 0 and 1")
        if shortlist is not None and shortlist < 1:
            raise ValueError(f"shortlist={shortlist}: it has to be at least 1 class")
        pairs = pairs_at_once or self._pairs_by_default(input_ids)
        if text_features is None:
            text_features = self.get_text_features(text_input_ids, text_attention_mask, pairs)
        elif len(text_features) != len(texts.inverse):
            raise ValueError(f"{len(text_features):,} text_features for {len(texts.inverse):,} texts")
        _warn_of_duplicates(texts, classes)
        cells = self.cell_model(input_ids, attention_mask)
        logits = cells.pooler_output @ text_features.to(cells.pooler_output).T / self.config.tau
        logits = _mean_by_class(logits, classes)
        asked, wanted = _shortlisted(logits, shortlist), None
        if asked is not None:
            none = logits.new_zeros(len(logits), len(texts.input_ids))
            wanted = none.index_add(1, texts.inverse, asked[:, classes].to(none)) > 0
        key_mask = self._cell_key_mask(input_ids, attention_mask)
        matched = self._match(cells.last_hidden_state, key_mask, texts, wanted, pairs)[:, texts.inverse]
        probability = _mean_by_class(matched, classes)
        if asked is not None:
            probability = probability.masked_fill(~asked, float("nan"))
        similarity, matching = logits.softmax(dim=1), probability.nan_to_num(nan=0.0).softmax(dim=1)
        return LangCellAnnotation(
            scores=alpha * similarity + (1 - alpha) * matching,
            similarity=similarity,
            matching=matching,
            matching_probability=probability,
        )

    @staticmethod
    def _pairs_by_default(input_ids: torch.Tensor) -> int:
        return PAIRS_ON_CPU if input_ids.device.type == "cpu" else PAIRS_ON_ACCELERATOR

    def _cell_key_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Return which of the tokens that the encoder reads are no padding, shape (cells, tokens)."""
        mask = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()
        mask = mask[:, : self.config.cell_config.encoder_tokens]
        return mask | ~mask.any(dim=1, keepdim=True)

    def _texts(self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None) -> DistinctTexts:
        if input_ids is None or len(input_ids) == 0:
            raise ValueError("no texts: pass those of at least one class as text_input_ids")
        key_mask = self.text_model.key_mask(input_ids, attention_mask)
        empty = ~key_mask.any(dim=1)
        if bool(empty.any()):
            raise ValueError(
                f"text {int(empty.nonzero()[0])} of {len(empty):,} is empty: every class needs a description"
            )
        return distinct_texts(input_ids, key_mask)

    def _match(
        self,
        states: torch.Tensor,
        key_mask: torch.Tensor,
        texts: DistinctTexts,
        wanted: torch.Tensor | None,
        pairs_at_once: int,
    ) -> torch.Tensor:
        """Return P(match) of cells with distinct texts; 0 for pairs that are not wanted."""
        model, head = self.text_model, self.matching_head
        order = texts.key_mask.sum(dim=1).argsort(stable=True)
        if wanted is not None:
            order = order[wanted[:, order].any(dim=0)]
        parts = order.split(pairs_at_once)
        at_once = 1 if wanted is not None else max(1, pairs_at_once // len(parts[0]))
        steps = key_mask.sum(dim=1).argsort(stable=True).split(at_once)
        group = max(1, CELLS_WITH_KEYS // at_once) if len(parts) > 1 else len(steps)
        result = torch.zeros(len(states), len(texts.input_ids), device=states.device)
        for first in range(0, len(steps), group):
            several = steps[first : first + group]
            keys = [CellKeys(model.layers, *trim_cells(states[c], key_mask[c]), keep=len(parts) > 1) for c in several]
            for rows in parts:
                part = pack_texts(texts.input_ids, texts.key_mask, rows)
                read = model.read_texts(part)
                for cells, of_cells in zip(several, keys, strict=True):
                    asked, some, begun = rows, part, read
                    if wanted is not None:
                        picked = wanted[cells[0], rows].nonzero().flatten()
                        if not len(picked):
                            continue
                        asked, (some, begun) = rows[picked], model.select_texts(part, read, picked.tolist())
                    logits = _in_float32(head, model.finish(begun, some, of_cells))
                    result[cells[:, None], asked] = logits.softmax(dim=-1)[..., 1]
        return result


def _in_float32(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """Apply a layer in float32: in bfloat16 similar classes would get the same score."""
    if not works_alone(layer):  # it has an adapter, or its weights are offloaded
        return layer(states).float()
    return nn.functional.linear(states.float(), layer.weight.float(), layer.bias.float())


def _check_classes(given: torch.Tensor | None, number: int, device: torch.device) -> torch.Tensor:
    if given is None:
        return torch.arange(number, device=device)
    classes = torch.as_tensor(given, device=device)
    if classes.shape != (number,):
        raise ValueError(f"text_class_ids has shape {tuple(classes.shape)} for {number:,} texts")
    counts = torch.bincount(classes) if bool((classes >= 0).all()) else classes.new_zeros(1)
    if not bool((counts > 0).all()):
        raise ValueError("text_class_ids: classes have to be counted from 0, each with at least one text")
    return classes


def _warn_of_duplicates(texts: DistinctTexts, classes: torch.Tensor) -> None:
    """Warn of classes that share a text."""
    distinct, number = len(texts.input_ids), len(texts.inverse)
    pairs = torch.stack([texts.inverse, classes], dim=1).unique(dim=0)
    if len(pairs) > distinct:
        logger.warning_once(
            f"{number:,} texts, but only {distinct:,} different ones: classes with the same text get the same score."
        )


def _mean_by_class(values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Average columns (cells, texts) by class."""
    number = int(classes.max()) + 1
    counts = torch.bincount(classes, minlength=number)
    return values.new_zeros(len(values), number).index_add(1, classes, values) / counts


def _shortlisted(logits: torch.Tensor, shortlist: int | None) -> torch.Tensor | None:
    """Return which classes to match, shape (cells, classes); None for all."""
    if shortlist is None or shortlist >= logits.shape[1]:
        return None
    top = logits.topk(shortlist, dim=1).indices
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, top, True)


# -------------------------------------------------------------------- heads


class LangCellGeneHead(nn.Module):
    """BERT's prediction head: linear, activation, layer norm, products with the embeddings of tokens, and a bias.

    The paper does not describe the head of masked gene modelling; this one is our choice.
    """

    def __init__(self, config: LangCellCellConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, states: torch.Tensor, embeddings: torch.Tensor, labels: torch.Tensor | None, with_logits: bool
    ) -> tuple[torch.Tensor | None, LossTerms | None]:
        """Score all tokens for some hidden states.

        Parameters
        ----------
        states
            Hidden states, shape (positions, hidden size).
        embeddings
            Embeddings of all tokens, shape (vocabulary, hidden size).
        labels
            Ids of the masked tokens, shape (positions,).
        with_logits
            Whether to return the scores; otherwise they are never kept in memory.

        Returns
        -------
        logits
            Shape (positions, vocabulary), float32, or None.
        terms
            Of the loss, or None without labels.
        """
        states = self.norm(self.activation(self.dense(states)))
        with torch.autocast(states.device.type, enabled=False):
            # The bias is one more dimension, in which every state is 1.
            states = nn.functional.pad(states.float(), (0, 1), value=1.0)
            genes = torch.cat([embeddings, self.bias[:, None]], dim=1).float()
            if not with_logits:
                return None, None if labels is None else masked_gene_loss(states, genes, labels)
            logits = states @ genes.T
        return logits, None if labels is None else cross_entropy_terms(logits, labels)

    def resize(self, number: int) -> None:
        """Resize the bias to a number of tokens; that of new tokens is 0."""
        kept = self.bias[:number]
        grown = nn.functional.pad(kept.detach(), (0, number - len(kept)))
        self.bias = nn.Parameter(grown, requires_grad=self.bias.requires_grad)


class LangCellForPreTraining(LangCellModel):
    """LangCell with its objectives: masked genes, cell-cell, cell-text, cell-text matching.

    In stage 1 (`set_stage`) only the cell encoder learns, by the first two; in stage 2 the loss is the sum of all.

    Parameters
    ----------
    config
        The configuration; an objective of weight 0 is off.

    Notes
    -----
    As published: the four objectives, their sum, two stages, hard negatives in proportion to similarity. Our choices,
    as the pretraining code was not released: weights of 1, the head of masked genes, no momentum queue, the same input
    (with masked genes) for both passes, masked genes predicted from the first pass.

    During training with dropout, every cell goes through the encoder twice, in one batch. Each process matches the
    pairs of its own cells, so hidden states are not gathered. When several processes compute gradients, losses are
    those of all processes' cells (`config.gather_cells`); see `cell_losses.join_losses` for their scale.
    """

    _keys_to_ignore_on_load_unexpected = [r"^pooler\.", r"^classifier\.", r"^gene_sums\."]

    def __init__(self, config: LangCellConfig):
        super().__init__(config)
        refuse_part_of_cells(config.cell_config, self)
        self.gene_head = LangCellGeneHead(config.cell_config)
        self.post_init()
        if config.stage == 1:
            self.set_stage(1)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LangCellGeneHead):
            init.zeros_(module.bias)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Add tokens of cells after the last one, and their biases in the head of masked genes."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        self.gene_head.resize(embeddings.num_embeddings)
        return embeddings

    def set_stage(self, stage: int) -> None:
        """Choose the stage of pretraining; in stage 1 the text encoder and the matching head are frozen.

        Parameters
        ----------
        stage
            1, only the cell encoder learns; 2, all objectives. Changing from 1 to 2 lets the whole text encoder learn.

        Raises
        ------
        ValueError
            If the stage is neither 1 nor 2.
        """
        if stage not in (1, 2):
            raise ValueError(f"stage {stage}: it has to be 1 (the cell encoder only) or 2 (all objectives)")
        self.config.stage = stage
        self.text_model.requires_grad_(stage == 2)
        self.matching_head.requires_grad_(stage == 2)

    def masked_gene_scores(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scores of all tokens in place of each ``<mask>``, row by row, shape (masks, vocabulary).

        Parameters
        ----------
        input_ids, attention_mask
            As for `LangCellCellModel`.
        """
        states = self.cell_model(input_ids, attention_mask).last_hidden_state
        masked = input_ids == self.config.mask_token_id
        logits, _ = self.gene_head(states[masked], self.cell_model.word_table(states), None, True)
        assert logits is not None
        return logits

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        text_input_ids: torch.LongTensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        text_ids: torch.LongTensor | None = None,
        return_logits: bool | None = None,
        num_items_in_batch: Any = None,
        part: BatchPart | None = None,
        position_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LangCellForPreTrainingOutput:
        """Compute the objectives whose inputs are given.

        Parameters
        ----------
        input_ids, attention_mask, position_ids
            Cells, as for `LangCellCellModel`, masked genes replaced. Packed cells have one text and one `text_ids`
            each, as others have.
        text_input_ids, text_attention_mask
            Text of each cell, shape (cells, tokens); not used in stage 1.
        labels
            Ids of masked genes, -100 elsewhere; of the shape of `input_ids`.
        text_ids
            Number of each cell's text, the same for the same text on all processes, -100 for cells without one; shape
            (cells,). By default texts of the same tokens are the same, and a cell whose text is all padding has none.
        return_logits
            Whether to return the scores at masked positions (positions with a label; without labels, those of
            ``<mask>``). By default in evaluation only.
        num_items_in_batch
            Labels of the whole step that are not -100 (cells, if there are no labels), over accumulated batches and
            processes, as `transformers.Trainer` counts them; see `cell_losses.join_losses`.
        part
            If the cells are a part of a larger batch (`cached_batches`): losses are the part's shares of those of
            the whole step, without those that `between_cells` computes.

        Raises
        ------
        ValueError
            As for the encoders; if the numbers of texts and cells differ.
        """
        config = self.config
        if labels is not None:
            check_labels("labels", labels, config.vocab_size, "tokens")
        joined = config.gather_cells and torch.is_grad_enabled()
        packed = self.cell_model._packed_cells(input_ids, attention_mask, position_ids)
        outputs, noised = self._encode_cells(input_ids, attention_mask, position_ids, packed, **kwargs)
        cells = outputs.pooler_output
        texts = text_mask = negatives = None
        if text_input_ids is not None and config.stage == 2 and (config.cell_text_weight or config.matching_weight):
            if len(text_input_ids) != len(cells):
                raise ValueError(f"{len(text_input_ids):,} texts for {len(cells):,} cells: each cell has one")
            text_mask = self.text_model.key_mask(text_input_ids, text_attention_mask)
            texts = self._encode_distinct(text_input_ids, text_mask)
        representations = self._representations(cells, noised, texts)
        if part is not None and part.only_encodes:
            return LangCellForPreTrainingOutput(representations=representations)
        with_logits = not self.training if return_logits is None else return_logits
        logits, gene_terms = self._gene_terms(outputs.last_hidden_state, input_ids, labels, with_logits)
        parts = {} if gene_terms is None else {"masked_gene_loss": gene_terms}
        states, key_mask = outputs.last_hidden_state, self._key_mask(input_ids, attention_mask)
        pairs, tokens = (None, None) if part is None else (part.pairs, part.tokens)
        if part is None:
            takes_part = key_mask.any(dim=1) if packed is None else packed.new_ones(len(cells), dtype=torch.bool)
            more, pairs, tokens = self._terms_between(
                representations, takes_part, text_input_ids, text_mask, text_ids, joined
            )
            parts |= more
        if pairs is not None and tokens is not None:
            negatives = (pairs.matches == 0).sum()
            if packed is not None:
                states, key_mask = cells_in_rows(states[0], packed[0])
            matches = self._match_pairs(states, key_mask, tokens, pairs)
            parts["matching_loss"] = matching_loss(matches, pairs.matches)
        if part is None:
            number = count_cells(input_ids, attention_mask, position_ids, config.pad_token_id)
            losses = join_losses(parts, count_items(labels, number), num_items_in_batch, joined)
        else:
            losses = part.losses(parts)
        weighted = self._weighted(losses)
        if part is not None:
            weighted.append(part.pull(representations))
        if weighted and every_weight_counts():
            weighted += self._nothing_of(outputs)
        return LangCellForPreTrainingOutput(
            loss=torch.stack(weighted).sum() if weighted else None,
            **losses,
            hard_negatives=negatives,
            logits=logits,
            pooler_output=cells,
            text_features=texts,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def between_cells(
        self,
        representations: dict[str, torch.Tensor],
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        text_input_ids: torch.Tensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        text_ids: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
    ) -> WholeBatch:
        """Compute the cell-cell and cell-text losses of a batch that is encoded in parts (`cached_batches`).

        Parameters
        ----------
        representations
            Of all cells of the batch, from forward passes with a `BatchPart`.
        input_ids, attention_mask, text_input_ids, text_attention_mask, labels, text_ids, num_items_in_batch
            As for the forward pass; `num_items_in_batch` is needed.
        """
        config = self.config
        takes_part = self._key_mask(input_ids, attention_mask).any(dim=1)
        text_mask = None
        if text_input_ids is not None and "texts" in representations:
            text_mask = self.text_model.key_mask(text_input_ids, text_attention_mask)
        terms, pairs, tokens = self._terms_between(
            representations, takes_part, text_input_ids, text_mask, text_ids, config.gather_cells
        )
        counts = {name: of_name.count for name, of_name in terms.items()}
        if labels is not None and config.masked_gene_weight:
            counts["masked_gene_loss"] = (labels != IGNORED).sum()
        if pairs is not None:
            counts["matching_loss"] = pairs.matches.new_tensor(len(pairs.matches))
        number = count_cells(input_ids, attention_mask, None, config.pad_token_id)
        factors = step_factors(counts, count_items(labels, number), num_items_in_batch, config.gather_cells)
        losses = shares_of_step(terms, factors)
        weighted = self._weighted(losses)
        return WholeBatch(losses, torch.stack(weighted).sum() if weighted else None, factors, pairs, tokens)

    def _key_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        return input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()

    def _weighted(self, losses: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [getattr(self.config, name.replace("_loss", "_weight")) * loss for name, loss in losses.items()]

    def _representations(
        self, cells: torch.Tensor, noised: torch.Tensor, texts: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Return the embeddings that are compared between cells."""
        noise = {} if noised is cells else {"noised": noised}
        return {"cells": cells, **noise, **({} if texts is None else {"texts": texts})}

    # ---------------------------------------------------------------- cells

    def _encode_cells(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        packed: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """Encode cells, twice in one batch if there is dropout; return the first pass and the second's embeddings."""
        cell = self.config.cell_config
        noise = cell.hidden_dropout_prob or cell.attention_probs_dropout_prob
        given = [input_ids, attention_mask, position_ids]
        if not (self.training and noise and self.config.cell_cell_weight):
            outputs = self.cell_model(*given, **kwargs)
            return outputs, outputs.pooler_output
        axis, (rows, tokens) = 0 if packed is None else 1, input_ids.shape
        twice = [None if g is None else torch.cat([g.expand_as(input_ids)] * 2, dim=axis) for g in given]
        outputs = self.cell_model(*twice, **kwargs)
        outputs.pooler_output, noised = outputs.pooler_output.chunk(2)
        outputs.last_hidden_state = outputs.last_hidden_state[:rows, :tokens]
        return outputs, noised

    def _gene_terms(
        self, states: torch.Tensor, input_ids: torch.Tensor, labels: torch.Tensor | None, with_logits: bool
    ) -> tuple[torch.Tensor | None, LossTerms | None]:
        if not self.config.masked_gene_weight:
            return None, None
        masked = input_ids == self.config.mask_token_id if labels is None else labels != IGNORED
        embeddings = self.cell_model.word_table(states)
        return self.gene_head(states[masked], embeddings, None if labels is None else labels[masked], with_logits)

    def _nothing_of(self, cells: BaseModelOutputWithPooling) -> list[torch.Tensor]:
        """Return zeros that depend on the weights of projection and gene head, also if these are not used."""
        nothing = cells.last_hidden_state[:0, 0]
        logits, _ = self.gene_head(nothing, self.cell_model.word_table(nothing), None, True)
        return [cells.pooler_output[:0].sum(), logits.sum()]

    # ---------------------------------------------------------------- between cells, and cells and texts

    def _terms_between(
        self,
        representations: dict[str, torch.Tensor],
        takes_part: torch.Tensor,
        text_input_ids: torch.Tensor | None,
        text_mask: torch.Tensor | None,
        text_ids: torch.Tensor | None,
        joined: bool,
    ) -> tuple[dict[str, LossTerms], MatchedPairs | None, torch.Tensor | None]:
        """Return the terms between cells, the pairs to match, and the tokens of the texts that pairs refer to."""
        config, cells = self.config, representations["cells"]
        gather = gather_cells if joined else _alone
        parts: dict[str, LossTerms] = {}
        if config.cell_cell_weight:
            noised = representations.get("noised", cells)
            others, numbers, first = gather(noised, takes_part.long().masked_fill(~takes_part, IGNORED))
            parts["cell_cell_loss"] = cell_cell_loss(cells, takes_part, config.tau, others, numbers != IGNORED, first)
        texts = representations.get("texts")
        if texts is None or text_input_ids is None or text_mask is None:
            return parts, None, None
        tokens, row = gather_texts(text_input_ids, text_mask, joined)
        if text_ids is None:
            text_ids = number_texts(tokens)[row : row + len(texts)]
        text_ids = text_ids.masked_fill(~takes_part, IGNORED)
        all_cells, all_ids, first = gather(cells, text_ids)
        all_texts = gather(texts, text_ids).cells
        if config.cell_text_weight:
            parts["cell_text_loss"] = cell_text_loss(cells, texts, text_ids, config.tau, all_cells, all_texts, all_ids)
        if not config.matching_weight:
            return parts, None, None
        negatives = draw_hard_negatives(all_cells.detach(), all_texts.detach(), all_ids, config.tau, joined)
        _warn_of_shared_text(all_ids)
        return parts, pairs_to_match(negatives, text_ids, first), tokens

    def _encode_distinct(self, input_ids: torch.Tensor, key_mask: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of texts, each distinct one encoded once."""
        texts = distinct_texts(input_ids, key_mask)
        return self.text_model(texts.input_ids, texts.key_mask).pooler_output[texts.inverse]

    def _match_pairs(
        self, states: torch.Tensor, key_mask: torch.Tensor, tokens: torch.Tensor, pairs: MatchedPairs
    ) -> torch.Tensor:
        """Return the matching head's output for pairs of own cells with all processes' texts, shape (pairs, 2).

        Without pairs, an artificial one is computed and dropped, so that all weights stay part of the graph.
        """
        if not len(pairs.cells):
            zero = pairs.cells.new_zeros(1)
            one = MatchedPairs(zero, zero, zero)
            return self._match_pairs(states, torch.ones_like(key_mask), tokens[:1].clamp(min=0), one)[:0]
        rows = tokens[pairs.texts]
        outputs = self.text_model(rows.clamp(min=0), rows >= 0, states, key_mask, pairs.cells)
        return self.matching_head(outputs.last_hidden_state[:, 0])


def _alone(rows: torch.Tensor, numbers: torch.Tensor) -> GatheredCells:
    return GatheredCells(rows, numbers, 0)


@torch.compiler.disable
def _warn_of_shared_text(text_ids: torch.Tensor) -> None:
    """Warn if all cells share one text: there are no hard negatives."""
    known = text_ids[text_ids != IGNORED]
    if len(known) and bool((known == known[0]).all()):
        logger.warning_once(
            f"All {len(known):,} cells of a batch share one text: there are no hard negatives, and matching learns "
            "from true pairs only. Draw batches over several texts."
        )


class LangCellClassificationHead(nn.Module):
    """BERT's classification head: linear, tanh, dropout, linear."""

    def __init__(self, config: LangCellConfig):
        super().__init__()
        cell = config.cell_config
        self.dense = nn.Linear(pooled_size(cell), cell.hidden_size)
        self.dropout = Dropout(cell.hidden_dropout_prob)
        self.out_proj = nn.Linear(cell.hidden_size, config.num_labels)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Score classes, shape (cells, classes), by pooled hidden states, shape (cells, size)."""
        return self.out_proj(self.dropout(torch.tanh(self.dense(states))))


class LangCellForSequenceClassification(ClassifiesCells, LangCellPreTrainedModel):
    """LangCell-CE: classifies cells, or predicts a value, by the cell encoder with BERT's classification head.

    Parameters
    ----------
    config
        The configuration; ``num_labels`` or ``id2label`` give the classes. With ``problem_type="regression"``, or one
        label, it predicts a value; with ``"multi_label_classification"`` each class separately. The text encoder is
        not part of the model.

    Notes
    -----
    As published: linear and tanh on the hidden state of ``<cls>`` (on the mean over genes with ``pooling="mean"``, our
    choice), dropout, linear. Older folders, in which the first of these layers has the name ``pooler``, still load.
    """

    encoder_name = "cell_model"
    _supports_flash_attn = True
    # Former names of the head's weights; PEFT reads this, too.
    _checkpoint_conversion_mapping = {
        r"^pooler\.(weight|bias)": r"classifier.dense.\1",
        r"^classifier\.(weight|bias)": r"classifier.out_proj.\1",
    }
    _keys_to_ignore_on_load_unexpected = [
        r"^text_model\.",
        r"^matching_head\.",
        r"^gene_head\.",
        r"^cell_model\.projection\.",
        r"^gene_sums\.",
    ]

    def __init__(self, config: LangCellConfig):
        super().__init__(config)
        cell = config.cell_config
        self.num_labels = config.num_labels
        self.cell_model = LangCellCellModel(cell, add_projection=False)
        self.classifier = LangCellClassificationHead(config)
        self.gene_sums = RankedGeneSums(config) if config.gene_sums else None
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a model or an adapter, also with the former names of the head's weights."""
        kwargs["key_mapping"] = cls._checkpoint_conversion_mapping | (kwargs.get("key_mapping") or {})
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter onto the model, also with the former names of the head's weights."""
        if kwargs.get("load_config") is None:
            names = self._checkpoint_conversion_mapping.items()
            kwargs.setdefault("weight_mapping", [WeightRenaming(former, now) for former, now in names])
        return super().load_adapter(*args, **kwargs)

    def _scores(self, states: torch.Tensor) -> torch.Tensor:
        """Return the scores of classes, shape (cells, classes); the head has its own dropout."""
        return self.classifier(states)


class LangCellForTokenClassification(ClassifiesGenes, LangCellPreTrainedModel):
    """Classifies the genes of cells by a linear layer on the cell encoder's hidden states.

    Parameters
    ----------
    config
        The configuration; ``num_labels`` or ``id2label`` give the classes. The text encoder is not part of the model.
    """

    encoder_name = "cell_model"
    _supports_flash_attn = True
    _keys_to_ignore_on_load_unexpected = [
        r"^text_model\.",
        r"^matching_head\.",
        r"^gene_head\.",
        r"^pooler\.",
        r"^classifier\.(dense|out_proj)\.",
        r"^gene_sums\.",
        r"^cell_model\.projection\.",
    ]

    def __init__(self, config: LangCellConfig):
        super().__init__(config)
        cell = config.cell_config
        self.num_labels = config.num_labels
        self.cell_model = LangCellCellModel(cell, add_projection=False)
        refuse_part_of_cells(cell, self)
        self.dropout = Dropout(cell.hidden_dropout_prob)
        self.classifier = nn.Linear(cell.hidden_size, config.num_labels)
        self.post_init()


LangCellModel.register_for_auto_class("AutoModel")
LangCellCellModel.register_for_auto_class("AutoModel")
LangCellForPreTraining.register_for_auto_class("AutoModelForPreTraining")
LangCellForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
LangCellForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")

__all__ = [
    "LangCellAnnotation",
    "LangCellCellModel",
    "LangCellForPreTraining",
    "LangCellForPreTrainingOutput",
    "LangCellForSequenceClassification",
    "LangCellForTokenClassification",
    "LangCellModel",
    "LangCellModelOutput",
    "LangCellPreTrainedModel",
    "LangCellTextModel",
    "LangCellTextModelOutput",
]
