"""What a model knows about single genes: their embeddings, their states in cells, and attention between them.

Exceiver has no hidden state of a gene: its latents read genes by cross attention. The state of a gene in a cell is,
our choice, what its decoder makes of the gene's query there; without a decoder the mean of the processed latents,
weighted by how much of their attention each of them gives to the gene. Its attention between two genes is, our choice,
the product of what a latent gives to each, mean over latents and heads: symmetric, and it adds up to 1 in a cell.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from cellglot.modeling.loaded_model import without_adapter
from cellglot.modeling.masked_genes import cell_encoder


ROWS_AT_ONCE = 1 << 13
PAIRS_AT_ONCE = 1 << 25  # of a cell's tokens, summed over the cells that are in memory together

DECODER, LATENTS, HIDDEN = "decoder", "latents", "hidden states"


def is_rank_value(encoder: Any) -> bool:
    """Whether an encoder is a BERT over rank-value tokens; an error if it is neither that nor Exceiver."""
    if hasattr(encoder, "can_choose_places"):
        return True
    if hasattr(encoder, "latent_queries"):
        return False
    raise ValueError(f"genes of {type(encoder).__name__} are unsupported: it is neither Exceiver nor a BERT")


def static_embeddings(model: Any, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the embeddings of tokens that a model learned, float32 on the CPU, shape (tokens, size).

    Parameters
    ----------
    model
        An Exceiver, scCello or LangCell model with any head or adapter.
    token_ids
        Shape (tokens,).
    """
    encoder = cell_encoder(model)
    is_rank_value(encoder)
    table = encoder.get_input_embeddings()
    place = next(table.parameters()).device
    with torch.inference_mode():
        parts = [table(part.to(place)).float().cpu() for part in token_ids.split(ROWS_AT_ONCE)]
    return torch.cat(parts)


def states_come_from(model: Any) -> str:
    """Return what the states of genes are: ``"hidden states"``, or of Exceiver ``"decoder"`` or ``"latents"``."""
    if is_rank_value(cell_encoder(model)):
        return HIDDEN
    return DECODER if hasattr(without_adapter(model), "decoder") else LATENTS


def gene_states(model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the states of the genes of cells.

    Parameters
    ----------
    model
        As for `static_embeddings`, in evaluation.
    batch
        Inputs of the model, shape (cells, tokens).

    Returns
    -------
    token_ids
        The genes of all cells, without special tokens and padding, shape (genes of all cells,).
    states
        Shape (genes of all cells, size).
    """
    encoder, ids = cell_encoder(model), batch["input_ids"]
    if is_rank_value(encoder):
        states = encoder(**batch).last_hidden_state
        ids = ids[:, : states.shape[1]]
        genes = _genes(encoder.config, ids, batch.get("attention_mask"))
        return ids[genes], states[genes]
    genes = _genes(encoder.config, ids, batch.get("attention_mask"))
    latents = encoder(**batch).last_hidden_state
    if states_come_from(model) == DECODER:
        return ids[genes], without_adapter(model).decoder(encoder.gene_embedding(ids), latents)[genes]
    weights = latent_attention(encoder, batch).mean(dim=1)  # cells, latents, genes
    shares = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-30)
    read = latents[:, : encoder.config.num_latents]  # a linear latent reads no genes by attention
    return ids[genes], (shares.transpose(1, 2).to(read.dtype) @ read)[genes]


def _genes(config: Any, ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Tell which tokens are genes, shape (cells, tokens)."""
    genes = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    genes = genes[:, : ids.shape[1]]
    for name in ("pad", "mask", "cls"):
        token = getattr(config, f"{name}_token_id", None)
        if token is not None:
            genes = genes & (ids != token)
    return genes


# -------------------------------------------------------------------- attention


def attention_is_symmetric(model: Any) -> bool:
    """Whether attention between genes has no direction, as Exceiver's."""
    return not is_rank_value(cell_encoder(model))


def gene_attention(model: Any, batch: Mapping[str, torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the genes of each cell, and the attention between them.

    Of rank-value encoders it is the mean over layers and heads: row i is what gene i gives to the genes of its cell,
    1 less what it gives to ``<cls>``. Of Exceiver see the module. Cells without genes are left out.

    Parameters
    ----------
    model, batch
        As for `gene_states`.

    Yields
    ------
    token_ids
        Shape (genes,).
    weights
        Float32, shape (genes, genes).
    """
    encoder = cell_encoder(model)
    if is_rank_value(encoder):
        read = getattr(encoder.config, "encoder_tokens", None)
        batch = {name: values[:, :read] for name, values in batch.items()}
    pairs = batch["input_ids"].shape[1] ** 2
    at_once = max(1, PAIRS_AT_ONCE // max(pairs, 1))
    for start in range(0, len(batch["input_ids"]), at_once):
        part = {name: values[start : start + at_once] for name, values in batch.items()}
        genes = _genes(encoder.config, part["input_ids"], part.get("attention_mask"))
        found = _rank_value_attention(encoder, part) if is_rank_value(encoder) else _through_latents(encoder, part)
        for ids, own, weights in zip(part["input_ids"], genes, found, strict=True):
            if own.any():
                yield ids[own], weights[own][:, own]


def _rank_value_attention(encoder: Any, batch: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the attention of each cell's tokens, mean over layers and heads, shape (tokens, tokens)."""
    layers, ids = encoder.layers, batch["input_ids"]
    tokens = ids != encoder.config.pad_token_id
    if "attention_mask" in batch:
        tokens = tokens & batch["attention_mask"].bool()
    totals = torch.zeros(*ids.shape, ids.shape[1], device=ids.device)

    def add(attention: Any, given: tuple[Any, ...]) -> None:
        for cell, kept in enumerate(tokens):
            states = given[0][cell : cell + 1, kept]
            query, key = (attention.split_heads(p(states))[0].float() for p in (attention.q_proj, attention.k_proj))
            weights = (query @ key.transpose(-1, -2) * attention.scaling).softmax(dim=-1).mean(dim=0)
            at = kept.nonzero()[:, 0]
            totals[cell, at[:, None], at] += weights / len(layers)

    with _watched([layer.self_attn for layer in layers], add):
        encoder(**batch)
    yield from totals


@contextmanager
def _watched(modules: list[Any], add: Any) -> Iterator[None]:
    """Call a function with each module and its inputs before the module computes."""
    handles = [module.register_forward_pre_hook(lambda m, given: add(m, given)) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _through_latents(encoder: Any, batch: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    for weights in latent_attention(encoder, batch):  # heads, latents, genes
        read = weights.flatten(0, 1)
        yield read.T @ read / len(read)


def latent_attention(encoder: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return how much of its attention each latent of an ExceiverModel gives to each gene of a cell.

    Parameters
    ----------
    encoder
        An ExceiverModel in evaluation.
    batch
        ``input_ids``, ``expression_values`` and ``attention_mask``, shape (cells, genes).

    Returns
    -------
    torch.Tensor
        Float32, shape (cells, heads, latents, genes), 0 for padding. With ``unexpressed_genes="bias"`` latents also
        read unexpressed genes, so that these weights add up to less than 1.
    """
    config, block = encoder.config, encoder.encoder
    attention, ids = block.cross_attn, batch["input_ids"]
    query = attention.split_heads(attention.q_proj(block.norm_query(encoder.latent_queries.unsqueeze(0)))).float()

    def logits_of(genes: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        sources = encoder.gene_embedding(genes)
        sources = block.norm_key_value(sources * values.to(sources.dtype).unsqueeze(-1))
        key = attention.split_heads(attention.k_proj(sources)).float()
        return query @ key.transpose(-1, -2) * attention.scaling

    kept = _genes(config, ids, batch.get("attention_mask"))
    logits = logits_of(ids, batch["expression_values"]).masked_fill(~kept[:, None, None], -torch.inf)
    log_sum = logits.logsumexp(dim=-1, keepdim=True)
    if config.unexpressed_genes == "bias":
        every = torch.arange(config.num_genes, device=ids.device)
        others = logits_of(every.unsqueeze(0), encoder._background(None).unsqueeze(0))[0] + 1.0
        rest = [
            others.index_fill(-1, own[there], -torch.inf).logsumexp(dim=-1, keepdim=True)
            for own, there in zip(ids, kept, strict=True)
        ]
        log_sum = torch.logaddexp(log_sum, torch.stack(rest))
    return (logits - log_sum).exp().masked_fill(~kept[:, None, None], 0.0)


__all__ = [
    "attention_is_symmetric",
    "gene_attention",
    "gene_states",
    "latent_attention",
    "states_come_from",
    "static_embeddings",
]
