"""Distance that a cell's embedding moves when one gene is hidden, for every gene of the cell: exact, at half the work.

Copies of a cell, each with another hidden gene, differ only in one key and one value of the first attention. Its
softmax is computed once; each copy subtracts the old key's share and adds that of the new one. The last layer computes
only the tokens that the embedding depends on.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cellglot.modeling.families import FAMILIES


COPIES_AT_ONCE = 16
TOKENS_AT_ONCE = 2048  # of copies that go through the layers at once on a CPU: their states stay in its cache


@dataclass
class SharedAttention:
    """Attention of some queries to the keys of one cell, prepared for copies with one key replaced.

    Parameters
    ----------
    query
        Shape (heads, queries, size).
    key, value
        Shape (heads, keys, size).
    scaling
        Factor of products of queries and keys.
    bias
        Added to the logits of the keys, shape (keys,).
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    bias: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Attend to all keys, and to all keys but the heaviest of each query."""
        logits = self.query @ self.key.transpose(-1, -2) * self.scaling
        if self.bias is not None:
            logits = logits + self.bias
        self.heaviest = logits.argmax(dim=-1)
        self.log_sum, self.context, self.weights = _attend(logits, self.value)
        without = logits.scatter_(-1, self.heaviest.unsqueeze(-1), -torch.inf)
        self.log_sum_without, self.context_without, _ = _attend(without, self.value)

    def replace(self, places: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: float = 0.0) -> torch.Tensor:
        """Attend with one key and value replaced in each copy.

        The old key's weight is subtracted if it is below one half, so that no digits are lost; a query has at most one
        heavier key, for which the attention without it was computed before.

        Parameters
        ----------
        places
            Key to replace in each copy, shape (copies,).
        key, value
            New key and value, shape (heads, copies or 1, size).
        bias
            Added to the logits of the new keys.

        Returns
        -------
        torch.Tensor
            Shape (copies, queries, heads, size).
        """
        weight = self.weights[..., places].permute(2, 1, 0)  # copies, queries, heads
        heavy = (places[:, None, None] == self.heaviest.T) & (weight > 0.5)
        light = weight.masked_fill(heavy, 0.0)
        log_rest = torch.where(heavy, self.log_sum_without.T, self.log_sum.T + torch.log1p(-light))
        logit = (self.query @ key.transpose(-1, -2) * self.scaling).permute(2, 1, 0) + bias
        new = torch.sigmoid(logit - log_rest)
        kept = (1 - new) / (1 - light)
        context = self.context.transpose(0, 1)
        result = context * kept.unsqueeze(-1)
        result.addcmul_(self.value[:, places].transpose(0, 1).unsqueeze(1), (-kept * light).unsqueeze(-1))
        at = heavy.nonzero(as_tuple=True)
        result[at] = self.context_without[at[2], at[1]] * (1 - new[at]).unsqueeze(-1)
        return result.addcmul_(value.transpose(0, 1).unsqueeze(1), new.unsqueeze(-1))

    def remove(self, places: torch.Tensor) -> torch.Tensor:
        """Attend without one key in each copy; there have to be others.

        Parameters
        ----------
        places
            Key to remove in each copy, shape (copies,).

        Returns
        -------
        torch.Tensor
            Shape (copies, queries, heads, size).
        """
        weight = self.weights[..., places].permute(2, 1, 0)  # copies, queries, heads
        heavy = (places[:, None, None] == self.heaviest.T) & (weight > 0.5)
        light = weight.masked_fill(heavy, 0.0)
        kept = 1 / (1 - light)
        result = self.context.transpose(0, 1) * kept.unsqueeze(-1)
        result.addcmul_(self.value[:, places].transpose(0, 1).unsqueeze(1), (-kept * light).unsqueeze(-1))
        at = heavy.nonzero(as_tuple=True)
        result[at] = self.context_without[at[2], at[1]]
        return result

    def add(self, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend with one more key and value in each copy, both of shape (heads, copies, size).

        Returns
        -------
        torch.Tensor
            Shape (copies, queries, heads, size).
        """
        logit = (self.query @ key.transpose(-1, -2) * self.scaling).permute(2, 1, 0)
        new = torch.sigmoid(logit - self.log_sum.T)
        result = self.context.transpose(0, 1) * (1 - new).unsqueeze(-1)
        return result.addcmul_(value.transpose(0, 1).unsqueeze(1), new.unsqueeze(-1))


def _attend(logits: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    log_sum = logits.logsumexp(dim=-1)
    weights = (logits - log_sum.unsqueeze(-1)).exp_()
    return log_sum, weights @ value, weights


# -------------------------------------------------------------------- encoders over rank tokens


def rank_value_copies(encoder: Any, input_ids: torch.Tensor, at_once: int) -> Iterator[torch.Tensor]:
    """Embed one cell once for each of its genes, with that gene's token replaced by ``<mask>``.

    `encoder` is a ScCelloModel or LangCellCellModel in evaluation, `input_ids` has shape (tokens,) without padding.
    Yields embeddings in the order of the genes, shape (copies, size).
    """
    places = gene_places(encoder.config, input_ids)
    embeddings, first = encoder.embeddings, encoder.layers[0]
    states = embeddings(input_ids[None])[0]
    masked = embeddings(torch.full_like(input_ids, encoder.config.mask_token_id)[None])[0]
    attention = first.self_attn
    query, key, value = (_heads(p(states), attention.head_dim) for p in _projections(attention))
    shared = SharedAttention(query, key, value, attention.scaling)
    for part in places.split(at_once):
        own = masked[part]
        new_query, new_key, new_value = (_heads(p(own), attention.head_dim) for p in _projections(attention))
        context = shared.replace(part, new_key, new_value)
        copies = torch.arange(len(part), device=part.device)
        context[copies, part] = _own_context(shared, part, new_query, new_key, new_value)
        hidden = attention.o_proj(context.flatten(2).to(states.dtype)) + states
        hidden[copies, part] += own - states[part]
        tokens = input_ids.repeat(len(part), 1)
        tokens[copies, part] = encoder.config.mask_token_id
        yield finish_copies(encoder, hidden, tokens)


def _projections(attention: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def _heads(states: torch.Tensor, size: int) -> torch.Tensor:
    """Reshape (tokens, hidden size) to (heads, tokens, size of a head), float32."""
    return states.unflatten(-1, (-1, size)).transpose(0, 1).float()


def _own_context(
    shared: SharedAttention, places: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Attend from the hidden gene itself, whose query differs, too; shape (copies, heads, size)."""
    copies = torch.arange(len(places), device=places.device)
    logits = query @ shared.key.transpose(-1, -2) * shared.scaling
    logits[:, copies, places] = (query * key).sum(dim=-1) * shared.scaling
    weights = logits.softmax(dim=-1)
    changed = (value - shared.value[:, places]) * weights[:, copies, places].unsqueeze(-1)
    return (weights @ shared.value + changed).transpose(0, 1)


def copies_at_once(tokens: torch.Tensor) -> int:
    """Return how many copies go through the layers at once; `tokens` has shape (copies, tokens)."""
    return max(1, TOKENS_AT_ONCE // tokens.shape[1]) if tokens.device.type == "cpu" else COPIES_AT_ONCE


def finish_copies(encoder: Any, attended: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Compute cell embeddings of copies of a cell from the first layer's attention.

    Parameters
    ----------
    encoder
        As for `rank_value_copies`.
    attended
        Sum of the first attention and the states before it, shape (copies, tokens, hidden size).
    tokens
        Ids of the copies, without padding, shape (copies, tokens).

    Returns
    -------
    torch.Tensor
        Shape (copies, size).
    """
    at_once = copies_at_once(tokens)
    parts = zip(attended.split(at_once), tokens.split(at_once), strict=True)
    return torch.cat([_finish_part(encoder, *part) for part in parts])


def _finish_part(encoder: Any, attended: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Finish some of the copies of `finish_copies`."""
    first, layers, pooled_first = encoder.layers[0], encoder.layers[1:], encoder.can_choose_places(packed=False)
    hidden = _feed_forward(first, first.norm_attention(attended))
    for number, layer in enumerate(layers, start=1):
        last = number == len(layers)
        hidden = _first_token(layer, hidden) if pooled_first and last else layer(hidden, None)
    pooled = hidden[:, 0] if pooled_first else encoder._pool(hidden, tokens, torch.ones_like(tokens).bool(), None)
    projection = getattr(encoder, "projection", None)
    return pooled if projection is None else nn.functional.normalize(projection(pooled).float(), dim=-1)


def _feed_forward(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return a layer's output from its normalised attention."""
    return layer.norm_feed_forward(hidden + layer.fc2(layer.activation(layer.fc1(hidden))))


def _first_token(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return what a layer computes for the first token, shape (copies, 1, hidden size).

    Other tokens are not projected to keys and values: the query is projected to the space of the hidden states, and
    their weighted sum to a value. The bias of the keys adds the same to the logits of all tokens, which is nothing.
    """
    attention, first = layer.self_attn, hidden[:, :1]
    if not all(type(p) is nn.Linear for p in (attention.k_proj, attention.v_proj)):  # adapters change projections
        return layer(hidden, None, hidden.new_zeros(len(hidden), 1, dtype=torch.long))
    key, value = (
        p.weight.unflatten(0, (-1, attention.head_dim)) for p in (attention.k_proj, attention.v_proj)
    )  # heads, size, hidden size
    query = attention.q_proj(first[:, 0]).unflatten(-1, (-1, attention.head_dim))  # copies, heads, size
    query = torch.einsum("chs,hsd->chd", query, key)
    weights = (query @ hidden.transpose(1, 2) * attention.scaling).float().softmax(dim=-1).to(hidden.dtype)
    context = torch.einsum("chd,hsd->chs", weights @ hidden, value).flatten(1)
    if attention.v_proj.bias is not None:
        context = context + attention.v_proj.bias
    return _feed_forward(layer, layer.norm_attention(first + attention.o_proj(context).unsqueeze(1)))


def _whole_copies(encoder: Any, input_ids: torch.Tensor, at_once: int) -> Iterator[torch.Tensor]:
    """Return what `rank_value_copies` does, by a forward pass of every copy: a linear latent reads all tokens."""
    for part in gene_places(encoder.config, input_ids).split(at_once):
        copies = input_ids.repeat(len(part), 1)
        copies[torch.arange(len(part), device=part.device), part] = encoder.config.mask_token_id
        yield encoder(copies).pooler_output


def tokens_read(encoder: Any) -> int | None:
    """Return how many tokens of a cell, the first ones, an encoder of rank-value tokens reads; None for all."""
    if getattr(encoder, "linear_latent", None) is not None:
        return None
    return getattr(getattr(encoder, "config", None), "encoder_tokens", None)


def gene_places(config: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the places of a cell's genes without special tokens, shape (genes,)."""
    special = [getattr(config, f"{name}_token_id", None) for name in ("pad", "mask", "cls")]
    known = torch.tensor([-1 if token is None else token for token in special], device=input_ids.device)
    return (~torch.isin(input_ids, known)).nonzero()[:, 0]


# -------------------------------------------------------------------- Exceiver


def exceiver_copies(
    encoder: Any, input_ids: torch.Tensor, expression_values: torch.Tensor, at_once: int
) -> Iterator[torch.Tensor]:
    """Embed one cell once for each gene that it expresses, with that gene hidden as by `masked_genes`.

    `input_ids` and `expression_values` have shape (genes,) without padding. Yields embeddings in the order of the
    genes, shape (copies, size).
    """
    places, shared, project = first_attention(encoder, input_ids, expression_values)
    new_key, new_value = project(torch.zeros_like(encoder.gene_embedding.weight[:1]))
    linear = None
    if encoder.linear_latent is not None:
        of_genes = encoder.linear_latent.of_genes(input_ids[None], expression_values[None])[0]
        linear = (encoder.linear_latent(input_ids[None], expression_values[None]) - of_genes).split(at_once)
    for number, part in enumerate(places.split(at_once)):
        context = shared.replace(part, new_key, new_value)
        yield encoder.pool(latents_of_copies(encoder, context, None if linear is None else linear[number]))


def first_attention(
    encoder: Any, input_ids: torch.Tensor, expression_values: torch.Tensor
) -> tuple[torch.Tensor, SharedAttention, Callable[[torch.Tensor], list[torch.Tensor]]]:
    """Prepare the attention of an ExceiverModel's latents to the genes of one cell.

    Parameters
    ----------
    encoder, input_ids, expression_values
        As for `exceiver_copies`.

    Returns
    -------
    places
        Number of each gene's key, shape (genes,).
    shared
        The attention to all keys.
    project
        Function from embedded genes, shape (genes, size), to their keys and values.
    """
    config, block = encoder.config, encoder.encoder
    attention, weight = block.cross_attn, encoder.gene_embedding.weight

    def project(sources: torch.Tensor) -> list[torch.Tensor]:
        normed = block.norm_key_value(sources)
        return [_heads(p(normed), attention.head_dim) for p in (attention.k_proj, attention.v_proj)]

    sources = encoder.gene_embedding(input_ids) * expression_values.to(weight.dtype).unsqueeze(-1)
    bias, places = None, torch.arange(len(input_ids), device=input_ids.device)
    if config.unexpressed_genes == "bias":
        values = encoder._background(None).to(weight).unsqueeze(-1)
        sources = (weight[: config.num_genes] * values).index_copy(0, input_ids, sources)
        bias = torch.ones(len(sources), device=sources.device).index_fill(0, input_ids, 0.0)
        places = input_ids
    query = _heads(attention.q_proj(block.norm_query(encoder.latent_queries)), attention.head_dim)
    key, value = project(sources)
    return places, SharedAttention(query, key, value, attention.scaling, bias), project


def latents_of_copies(encoder: Any, context: torch.Tensor, linear: torch.Tensor | None) -> torch.Tensor:
    """Process the latents of copies of a cell from their first attention.

    Parameters
    ----------
    context
        From `SharedAttention`, shape (copies, latents, heads, size).
    linear
        Linear latent of each copy, shape (copies, hidden size), if the encoder has one.

    Returns
    -------
    torch.Tensor
        As the encoder's ``last_hidden_state``, shape (copies, latents, hidden size).
    """
    block = encoder.encoder
    latents = encoder.latent_queries + block.cross_attn.o_proj(context.flatten(2).to(encoder.latent_queries.dtype))
    latents = latents + block.mlp(latents)
    for layer in encoder.layers:
        latents = layer(latents)
    return latents if linear is None else torch.cat([latents, linear.unsqueeze(1).to(latents.dtype)], dim=1)


# -------------------------------------------------------------------- any of them


def cell_encoder(model: Any) -> Any:
    """Return the encoder of cells of a classifier, an adapter, or a model of cells and texts."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    family = FAMILIES.get(str(getattr(getattr(model, "config", None), "model_type", None)))
    return model if family is None else getattr(model, family.encoder, model)


def masked_embeddings(
    model: Any, cell: Mapping[str, torch.Tensor], at_once: int = COPIES_AT_ONCE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed one cell once for each gene that it expresses, with that gene hidden.

    Rank-value encoders get ``<mask>`` in the gene's place; in Exceiver the gene has the zero embedding. The result is
    that of one forward pass for every copy, within rounding.

    Parameters
    ----------
    model
        An Exceiver, scCello or LangCell model with any head or adapter; in evaluation.
    cell
        ``input_ids`` and, for Exceiver, ``expression_values``, without padding, shape (tokens,).
    at_once
        Copies in a batch.

    Returns
    -------
    genes
        Token id of the gene hidden in each copy, shape (genes,): those that the encoder reads.
    """
    encoder, ids = cell_encoder(model), cell["input_ids"]
    ids = ids[: tokens_read(encoder)]
    if len(ids) < 2:
        raise ValueError(f"a cell of {len(ids)} tokens: to hide a gene, a cell needs at least one other")
    if hasattr(encoder, "can_choose_places"):
        whole = encoder.linear_latent is not None
        copies = (_whole_copies if whole else rank_value_copies)(encoder, ids, at_once)
        genes = ids[gene_places(encoder.config, ids)]
    elif hasattr(encoder, "gene_embedding"):
        copies, genes = exceiver_copies(encoder, ids, cell["expression_values"], at_once), ids
    else:
        raise ValueError(
            f"masking genes of {type(encoder).__name__} is unsupported: it is neither Exceiver nor a BERT"
        )
    with torch.inference_mode():
        return genes, torch.cat(list(copies))


def gene_distances(
    model: Any, cell: Mapping[str, torch.Tensor], at_once: int = COPIES_AT_ONCE
) -> tuple[np.ndarray, np.ndarray]:
    """Measure how far each gene moves a cell: 1 - cosine of its embeddings with and without the gene.

    Takes the arguments of `masked_embeddings`.

    Returns
    -------
    genes
        Token ids, shape (genes,).
    distances
        Between 0 and 2, float64, shape (genes,).
    """
    with torch.inference_mode():
        batch = {name: values[None] for name, values in cell.items() if name != "attention_mask"}
        whole = cell_encoder(model)(**batch).pooler_output
    genes, embeddings = masked_embeddings(model, cell, at_once)
    return genes.cpu().numpy(), cosine_distances(whole[0].cpu().numpy(), embeddings.cpu().float().numpy())


def cosine_distances(whole: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Return 1 - cosine, as half the squared distance of normalised vectors, which keeps the digits of small ones.

    Returns
    -------
    numpy.ndarray
        Float64, shape (copies,); 1 where a vector is zero.
    """
    first, others = np.asarray(whole, dtype=np.float64), np.asarray(copies, dtype=np.float64)
    lengths, length = np.linalg.norm(others, axis=1), float(np.linalg.norm(first))
    apart = others / np.maximum(lengths, 1e-300)[:, None] - first / max(length, 1e-300)
    distances = 0.5 * (apart**2).sum(axis=1)
    return np.where((lengths > 0) & (length > 0), distances, 1.0)


__all__ = [
    "COPIES_AT_ONCE",
    "SharedAttention",
    "cell_encoder",
    "cosine_distances",
    "finish_copies",
    "first_attention",
    "gene_distances",
    "latents_of_copies",
    "masked_embeddings",
    "tokens_read",
]
