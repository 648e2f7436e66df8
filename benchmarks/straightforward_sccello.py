"""scCello's objectives computed the straightforward way, with the weights of our model.

Attention with explicit weights, scores of all tokens at all positions, a second pass of the encoder for the noise,
three nested loops for the relational alignment.
"""

import torch
from torch import nn

from cellglot.modeling import ScCelloForPreTraining


IGNORED = -100


def attend(attention: nn.Module, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Attend with explicit weights; the mask is added to the logits, shape (cells, 1, 1, tokens)."""
    cells, tokens, size = states.shape
    query, key, value = (
        projection(states).view(cells, tokens, -1, attention.head_dim).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    logits = torch.matmul(query, key.transpose(-1, -2)) / attention.head_dim**0.5
    logits = logits + mask
    weights = nn.functional.softmax(logits, dim=-1)
    weights = nn.functional.dropout(weights, attention.attention_dropout, attention.training)
    context = torch.matmul(weights, value).transpose(1, 2).contiguous().view(cells, tokens, size)
    return attention.o_proj(context)


def encode(model: ScCelloForPreTraining, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the hidden states, shape (cells, tokens, hidden size)."""
    states = model.sccello.embeddings(input_ids)
    mask = (1.0 - attention_mask[:, None, None, :].to(states.dtype)) * torch.finfo(states.dtype).min
    for layer in model.sccello.layers:
        attended = layer.dropout(attend(layer.self_attn, states, mask))
        states = layer.norm_attention(attended + states)
        forward = layer.dropout(layer.fc2(layer.activation(layer.fc1(states))))
        states = layer.norm_feed_forward(forward + states)
    return states


def scaled(states: torch.Tensor, tau: float) -> torch.Tensor:
    """Normalise, over the root of tau."""
    return nn.functional.normalize(states, dim=-1) / tau**0.5


def relational_alignment(
    cells: torch.Tensor,
    noised: torch.Tensor,
    cell_types: torch.Tensor,
    similarity_levels: torch.Tensor,
    ancestor_mask: torch.Tensor,
) -> torch.Tensor:
    """Mean cross entropy over (cell, level, positive), one after the other."""
    scores = cells @ cells.T
    scores = torch.where(torch.eye(len(cells), dtype=torch.bool), (cells * noised).sum(-1), scores)
    terms = []
    for cell in range(len(cells)):
        levels = similarity_levels[cell_types[cell], cell_types]
        is_ancestor = ancestor_mask[cell_types[cell], cell_types]
        for level in levels.unique()[1:]:
            negatives = scores[cell][(levels < level) & ~is_ancestor]
            for positive in scores[cell][levels >= level]:
                if len(negatives) == 0:
                    terms.append(positive * 0.0)
                    continue
                logits = torch.cat([positive[None], negatives])
                terms.append(nn.functional.cross_entropy(logits[None], torch.zeros(1, dtype=torch.long)))
    return torch.stack(terms).mean() if terms else scores.sum() * 0.0


def loss(
    model: ScCelloForPreTraining,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    cell_type_ids: torch.Tensor,
) -> torch.Tensor:
    """Return the sum of the objectives."""
    tau = model.config.tau
    states = encode(model, input_ids, attention_mask)
    genes = scaled(model.gene_head(model.sccello.embeddings.word_embeddings.weight), tau)
    scores = scaled(model.gene_head(states), tau) @ genes.T
    gene = nn.functional.cross_entropy(scores.view(-1, len(genes)), labels.view(-1))
    cells = scaled(model.cell_head(states[:, 0]), tau)
    noised = scaled(model.cell_head(encode(model, input_ids, attention_mask)[:, 0]), tau)
    prototypes = scaled(model.prototypes.weight, tau)
    coherence = nn.functional.cross_entropy(cells @ prototypes.T, cell_type_ids)
    regularization = nn.functional.mse_loss(model.affine_projection(prototypes[cell_type_ids]), cells)
    tables = model.similarity_levels, model.ancestor_mask
    return gene + coherence + regularization + relational_alignment(cells, noised, cell_type_ids, *tables)
