"""LangCell in training: only cells in stage 1, cells and their texts in stage 2."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from cellglot.modeling.cell_losses import IGNORED
from cellglot.modeling.configuration_langcell import LangCellCellConfig, LangCellConfig, LangCellTextConfig
from cellglot.modeling.convert.langcell import CheckpointError, from_text_checkpoint
from cellglot.modeling.loading import load_configuration, load_model, load_processor, load_tokenizer
from cellglot.modeling.modeling_langcell import (
    LangCellForPreTraining,
    LangCellForSequenceClassification,
    LangCellForTokenClassification,
)
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.tokenization.ontology.descriptions import ASPECT_TEMPLATE, ASPECTS
from cellglot.tokenization.processing_langcell import LangCellProcessor
from cellglot.tokenization.tokenization_rank_value import RankValueTokenizer
from cellglot.training.config import check_keys, where
from cellglot.training.data.cell_text_collator import CellTextCollator
from cellglot.training.data.cell_types import open_ontology
from cellglot.training.data.gene_embeddings import initialize_gene_embeddings
from cellglot.training.data.rank_value_collator import rank_value_collator
from cellglot.training.data.streaming import StreamedCells
from cellglot.training.data.texts import CorpusTexts, texts_of, word_tokenizer
from cellglot.training.data.thinning import thinning_of
from cellglot.training.families.family import AdapterPreset, TrainedFamily
from cellglot.training.families.rank_value import RANK_VALUE, PretrainingData, saved_tokenizer, tokenizer_of
from cellglot.training.families.recipe import Recipe, new_configuration
from cellglot.training.metrics import MaskedGeneMetrics, masked_gene_rows
from cellglot.training.run import check_same_vocabulary
from cellglot.training.trainer import count_parameters


TOWERS: dict[str, Any] = {"cell_config": LangCellCellConfig, "text_config": LangCellTextConfig}
FROZEN = ("cell", "text", "none")


@strict
@dataclass(kw_only=True)
class LangCellData(PretrainingData):
    """Keys of the section ``data`` in pretraining.

    Parameters
    ----------
    aspects, template
        For the texts, as for `describe_cells`.
    text_checkpoint
        Folder or repository of a BERT with its tokenizer, from which the text encoder starts. By default the encoder
        is new, and its tokenizer is made of the words of the texts and the ontology (our choice).
    start_from
        Folder of a LangCell to start from, such as that of stage 1.
    freeze
        ``cell``, ``text`` or ``none``: the encoder that is not trained, except for its projection and for the cross
        attention of the text encoder (our choice).
    leave_out
        Cell types whose cells are left out of training and evaluation.
    """

    aspects: list[str] | tuple[str, ...] = tuple(ASPECTS)
    template: str = ASPECT_TEMPLATE
    text_checkpoint: str | None = None
    start_from: str | None = None
    freeze: str = "none"
    leave_out: list[str] | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if self.freeze not in FROZEN:
            raise ValueError(f"freeze {self.freeze!r}: it is one of {', '.join(FROZEN)}")


def langcell_recipe(model: Mapping[str, Any], data: LangCellData, corpus: Corpus, seed: int) -> Recipe:
    """Prepare the pretraining of LangCell.

    The section ``model`` has fields of `LangCellConfig` (``stage``, weights of the objectives, ...), those of the
    encoders in ``cell_config`` and ``text_config``. Cells without a text only train the objectives for cells.
    """
    if data.freeze == "cell" and model.get("stage", 2) == 1:
        raise ValueError("data.freeze=cell in stage 1 leaves nothing to train: set data.freeze=none")
    tokenizer = tokenizer_of(corpus, "LangCell")
    ontology = open_ontology(data.ontology)
    texts = _texts(data, corpus, ontology, model.get("stage", 2))
    made, text_tokenizer, origin = _model(model, data, corpus, tokenizer, ontology, texts)
    keep = texts.keep(corpus, "train")
    if data.initialize_gene_embeddings and not data.start_from:
        initialize_gene_embeddings(made.get_input_embeddings(), corpus, seed, keep)
    if data.freeze == "cell":
        made.freeze_cell_encoder()
    elif data.freeze == "text" and made.config.stage == 2:
        made.freeze_text_encoder()
    longest = made.config.cell_config.max_position_embeddings
    processor = LangCellProcessor(saved_tokenizer(tokenizer, made.config), text_tokenizer)
    thinning = thinning_of(data, tokenizer, corpus, seed)
    train, held_out = _datasets(corpus, texts, made.config.stage, only_ids=thinning is None)
    cells = rank_value_collator(
        tokenizer,
        mask_fraction=data.mask_fraction,
        seed=seed,
        max_length=longest,
        thinning=thinning,
    )
    collator: Any = cells
    tokens: list[list[int]] = []
    if made.config.stage == 2:
        length = made.config.text_config.max_position_embeddings
        tokens = processor(text=texts.texts, text_max_length=length)["text_input_ids"]
        pad = made.config.text_config.pad_token_id
        collator = CellTextCollator(cells, tokens, texts.text_of, texts.columns, pad)
    metrics = LangCellMetrics(tokens, texts.ids("validation"))
    cut = train.count_longer(longest)
    trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
    return Recipe(
        model=made,
        processing_class=processor,
        train=train,
        held_out=held_out,
        collator=collator,
        metrics=metrics,
        summarize=metrics.summarize,
        pack_cells=data.pack_cells,
        summary="\n".join(
            [
                f"stage {made.config.stage}: {count_parameters(made):,} parameters, {trained:,} trained; "
                f"{len(train):,} cells for training and {0 if held_out is None else len(held_out):,} held out; "
                f"{data.mask_fraction:.0%} of genes masked; {cut:,} cells cut to {longest:,} tokens",
                f"text encoder: {origin}; {len(text_tokenizer):,} words; {processor.texts_cut:,} texts cut",
                texts.summary(),
            ]
        ),
        facts={
            "stage": made.config.stage,
            "text_tower": origin,
            "mask_fraction": data.mask_fraction,
            "ontology": ontology.metadata,
            "texts": [texts.texts[i] for i in texts.ids("train")],
            "texts_cut": processor.texts_cut,
            "cells_without_text": {split: texts.without_text(split) for split in texts.cells},
            "cells_left_out": texts.cells_left_out,
            "cell_labels": texts.labels.to_dict(),
            "cells_cut": cut,
            "training_cells": len(train),
        },
    )


# -------------------------------------------------------------------- cells and texts


def _texts(data: LangCellData, corpus: Corpus, ontology: CellOntology, stage: int) -> CorpusTexts:
    texts = texts_of(
        corpus,
        ontology,
        aspects=data.aspects,
        template=data.template,
        label_columns=data.label_columns,
        leave_out=data.leave_out,
    )
    if not texts.ids("train") and stage == 2:
        raise ValueError(
            f"no training cell of {corpus.folder} has a text: tokenize with the metadata of the cells, e.g. cellglot "
            "tokenize --rename my_labels=cell_type, or train on cells only by model.stage=1"
        )
    return texts


def _datasets(
    corpus: Corpus, texts: CorpusTexts, stage: int, only_ids: bool
) -> tuple[StreamedCells, StreamedCells | None]:
    columns = texts.columns if stage == 2 else []
    train = StreamedCells(corpus, "train", columns=columns, keep=texts.keep(corpus, "train"), only_ids=only_ids)
    keep = texts.keep(corpus, "validation")
    if not (corpus.n_cells("validation") if keep is None else keep.any()):
        return train, None
    return train, StreamedCells(corpus, "validation", columns=columns, keep=keep, only_ids=True)


# -------------------------------------------------------------------- the model


def _model(
    section: Mapping[str, Any],
    data: LangCellData,
    corpus: Corpus,
    tokenizer: RankValueTokenizer,
    ontology: CellOntology,
    texts: CorpusTexts,
) -> tuple[LangCellForPreTraining, Any, str]:
    """Return the model, its text tokenizer, and the origin of the text encoder."""
    for name, tower in TOWERS.items():
        check_keys(section.get(name) or {}, list(tower.__dataclass_fields__), f"{where(section, 'model')}.{name}")
    if data.start_from:
        return _started_from(section, corpus, data.start_from, data.text_checkpoint)
    if checkpoint := data.text_checkpoint:
        changed: Any = section | {"text_config": load_configuration(checkpoint)}  # type: ignore[operator]
        built = new_configuration(LangCellConfig, changed, tokenizer)
        origin = checkpoint + ("; model.text_config is not used" if section.get("text_config") else "")
        return _from_checkpoint(built, checkpoint), load_tokenizer(checkpoint), origin
    words = [ontology.name(t) for t in ontology.cell_types] + [ontology.definition(t) for t in ontology.cell_types]
    longest = LangCellTextConfig(**(section.get("text_config") or {})).max_position_embeddings
    text_tokenizer = word_tokenizer([*texts.texts, *words], longest)
    sizes = (section.get("text_config") or {}) | {"vocab_size": len(text_tokenizer)}
    changed = section | {"text_config": sizes}  # type: ignore[operator]
    built = new_configuration(LangCellConfig, changed, tokenizer)
    return LangCellForPreTraining(built), text_tokenizer, "new, with a tokenizer made of the texts' words"


def _from_checkpoint(
    built: LangCellConfig, checkpoint: str | Path, cells: str | Path | None = None
) -> LangCellForPreTraining:
    """Make a model with the text encoder of a checkpoint and a new cell encoder, or that of the folder `cells`."""
    names = [n for n in LangCellConfig.__dataclass_fields__ if n in LangCellConfig.__annotations__]
    options = {n: getattr(built, n) for n in names if n not in ("text_config", "auto_map")}
    try:
        return from_text_checkpoint(checkpoint, cells, LangCellForPreTraining, **options)
    except CheckpointError as error:
        raise ValueError(f"data.text_checkpoint: {error}") from error


def _started_from(
    section: Mapping[str, Any], corpus: Corpus, folder: str, checkpoint: str | None
) -> tuple[LangCellForPreTraining, Any, str]:
    """Load the model of `folder`; sizes in the section ``model`` have to match it."""
    check_same_vocabulary(load_tokenizer(folder, RankValueTokenizer), corpus, folder)
    earlier = load_configuration(folder, LangCellConfig)
    given = {k: v for k, v in section.items() if k not in ("type", *TOWERS)}
    check_keys(given, list(LangCellConfig.__dataclass_fields__), where(section, "model"))
    own = {"": {k: v for k, v in given.items() if k in ("projection_dim", "initializer_range")}}
    own |= {name: section.get(name) or {} for name in TOWERS if name == "cell_config" or not checkpoint}
    for name, values in own.items():
        for key, value in values.items():
            there = getattr(getattr(earlier, name) if name else earlier, key)
            if value != there:
                what = f"model.{name}.{key}" if name else f"model.{key}"
                raise ValueError(
                    f"{what} is {value!r}, but {folder} has {there!r}: remove one of {what} and data.start_from"
                )
    if checkpoint and earlier.stage != 1:
        raise ValueError(
            f"{folder} is of stage {earlier.stage}, its text encoder is already trained: remove data.text_checkpoint"
        )
    options = given | {"stage": given.get("stage", 2)}
    heads = ("gene_head", "matching_head", *(("text_model",) if checkpoint else ()))  # trained, or from elsewhere
    model: Any = load_model(LangCellForPreTraining, folder, new=heads, **options)
    model.config.validate()
    if checkpoint:  # the text encoder of the checkpoint replaces that of stage 1
        made = _from_checkpoint(model.config, checkpoint, folder)
        made.gene_head.load_state_dict(model.gene_head.state_dict())
        return made, load_tokenizer(checkpoint), f"{checkpoint}; the cell encoder is that of {folder}"
    processor: Any = load_processor(folder)
    return model, processor.text_tokenizer, f"that of {folder}"


# -------------------------------------------------------------------- metrics


class LangCellMetrics(MaskedGeneMetrics):
    """Metrics of held-out cells: those of `MaskedGeneMetrics`, and of the texts.

    ``text_accuracy``: share of cells that are nearest to their own text, by cosine, among all texts of held-out cells,
    with masked genes; ``text_chance``: the accuracy of a random choice.

    Parameters
    ----------
    text_tokens
        Tokens of each text; none in stage 1.
    held_out
        Ids of the texts of held-out cells.
    """

    def __init__(self, text_tokens: Sequence[Sequence[int]], held_out: Sequence[int]):
        super().__init__("text_accuracy")
        self.text_tokens, self.held_out = text_tokens, list(held_out)

    def _reset(self) -> None:
        super()._reset()
        self._features: torch.Tensor | None = None

    def compute(self) -> dict[str, float]:
        """Return the metrics; those without genes or texts are missing."""
        metrics = super().compute()
        return metrics | ({"text_chance": 1 / len(self.held_out)} if self.name in metrics else {})

    @torch.no_grad()
    def summarize(self, model: Any, inputs: dict[str, Any], outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum up a batch of held-out cells, one row for each cell; embed the texts at the first batch.

        Returns
        -------
        predictions
            Cross entropy of masked genes, number of masked genes found, whether the nearest text is that of the cell;
            shape (cells, 3).
        labels
            Number of masked genes, whether the cell has a text; shape (cells, 2).
        """
        sums = masked_gene_rows(outputs.logits, inputs["labels"])
        predictions, labels = (nn.functional.pad(t, (0, 1)) for t in sums)
        if "text_ids" in inputs and self.held_out:
            ids = inputs["text_ids"]
            if self._features is None:
                self._features = self._embed(model, ids.device)
            known = ids != IGNORED
            nearest = (outputs.pooler_output @ self._features.T).argmax(dim=1)
            right = torch.tensor(self.held_out, device=ids.device)[nearest] == ids
            predictions[:, 2], labels[:, 1] = (right & known).float(), known.float()
        return predictions, labels

    def _embed(self, model: Any, device: torch.device) -> torch.Tensor:
        rows = [torch.tensor(self.text_tokens[i]) for i in self.held_out]
        pad = model.config.text_config.pad_token_id
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad).to(device)
        lengths = torch.tensor([len(r) for r in rows], device=device)
        mask = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
        return model.get_text_features(tokens, mask)


LANGCELL = TrainedFamily(
    name="langcell",
    pretraining_data=LangCellData,
    recipe=langcell_recipe,
    model_classes={
        "cell-type": LangCellForSequenceClassification,
        "gene": LangCellForTokenClassification,
        "regression": LangCellForSequenceClassification,
        "multi-label": LangCellForSequenceClassification,
    },
    heads=("classifier",),
    head_reads="pooler_output",
    adapters=AdapterPreset.of_layers(r"cell_model\.layers\.\d+"),
    **RANK_VALUE,
)

__all__ = ["LANGCELL", "LangCellMetrics", "langcell_recipe"]
