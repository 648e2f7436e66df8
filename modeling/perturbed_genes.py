"""Embeddings and classes of copies of cells in which one gene is deleted or overexpressed: exact, at less work.

In a rank-value encoder, all genes behind a deleted one move up by one place. A token of a copy is then in one of two
states, at its own place or beside it. The first attention is computed once for many copies between all these states;
each copy adds what differs, without subtracting anything. The last layer computes only the tokens that the embedding
depends on. In Exceiver a copy differs in one key and value of the first attention. Where few genes of a cell change,
copies of many cells go through the encoder together instead.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cellglot.modeling.label_losses import in_units
from cellglot.modeling.loaded_model import without_adapter
from cellglot.modeling.masked_genes import (
    COPIES_AT_ONCE,
    cell_encoder,
    finish_copies,
    first_attention,
    gene_places,
    latents_of_copies,
)


DELETE, OVEREXPRESS = "delete", "overexpress"
WIDTH = 64  # most places between the first and the last gene of copies that share an attention
DENSE = 4  # from every fourth gene of a cell on, its copies share the first attention
MANY = 8  # copies of a cell from which on sharing pays for Exceiver

Cell = Mapping[str, torch.Tensor]


@dataclass
class Copies:
    """Copies of cells, each with another perturbed gene.

    Parameters
    ----------
    genes
        Token id of each copy's gene, shape (copies,).
    embeddings
        Shape (copies, size).
    scores
        What the head predicts, logits of classes or values, shape (copies, classes); None without such a head.
    """

    genes: torch.Tensor
    embeddings: torch.Tensor
    scores: torch.Tensor | None = None


@dataclass(frozen=True)
class Change:
    """What is done to genes.

    Parameters
    ----------
    kind
        ``"delete"``: the gene's count is zero. ``"overexpress"``: the gene is at the first rank, or in Exceiver has
        the value in `values`, if its own is not higher.
    limit
        Most tokens of a cell that a rank-value encoder reads; cells have one more, if they express more genes, which
        moves up where a gene is deleted. None for Exceiver.
    values
        Token id -> the value of an overexpressed gene, for Exceiver.
    first
        Place of a cell's first gene: 1 where ``<cls>`` is before it.
    """

    kind: str
    limit: int | None = None
    values: Mapping[int, float] | None = None
    first: int = 0


# -------------------------------------------------------------------- copies as tokens


def genes_to_change(encoder: Any, cell: Cell, genes: torch.Tensor, change: Change) -> torch.Tensor:
    """Return the genes that can be changed in a cell, those that it expresses in their order before the others.

    Only genes that the model reads can be deleted, and the last gene of a cell cannot.

    Parameters
    ----------
    encoder
        The encoder of cells.
    cell
        ``input_ids`` and, for Exceiver, ``expression_values``, shape (tokens,).
    genes
        Token ids, shape (genes,).

    Returns
    -------
    torch.Tensor
        Token ids, shape (copies,).
    """
    read = cell["input_ids"][: change.limit]
    own = read[gene_places(encoder.config, read)]
    expressed = own[torch.isin(own, genes)]
    if change.kind == DELETE:
        return expressed if len(own) > 1 else expressed[:0]
    return torch.cat([expressed, genes[~torch.isin(genes, expressed)]])


def changed_tokens(cell: Cell, gene: int, change: Change) -> dict[str, torch.Tensor]:
    """Return a copy of a cell with one gene changed, as tokens without padding.

    Parameters
    ----------
    cell
        ``input_ids`` and, for Exceiver, ``expression_values``, shape (tokens,).
    gene
        Token id.
    """
    ids = cell["input_ids"]
    others = ids != gene
    if "expression_values" in cell:
        values = cell["expression_values"]
        if change.kind == DELETE:
            return {"input_ids": ids[others], "expression_values": values[others]}
        assert change.values is not None
        own = values[~others]
        value = max(change.values[gene], float(own[0]) if len(own) else float("-inf"))
        ids, values = (
            torch.cat([ids[others], ids.new_tensor([gene])]),
            torch.cat([values[others], values.new_tensor([value])]),
        )
        return {"input_ids": ids, "expression_values": values}
    if change.kind == DELETE:
        return {"input_ids": ids[others][: change.limit]}
    first = change.first
    before, after = ids[:first], ids[first:]
    return {"input_ids": torch.cat([before, ids.new_tensor([gene]), after[after != gene]])[: change.limit]}


# -------------------------------------------------------------------- copies of many cells in one batch


def _forward(network: Any, rows: Sequence[Mapping[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run an encoder and the head over cells of any length; return embeddings and scores."""
    encoder = cell_encoder(network)
    names = [name for name in ("input_ids", "expression_values") if name in rows[0]]
    pad = {"input_ids": encoder.config.pad_token_id, "expression_values": 0.0}
    batch = {
        name: nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=pad[name])
        for name in names
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in rows], device=batch["input_ids"].device)
    batch["attention_mask"] = (torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]).long()
    found = encoder(**batch)
    return found.pooler_output, class_scores(network, found.pooler_output, found.last_hidden_state)


def class_scores(network: Any, embeddings: torch.Tensor, latents: torch.Tensor) -> torch.Tensor | None:
    """Return what a model's head predicts for encoded cells, without gene sums; None if it has no head for cells.

    Parameters
    ----------
    network
        The model, with or without an adapter.
    embeddings
        Shape (cells, size).
    latents
        The encoder's last hidden states, which Exceiver's head reads.

    Returns
    -------
    torch.Tensor
        Logits of classes, or values in their unit, shape (cells, classes).
    """
    plain = without_adapter(network)
    if not type(plain).__name__.endswith("ForSequenceClassification"):
        return None
    if hasattr(plain, "_scores"):
        return in_units(plain.config, plain._scores(embeddings))
    query = plain.exceiver.gene_embedding(
        torch.full((len(latents), 1), plain.config.cls_token_id, device=latents.device)
    )
    return in_units(plain.config, plain.classifier(plain.decoder(query, latents)[:, 0]))


def embed_tokens(network: Any, cells: Sequence[Cell], change: Change, batch_size: int) -> Copies:
    """Embed unchanged cells.

    Parameters
    ----------
    network
        The model, with or without an adapter, in evaluation.
    cells
        ``input_ids`` and, for Exceiver, ``expression_values`` of each cell, without padding, shape (tokens,).
    change
        Its `limit` cuts the cells.
    batch_size
        Number of cells that are computed at once.

    Returns
    -------
    Copies
        In the order of the cells; `genes` is empty.
    """
    rows = [_read(cell, change) for cell in cells]
    embeddings, scores = _in_batches(network, rows, batch_size)
    return Copies(torch.empty(0, dtype=torch.long), embeddings, scores)


def _read(cell: Cell, change: Change) -> dict[str, torch.Tensor]:
    """Return the tokens that the model reads."""
    return {name: values[: change.limit] for name, values in cell.items()}


def _in_batches(
    network: Any, rows: Sequence[Mapping[str, torch.Tensor]], batch_size: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute rows in batches of similar length; return embeddings and scores in the order of the rows."""
    order = torch.tensor([len(row["input_ids"]) for row in rows]).argsort(descending=True, stable=True)
    parts = [_forward(network, [rows[i] for i in part.tolist()]) for part in order.split(batch_size)]
    back = order.argsort()
    embeddings = torch.cat([part[0] for part in parts])[back]
    return embeddings, None if parts[0][1] is None else torch.cat([part[1] for part in parts])[back]


# -------------------------------------------------------------------- copies of one cell of rank tokens


@dataclass
class _States:
    """Tokens of a cell in one state: ids, hidden states, queries, keys and values (heads, tokens, size)."""

    ids: torch.Tensor
    states: torch.Tensor
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor

    @classmethod
    def embed(cls, encoder: Any, ids: torch.Tensor, positions: torch.Tensor) -> "_States":
        states = encoder.embeddings(ids[None], positions[None])[0]
        attention = encoder.layers[0].self_attn
        heads = [
            p(states).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1).float()
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        return cls(ids, states, *heads)

    def __getitem__(self, part: slice) -> "_States":
        heads = (self.query, self.key, self.value)
        return _States(self.ids[part], self.states[part], *(h[:, part] for h in heads))

    def __add__(self, other: "_States") -> "_States":
        pairs = zip((self.query, self.key, self.value), (other.query, other.key, other.value), strict=True)
        return _States(
            torch.cat([self.ids, other.ids]),
            torch.cat([self.states, other.states]),
            *(torch.cat(pair, dim=1) for pair in pairs),
        )


def rank_copies(encoder: Any, cell: Cell, genes: torch.Tensor, change: Change) -> Iterator[torch.Tensor]:
    """Embed one cell of rank tokens once for each gene of `genes_to_change`, in their order.

    Yields embeddings of consecutive copies, shape (copies, size). Arguments are those of `genes_to_change`.
    """
    ids, limit, first = cell["input_ids"], change.limit or len(cell["input_ids"]), change.first
    device, length = ids.device, min(len(cell["input_ids"]), limit)
    place_of = {gene: place for place, gene in enumerate(ids[:length].tolist())}
    at = torch.arange(len(ids), device=device)
    if change.kind == DELETE:
        own = _States.embed(encoder, ids[:length], at[:length])
        last = length + (len(ids) > limit)
        beside = _States.embed(encoder, ids[:last], (at[:last] - 1).clamp(min=0))
        places, new = [place_of[gene] for gene in genes.tolist()], None
    else:
        down = torch.where(at[:length] < first, at[:length], (at[:length] + 1).clamp(max=limit - 1))
        own = _States.embed(encoder, ids[:length], down)
        beside = _States.embed(encoder, ids[:length], at[:length])
        # A gene that is not among the tokens takes the place of the last one, if the cell is full.
        places = [place_of.get(gene, min(length, limit - 1)) for gene in genes.tolist()]
        new = _States.embed(encoder, genes, torch.full_like(genes, first))
    for start, stop in _blocks(places, len(beside.ids)):
        added = None if new is None else new[start:stop]
        yield _copies_of_block(encoder, own, beside, places[start:stop], added, first)


def _blocks(places: Sequence[int], tokens: int) -> Iterator[tuple[int, int]]:
    """Yield runs of copies that share an attention: places in ascending order, near each other, of equal length."""
    start = 0
    while start < len(places):
        stop = start + 1
        while (
            stop < len(places)
            and stop - start < COPIES_AT_ONCE
            and 0 <= places[stop] - places[start] < WIDTH
            and (places[stop] >= tokens) == (places[start] >= tokens)
        ):
            stop += 1
        yield start, stop
        start = stop


def _copies_of_block(
    encoder: Any, own: _States, beside: _States, places: Sequence[int], new: _States | None, first: int
) -> torch.Tensor:
    """Embed copies: tokens before `places` in their own state, those behind beside it, and perhaps a new token."""
    layer, device = encoder.layers[0], own.ids.device
    attention, low, high = layer.self_attn, places[0], places[-1] + 1
    front, behind = own[: min(high, len(own.ids))], beside[low + 1 :]
    every, n_front = front + behind, len(front.ids)
    inner = slice(low, n_front + max(min(high, len(beside.ids)) - low - 1, 0))
    chosen = torch.stack(
        [
            torch.cat([torch.arange(p, device=device), torch.arange(n_front + p - low, len(every.ids), device=device)])
            for p in places
        ]
    )
    member = torch.zeros(len(places), len(every.ids), dtype=torch.bool, device=device).scatter_(1, chosen, True)
    logits = every.query @ every.key.transpose(-1, -2) * attention.scaling
    highest = logits.amax(dim=-1, keepdim=True)
    weights = (logits - highest).exp_()
    context, total = _attend(weights, every.value, inner, member)  # copies, heads, all queries, size
    rows = chosen[:, None, :, None]
    context = context.gather(2, rows.expand(-1, context.shape[1], -1, context.shape[3]))
    total = total.gather(2, rows[..., 0].expand(-1, total.shape[1], -1))
    context = context / total.unsqueeze(-1)
    states, ids = every.states[chosen], every.ids[chosen]
    if new is not None:
        log_total = total.log() + highest[..., 0][None].expand(len(places), -1, -1).gather(
            2, rows[..., 0].expand(-1, total.shape[1], -1)
        )
        context = _with_new(context, log_total, every, member, chosen, new, attention.scaling, first)
        states = torch.cat([states[:, :first], new.states.unsqueeze(1), states[:, first:]], dim=1)
        ids = torch.cat([ids[:, :first], new.ids.unsqueeze(1), ids[:, first:]], dim=1)
    attended = attention.o_proj(context.transpose(1, 2).flatten(2).to(states.dtype))
    return finish_copies(encoder, states + attended, ids)


def _attend(
    weights: torch.Tensor, value: torch.Tensor, inner: slice, member: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum weighted values and weights for each copy: keys outside of `inner` are those of all copies."""
    low, high = inner.start, inner.stop
    shared = weights[..., :low] @ value[:, :low] + weights[..., high:] @ value[:, high:]
    shared_total = weights[..., :low].sum(dim=-1) + weights[..., high:].sum(dim=-1)
    own = weights[..., inner] * member[:, None, None, inner]
    return own @ value[:, inner] + shared, own.sum(dim=-1) + shared_total


def _with_new(
    context: torch.Tensor,
    log_total: torch.Tensor,
    every: _States,
    member: torch.Tensor,
    chosen: torch.Tensor,
    new: _States,
    scaling: float,
    first: int,
) -> torch.Tensor:
    """Let the tokens of each copy attend to its new token, too, and the new token to all; its place is `first`."""
    logits = (every.query @ new.key.transpose(-1, -2) * scaling).permute(2, 0, 1)  # copies, heads, all queries
    logits = logits.gather(2, chosen[:, None].expand(-1, logits.shape[1], -1))
    share = torch.sigmoid(logits - log_total).unsqueeze(-1)
    context = context * (1 - share) + new.value.transpose(0, 1).unsqueeze(2) * share
    to_others = (new.query @ every.key.transpose(-1, -2) * scaling).masked_fill(~member, -torch.inf)
    to_itself = (new.query * new.key).sum(dim=-1, keepdim=True) * scaling
    weights = torch.cat([to_others, to_itself], dim=-1).softmax(dim=-1)  # heads, copies, keys and itself
    own = (weights[..., :-1] @ every.value + weights[..., -1:] * new.value).transpose(0, 1).unsqueeze(2)
    return torch.cat([context[:, :, :first], own, context[:, :, first:]], dim=2)


# -------------------------------------------------------------------- copies of one cell of Exceiver


def _exceiver_copies(encoder: Any, cell: Cell, genes: torch.Tensor, change: Change) -> Iterator[torch.Tensor]:
    """Return the latents of one cell for each gene of `genes_to_change`, in their order."""
    ids, values = cell["input_ids"], cell["expression_values"]
    weight, background = encoder.gene_embedding.weight, encoder.config.unexpressed_genes == "bias"
    places, shared, project = first_attention(encoder, ids, values)
    numbers = {gene: number for number, gene in enumerate(ids.tolist())}
    linear, of_genes = None, None
    if encoder.linear_latent is not None:
        linear = encoder.linear_latent(ids[None], values[None])
        of_genes = encoder.linear_latent.of_genes(ids[None], values[None])[0]
    number_of = torch.tensor([numbers.get(gene, -1) for gene in genes.tolist()], device=ids.device)
    known = int((number_of >= 0).sum())  # the genes that the cell expresses come first
    for start, stop in [*_runs(0, known), *_runs(known, len(genes))]:
        part, expressed = genes[start:stop], stop <= known
        own = number_of[start:stop]
        moved = None if linear is None else linear.expand(len(part), -1)
        if moved is not None and of_genes is not None and expressed:
            moved = moved - of_genes[own]
        if change.kind == DELETE:
            if background:
                key, value = project(weight[part] * encoder._background(None).to(weight)[part].unsqueeze(-1))
                context = shared.replace(places[own], key, value, bias=1.0)
            else:
                context = shared.remove(places[own])
        else:
            assert change.values is not None
            high = values.new_tensor([change.values[gene] for gene in part.tolist()])
            high = torch.maximum(high, values[own]) if expressed else high
            key, value = project(weight[part] * high.to(weight).unsqueeze(-1))
            if expressed or background:
                context = shared.replace(places[own] if expressed else part, key, value)
            else:
                context = shared.add(key, value)
            if moved is not None:
                moved = moved + encoder.linear_latent.of_genes(part[None], high[None])[0]
        yield latents_of_copies(encoder, context, moved)


def _runs(start: int, stop: int) -> list[tuple[int, int]]:
    return [(low, min(low + COPIES_AT_ONCE, stop)) for low in range(start, stop, COPIES_AT_ONCE)]


# -------------------------------------------------------------------- any of them


def perturb_tokens(
    network: Any, cells: Sequence[Cell], genes: torch.Tensor, change: Change, batch_size: int = 64
) -> list[Copies]:
    """Embed cells once for each gene that is changed in them.

    The results are those of forward passes of `changed_tokens`, within rounding. Other genes of a cell keep their
    values: the total of the cell's counts, by which Exceiver scales them, stays the measured one.

    Parameters
    ----------
    network
        An Exceiver, scCello or LangCell model with any head or adapter, in evaluation.
    cells
        ``input_ids`` and, for Exceiver, ``expression_values`` of each cell, without padding, shape (tokens,).
    genes
        Token ids of the genes to change, shape (genes,).
    change
        What is done to them.
    batch_size
        Number of copies of several cells that are computed at once.

    Returns
    -------
    list of Copies
        One for each cell, with the genes that can be changed in it.

    Raises
    ------
    ValueError
        If the model is neither Exceiver nor an encoder of rank-value tokens.
    """
    encoder = cell_encoder(network)
    ranks, exceiver = hasattr(encoder, "can_choose_places"), hasattr(encoder, "gene_embedding")
    shares = not ranks or encoder.linear_latent is None  # which depends on all tokens of each copy
    if not ranks and not exceiver:
        raise ValueError(
            f"perturbing genes of {type(encoder).__name__} is unsupported: it is neither Exceiver nor a BERT"
        )
    found: list[Copies | None] = [None] * len(cells)
    alone: list[tuple[int, torch.Tensor]] = []
    with torch.inference_mode():
        for number, cell in enumerate(cells):
            chosen = genes_to_change(encoder, cell, genes, change)
            dense = len(chosen) * DENSE >= len(cell["input_ids"]) if ranks else len(chosen) >= MANY
            if not (dense and shares):
                alone.append((number, chosen))
                continue
            copies = (rank_copies if ranks else _exceiver_copies)(encoder, cell, chosen, change)
            pairs = [(c, c) if ranks else (encoder.pool(c), c) for c in copies]
            scores = [class_scores(network, *pair) for pair in pairs]
            embeddings = torch.cat([pair[0] for pair in pairs])
            found[number] = Copies(chosen, embeddings, None if scores[0] is None else torch.cat(scores))
        rows = [changed_tokens(cells[number], gene, change) for number, part in alone for gene in part.tolist()]
        if rows:
            embeddings, logits = _in_batches(network, rows, batch_size)
        else:
            embeddings, logits = embed_nothing(network, cells, change)
        start = 0
        for number, part in alone:
            own = slice(start, start := start + len(part))
            found[number] = Copies(part, embeddings[own], None if logits is None else logits[own])
    return [copies for copies in found if copies is not None]


def embed_nothing(network: Any, cells: Sequence[Cell], change: Change) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return embeddings and scores of no cell, with the shapes of those of cells."""
    one = embed_tokens(network, cells[:1], change, 1)
    return one.embeddings[:0], None if one.scores is None else one.scores[:0]


__all__ = [
    "DELETE",
    "OVEREXPRESS",
    "Change",
    "Copies",
    "changed_tokens",
    "class_scores",
    "embed_tokens",
    "genes_to_change",
    "perturb_tokens",
    "rank_copies",
]
