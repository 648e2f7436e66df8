"""Texts of cell types for a base whose encoder of cells is trained: LangCell's objectives on texts, cells fixed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import torch
from torch import nn

from cellglot.model_cards.collection.cells import PreparedCells
from cellglot.model_cards.collection.text_settings import TextSettings
from cellglot.modeling.cell_text_losses import (
    cell_text_loss,
    draw_hard_negatives,
    matching_loss,
    pairs_to_match,
)
from cellglot.modeling.configuration_langcell import LangCellConfig
from cellglot.modeling.linear_latent import pooled_size
from cellglot.modeling.modeling_langcell import LangCellModel
from cellglot.progress import progress_bars
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.tokenization.ontology.descriptions import ANNOTATION_TEMPLATE, fill_template, term_fields
from cellglot.tokenization.ontology.terms import EXACT


TYPE_COLUMN = "cell_type_ontology_term_id"
WARM_UP = 0.1  # of the steps
CELLS_AT_ONCE = 128


@dataclass
class TypedCells:
    """Cells of one type each.

    Parameters
    ----------
    tokens
        Of each cell.
    types
        Cell Ontology id of each cell, shape (cells,).
    sets
        Number of each cell's data set, shape (cells,).
    embedding
        Of a model's encoder of cells, shape (cells, size); empty before `embed`.
    """

    tokens: list[torch.Tensor]
    types: np.ndarray
    sets: np.ndarray
    embedding: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0))

    @classmethod
    def of(
        cls, sets: Sequence[PreparedCells], tokenizer: Any, types: Sequence[str], each: int, seed: int
    ) -> "TypedCells":
        """Draw cells of some types, `each` of a type and data set."""
        random, tokens, names, numbers = np.random.default_rng(seed), [], [], []
        for number, prepared in enumerate(sets):
            adata = ad.read_h5ad(prepared.path)
            given = adata.obs[TYPE_COLUMN].astype(object).to_numpy()
            drawn = [random.permutation(np.flatnonzero(given == t))[:each] for t in types]
            rows = np.sort(np.concatenate(drawn))
            if not len(rows):
                continue
            found = tokenizer(adata[rows].copy(), min_coverage=0.0)["input_ids"]
            kept = [i for i, ids in enumerate(found) if len(ids) > 1]
            tokens += [torch.tensor(found[i]) for i in kept]
            names += given[rows[kept]].tolist()
            numbers += [number] * len(kept)
        return cls(tokens, np.array(names, dtype=object), np.array(numbers))

    def batch(self, rows: Sequence[int], pad: int, limit: int | None = None) -> torch.Tensor:
        """Return the tokens of some cells, padded, shape (cells, tokens)."""
        return nn.utils.rnn.pad_sequence([self.tokens[i][:limit] for i in rows], batch_first=True, padding_value=pad)

    @torch.no_grad()
    def embed(self, encoder: Any) -> torch.Tensor:
        """Embed all cells by an encoder of cells, shape (cells, size)."""
        parts = torch.arange(len(self.tokens)).split(CELLS_AT_ONCE)
        pad = encoder.config.pad_token_id
        self.embedding = torch.cat([encoder(self.batch(part.tolist(), pad)).pooler_output for part in parts])
        return self.embedding

    def without(self, types: set[str]) -> "TypedCells":
        """Return the cells of other types."""
        kept = np.flatnonzero(~np.isin(self.types, sorted(types)))
        return TypedCells([self.tokens[i] for i in kept], self.types[kept], self.sets[kept], self.embedding[kept])


def langcell_of(cells: Any, vocabulary: int, settings: TextSettings) -> LangCellModel:
    """Return a LangCell with a trained encoder of cells and a new text encoder.

    The projection of cells is the identity, so that their embedding is that of the encoder around a centre, see
    `centre`, normalised.

    Parameters
    ----------
    cells
        Encoder of rank-value tokens, a `ScCelloModel`.
    vocabulary
        Tokens of texts.
    """
    size = pooled_size(cells.config)
    shared = LangCellConfig().cell_config.to_dict()
    of_cells = {name: getattr(cells.config, name) for name in shared if hasattr(cells.config, name)}
    for name in ("auto_map", "model_type", "architectures", "transformers_version", "projection_dim", "dtype"):
        of_cells.pop(name, None)
    config = LangCellConfig(
        cell_config=of_cells,
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": settings.hidden_size,
            "num_hidden_layers": settings.num_hidden_layers,
            "num_attention_heads": settings.num_attention_heads,
            "intermediate_size": settings.intermediate_size,
            "max_position_embeddings": settings.longest,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        projection_dim=size,
    )
    model = LangCellModel(config)
    model.cell_model.load_state_dict(cells.state_dict(), strict=False)
    with torch.no_grad():
        projection_of(model).weight.copy_(torch.eye(size))
        projection_of(model).bias.zero_()
    model.cell_model.requires_grad_(False)
    return model.eval()


def projection_of(model: LangCellModel) -> nn.Linear:
    """Return the projection of cells to the space of texts."""
    projection = model.cell_model.projection
    assert projection is not None
    return projection


@torch.no_grad()
def centre(model: LangCellModel, encoder: Any, cells: TypedCells) -> None:
    """Set the centre of the embedding of cells: the mean over types of their means, of the encoder by itself."""
    found = cells.embed(encoder)
    means = [found[torch.from_numpy(cells.types == t)].mean(dim=0) for t in np.unique(cells.types)]
    projection_of(model).bias.copy_(-torch.stack(means).mean(dim=0))


def texts_of_type(cell_type: str, ontology: CellOntology) -> list[str]:
    """Return texts of a type: name and definition as cells are annotated with, and each of its names alone."""
    term = ontology.term(cell_type)
    names = dict.fromkeys([term.name, *(text for text, scope in term.synonyms if scope == EXACT)])
    whole = fill_template(ANNOTATION_TEMPLATE, term_fields(term, ontology))
    return list(dict.fromkeys([whole, *(f"cell type: {name}. " for name in names), *names]))


def targets_of_types(ontology: CellOntology, cells: TypedCells, without: set[str]) -> tuple[list[str], torch.Tensor]:
    """Return types of the ontology, and where the texts of each belong, shape (types, size).

    A type belongs to the mean of the types of cells at and below it; one below all of these, to the lowest type of
    cells above it. Others are left out. Our choice.

    Parameters
    ----------
    without
        Types that nothing is to be learned of.
    """
    present = np.unique(cells.types).tolist()
    means = {t: cells.embedding[torch.from_numpy(cells.types == t)].mean(dim=0) for t in present}
    depth = {t: len(ontology.ancestors(t)) for t in present}
    found, targets = [], []
    for cell_type in ontology.cell_types:
        if cell_type in without:
            continue
        above = ontology.ancestors(cell_type)
        below = [t for t in present if t == cell_type or cell_type in ontology.ancestors(t)]
        if not below:
            below = sorted(above & set(present), key=lambda t: -depth[t])[:1]
        if below:
            found.append(cell_type)
            targets.append(torch.stack([means[t] for t in below]).mean(dim=0))
    return found, nn.functional.normalize(torch.stack(targets), dim=1)


def learn_texts(
    model: LangCellModel,
    text_tokenizer: Any,
    cells: TypedCells,
    ontology: CellOntology,
    settings: TextSettings,
    seed: int,
    without: set[str] | None = None,
) -> None:
    """Train the text encoder and the matching head of a model; its encoder of cells does not change.

    The objectives are those of LangCell, cells against texts and matching with hard negatives, and the distance of
    texts of all types of the ontology to the cells that they mean (our choice). Cells are drawn by type, then by data
    set.

    Parameters
    ----------
    cells
        With embeddings by the model.
    without
        Types that nothing is learned of.
    """
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    cells = cells.without(without) if without else cells
    named, targets = targets_of_types(ontology, cells, without or set())
    texts = {t: texts_of_type(t, ontology) for t in {*named, *np.unique(cells.types).tolist()}}
    chances = _chances(cells)
    learned = [*model.text_model.parameters(), *model.matching_head.parameters()]
    optimizer = torch.optim.AdamW(learned, settings.learning_rate, weight_decay=settings.weight_decay)
    warm = max(round(WARM_UP * settings.steps), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warm) * 0.5 * (1 + np.cos(np.pi * min(step / settings.steps, 1.0))),
    )
    numbers = {t: i for i, t in enumerate(np.unique(cells.types).tolist())}

    def tokens(types: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = [texts[t][0] if random.random() < 0.5 else texts[t][random.integers(len(texts[t]))] for t in types]
        given = text_tokenizer(chosen, truncation=True, max_length=settings.longest, padding=True, return_tensors="pt")
        return given["input_ids"], given["attention_mask"].bool()

    pad, limit = model.config.pad_token_id, model.config.cell_config.encoder_tokens
    model.text_model.train()
    with progress_bars() as bars:
        task = bars.add_task("texts", total=settings.steps)
        for _ in range(settings.steps):
            rows = random.choice(len(cells.tokens), settings.batch_size, p=chances)
            types = cells.types[rows].tolist()
            ids = torch.tensor([numbers[t] for t in types])
            input_ids = cells.batch(rows.tolist(), pad, limit)
            with torch.no_grad():
                states = model.cell_model(input_ids).last_hidden_state
            embedded = cells.embedding[rows]
            text_ids, text_mask = tokens(types)
            features = model.text_model(text_ids, text_mask).pooler_output
            loss = cell_text_loss(embedded, features, ids, model.config.tau, embedded, features, ids).mean()
            negatives = draw_hard_negatives(embedded, features.detach(), ids, model.config.tau, False)
            pairs = pairs_to_match(negatives, ids, 0)
            read = model.text_model(
                text_ids[pairs.texts], text_mask[pairs.texts], states, input_ids != pad, pairs.cells
            )
            logits = model.matching_head(read.last_hidden_state[:, 0])
            loss = loss + matching_loss(logits, pairs.matches).mean()
            drawn = random.choice(len(named), min(settings.terms, len(named)), replace=False)
            of_terms = model.text_model(*tokens([named[i] for i in drawn])).pooler_output
            loss = loss + (1 - (of_terms * targets[drawn]).sum(dim=1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bars.advance(task)
    model.eval()


def _chances(cells: TypedCells) -> np.ndarray:
    """Return the chance of each cell to be drawn: types alike, data sets of a type alike; shape (cells,)."""
    pairs = np.unique(np.stack([cells.types.astype(str), cells.sets.astype(str)]), axis=1, return_inverse=True)[1]
    chances = 1 / np.bincount(pairs.ravel())[pairs.ravel()]
    for t in np.unique(cells.types):
        chances[cells.types == t] /= chances[cells.types == t].sum()
    return chances / chances.sum()


__all__ = ["TypedCells", "centre", "langcell_of", "learn_texts", "targets_of_types", "texts_of_type"]
