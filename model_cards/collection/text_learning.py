"""Texts of cell types for an encoder of cells that is trained: similarity and matching as of LangCell, cells fixed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cellglot.model_cards.collection.cells import LABEL, PreparedCells
from cellglot.model_cards.collection.text_settings import TextSettings
from cellglot.modeling.cell_text_losses import matching_loss
from cellglot.modeling.configuration_langcell import LangCellConfig
from cellglot.modeling.linear_latent import pooled_size
from cellglot.modeling.modeling_langcell import LangCellModel
from cellglot.modeling.pipeline_cell_type_annotation import TEMPLATE
from cellglot.progress import progress_bars
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.tokenization.ontology.descriptions import ANNOTATION_TEMPLATE, fill_template, term_fields
from cellglot.tokenization.ontology.terms import EXACT
from cellglot.training.data.label_levels import LabelLevels, label_levels


WARM_UP = 0.1  # of the steps
WHOLE, NAMED = 0.4, 0.3  # shares of texts with name and definition, and with the name alone
CELLS_AT_ONCE = 128


# -------------------------------------------------------------------- cells


@dataclass
class TypedCells:
    """Cells, and the types that each may be.

    Parameters
    ----------
    tokens
        Of each cell.
    allowed
        Whether each type may be right, bool, shape (cells, types).
    types
        Cell Ontology ids, the columns of `allowed`.
    sets
        Number of each cell's data set, shape (cells,).
    embedding, states
        Of an encoder of cells: shape (cells, size), and of each cell (tokens, hidden size); empty before `embed`.
    """

    tokens: list[torch.Tensor]
    allowed: np.ndarray
    types: list[str]
    sets: np.ndarray
    embedding: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0))
    states: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def of(
        cls, sets: Sequence[PreparedCells], tokenizer: Any, levels: LabelLevels, each: int, seed: int
    ) -> "TypedCells":
        """Draw cells, `each` of a label and data set. Labels that may mean a class without a type are left out."""
        random, tokens, allowed, numbers = np.random.default_rng(seed), [], [], []
        typed = np.array([name in levels.ids for name in levels.classes])
        for number, prepared in enumerate(sets):
            adata = ad.read_h5ad(prepared.path)
            labels = adata.obs[LABEL].astype(object).to_numpy()
            drawn: dict[int, np.ndarray] = {}
            for label in sorted({label for label in labels if isinstance(label, str)}):
                may = levels.sets[label]
                if may.any() and not may[~typed].any():
                    drawn |= dict.fromkeys(random.permutation(np.flatnonzero(labels == label))[:each].tolist(), may)
            if not drawn:
                continue
            rows = np.sort(list(drawn))
            found = tokenizer(adata[rows].copy(), min_coverage=0.0)["input_ids"]
            kept = [i for i, ids in enumerate(found) if len(ids) > 1]
            tokens += [torch.tensor(found[i]) for i in kept]
            allowed += [drawn[rows[i]][typed] for i in kept]
            numbers += [number] * len(kept)
        types = [levels.ids[name] for name in levels.classes if name in levels.ids]
        return cls(tokens, np.array(allowed), types, np.array(numbers))

    @torch.no_grad()
    def embed(self, encoder: Any) -> torch.Tensor:
        """Embed all cells by an encoder of cells, shape (cells, size)."""
        pad, parts = encoder.config.pad_token_id, []
        self.states = []
        for start in range(0, len(self.tokens), CELLS_AT_ONCE):
            tokens = self.tokens[start : start + CELLS_AT_ONCE]
            found = encoder(nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=pad))
            parts.append(found.pooler_output)
            states = zip(found.last_hidden_state, tokens, strict=True)
            self.states += [of_cell[: len(own)].clone() for of_cell, own in states]
        self.embedding = torch.cat(parts)
        return self.embedding

    def without(self, types: set[str]) -> "TypedCells":
        """Return the cells that cannot be of some types, and the other types; after `embed`."""
        gone = np.array([t in types for t in self.types])
        kept = np.flatnonzero(~self.allowed[:, gone].any(axis=1))
        return TypedCells(
            [self.tokens[i] for i in kept],
            self.allowed[np.ix_(kept, ~gone)],
            [t for t in self.types if t not in types],
            self.sets[kept],
            self.embedding[kept],
            [self.states[i] for i in kept],
        )

    def chances(self) -> np.ndarray:
        """Return the chance of each cell to be drawn, shape (cells,).

        That of a label is in proportion to the root of its cells, divided by the number of types that it may be; data
        sets with the label count alike. Our choice.
        """
        labels, label = np.unique(self.allowed, axis=0, return_inverse=True)
        label = label.ravel()
        chances = np.zeros(len(label))
        for number, may in enumerate(labels):
            of_label = label == number
            share = np.sqrt(of_label.sum()) / may.sum()
            for own in (of_label & (self.sets == s) for s in np.unique(self.sets[of_label])):
                chances[own] = share / len(np.unique(self.sets[of_label])) / own.sum()
        return chances / chances.sum()


# -------------------------------------------------------------------- model


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
    found = model.cell_model.load_state_dict(cells.state_dict(), strict=False)
    own = {"projection.weight", "projection.bias"}
    if set(found.missing_keys) != own or found.unexpected_keys:
        raise ValueError(f"the base's encoder of cells does not fit LangCell's: {found}; name a base of scCello")
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
    """Set the centre of the embedding of cells: the mean over labels of their means, of the encoder by itself."""
    found, label = cells.embed(encoder), np.unique(cells.allowed, axis=0, return_inverse=True)[1].ravel()
    means = [found[torch.from_numpy(label == number)].mean(dim=0) for number in np.unique(label)]
    projection_of(model).bias.copy_(-torch.stack(means).mean(dim=0))


# -------------------------------------------------------------------- texts


def texts_of_type(cell_type: str, ontology: CellOntology) -> list[str]:
    """Return texts of a type: name with definition, and name, as cells are annotated with; then its other names."""
    term = ontology.term(cell_type)
    names = dict.fromkeys([term.name, *(text for text, scope in term.synonyms if scope == EXACT)])
    whole = fill_template(ANNOTATION_TEMPLATE, term_fields(term, ontology))
    return [whole, *(TEMPLATE.format(name=name) for name in names), *names]


@dataclass(frozen=True)
class TextTypes:
    """Types of the ontology that texts are learned of.

    Parameters
    ----------
    ids
        First those of the cells, then types above and below them.
    members
        Which types of cells each of them means, bool, shape (types, types of cells): those at and below it, or if
        there are none, the nearest above it.
    """

    ids: list[str]
    members: np.ndarray

    @classmethod
    def of(cls, types: Sequence[str], ontology: CellOntology, without: set[str]) -> "TextTypes":
        """Find them for the types of cells.

        Parameters
        ----------
        without
            Types that nothing is to be learned of.
        """
        found = label_levels(
            dict.fromkeys(types, 1), ontology, fewest=1, classes=list(types), others=ontology.cell_types
        )
        columns = [list(found.ids.values()).index(t) for t in types]
        members = {t: found.sets[t][columns] for t in (*types, *ontology.cell_types) if t not in without}
        members = {t: row for t, row in members.items() if row.any()}
        return cls(list(members), np.stack(list(members.values())))


class TextTokens:
    """Tokens of the texts of types, drawn at random.

    Parameters
    ----------
    types
        Types, each with texts as of `texts_of_type`.
    """

    def __init__(self, types: Sequence[str], ontology: CellOntology, text_tokenizer: Any, longest: int):
        self.tokens, self.pad = [], text_tokenizer.pad_token_id
        for cell_type in types:
            given = text_tokenizer(texts_of_type(cell_type, ontology), truncation=True, max_length=longest)
            self.tokens.append([torch.tensor(ids) for ids in given["input_ids"]])

    def draw(self, rows: Sequence[int], random: np.random.Generator) -> torch.Tensor:
        """Return the tokens of a text of each type, padded, shape (types, tokens)."""
        drawn = []
        for row, number in zip(rows, random.random(len(rows)), strict=True):
            texts = self.tokens[row]
            place = 0 if number < WHOLE else 1 if number < WHOLE + NAMED else random.integers(len(texts))
            drawn.append(texts[place])
        return nn.utils.rnn.pad_sequence(drawn, batch_first=True, padding_value=self.pad)


# -------------------------------------------------------------------- training


@dataclass(frozen=True)
class Pairs:
    """Cells and texts of a batch, and how they belong together.

    Parameters
    ----------
    similarity
        Cosine over tau, shape (cells, texts).
    inside
        Whether a cell is of the type of a text for sure, bool, shape (cells, texts).
    apart
        Whether it is of another type for sure, bool, shape (cells, texts).
    """

    similarity: torch.Tensor
    inside: torch.Tensor
    apart: torch.Tensor

    @classmethod
    def of(cls, similarity: torch.Tensor, allowed: torch.Tensor, members: torch.Tensor) -> "Pairs":
        """Compare the types that each cell may be, (cells, types), with those that each text means, (texts, types)."""
        shared = allowed.float() @ members.float().T
        return cls(similarity, shared == allowed.sum(dim=1, keepdim=True), shared == 0)

    def to_types(self, allowed: torch.Tensor) -> torch.Tensor:
        """Return the cross entropy of cells against the first texts, which are those of the types of cells."""
        logs = self.similarity[:, : allowed.shape[1]].log_softmax(dim=1)
        return -logs.masked_fill(~allowed, -torch.inf).logsumexp(dim=1).mean()

    def to_cells(self) -> torch.Tensor:
        """Return the cross entropy of texts against cells; the target is uniform over the cells of the type."""
        used = (self.inside.any(dim=0) & self.apart.any(dim=0)).nonzero()[:, 0]
        inside = self.inside[:, used]
        logs = self.similarity[:, used].masked_fill(~(inside | self.apart[:, used]), -torch.inf).log_softmax(dim=0)
        return -(logs.where(inside, 0.0).sum(dim=0) / inside.sum(dim=0)).sum() / max(len(used), 1)

    @torch.no_grad()
    def to_match(self, members: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw pairs to match: of each cell a text of its type, one that is similar but wrong, and any wrong one.

        Returns
        -------
        tuple
            Numbers of cells, numbers of texts, 1 for pairs that belong together; each of shape (pairs,).
        """
        close = self.similarity.softmax(dim=1)
        precise = 1 / members.sum(dim=1).float()  # a text of few types says more
        parts = []
        for weights, match in ((self.inside * precise, 1), (self.apart * (close + 1e-6), 0), (self.apart * 1.0, 0)):
            cells = weights.any(dim=1).nonzero()[:, 0]
            if len(cells):
                texts = torch.multinomial(weights[cells], 1)[:, 0]
                parts.append(torch.stack([cells, texts, torch.full_like(cells, match)]))
        cells, texts, matches = torch.cat(parts, dim=1)
        return cells, texts, matches


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

    The objectives are those of LangCell, for labels at several levels (our choice): cells against texts of types, by
    the summed probability of the types that a cell may be; texts against cells, where a cell belongs to all types
    above its own; matching, with hard negatives. The text of a type above others is also drawn to the mean of theirs.

    Parameters
    ----------
    cells
        With embeddings by the model.
    without
        Types that nothing is learned of.
    """
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    cells = cells.without(without or set())
    types = TextTypes.of(cells.types, ontology, without or set())
    texts = TextTokens(types.ids, ontology, text_tokenizer, settings.longest)
    chances, number = cells.chances(), len(cells.types)
    learned = [*model.text_model.parameters(), *model.matching_head.parameters()]
    optimizer = torch.optim.AdamW(learned, settings.learning_rate, weight_decay=settings.weight_decay)
    warm = max(round(WARM_UP * settings.steps), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warm) * 0.5 * (1 + np.cos(np.pi * min(step / settings.steps, 1.0))),
    )
    others = np.arange(number, len(types.ids))
    model.text_model.train()
    with progress_bars() as bars:
        task = bars.add_task("texts", total=settings.steps)
        for _ in range(settings.steps):
            rows = random.choice(len(cells.tokens), settings.batch_size, p=chances)
            drawn = random.choice(others, min(settings.terms, len(others)), replace=False)
            asked = np.concatenate([np.arange(number), drawn])
            members, allowed = torch.from_numpy(types.members[asked]), torch.from_numpy(cells.allowed[rows])
            tokens = texts.draw(asked.tolist(), random)
            features = model.text_model(tokens, tokens != texts.pad).pooler_output
            pairs = Pairs.of(cells.embedding[rows] @ features.T / model.config.tau, allowed, members)
            means = functional.normalize(members[number:].float() @ features[:number].detach(), dim=1)
            loss = pairs.to_types(allowed) + pairs.to_cells() + (1 - (features[number:] * means).sum(dim=1)).mean()
            states = nn.utils.rnn.pad_sequence([cells.states[i] for i in rows], batch_first=True)
            lengths = torch.tensor([len(cells.states[i]) for i in rows])
            mask = torch.arange(states.shape[1]) < lengths[:, None]
            of_cells, of_texts, matches = pairs.to_match(members)
            read = model.text_model(
                tokens[of_texts], (tokens != texts.pad)[of_texts], states, mask, of_cells
            ).last_hidden_state
            loss = loss + matching_loss(model.matching_head(read[:, 0]), matches).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bars.advance(task)
    model.eval()


__all__ = ["Pairs", "TextTypes", "TypedCells", "centre", "langcell_of", "learn_texts", "texts_of_type"]
