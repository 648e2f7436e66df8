"""Exceiver as in the released code, for comparison, and cells for it and for ours.

`nn.MultiheadAttention` reads all genes, with a float mask that adds 1 to the logits of unexpressed ones, and returns
its weights. Parameters have the released names, so `convert_exceiver.convert` accepts them.
"""

from typing import Any

import torch
from torch import nn

from cellglot.modeling.convert.exceiver import convert


PUBLISHED = {
    "seq_len": 19_067,
    "seq_dim": 4,
    "query_len": 128,
    "query_dim": 4,
    "num_layers": 8,
    "nhead": 4,
    "dim_feedforward": 2048,
    "dropout": 0.0,
}
HEADS = 4


class CrossAttention(nn.Module):
    """Pre-norm cross attention and its small feed-forward block."""

    def __init__(self, query_size: int, size: int, need_weights: bool):
        super().__init__()
        self.layernorm_kv, self.layernorm_q = nn.LayerNorm(size), nn.LayerNorm(query_size)
        self.cross_attn = nn.MultiheadAttention(query_size, HEADS, kdim=size, vdim=size, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(query_size),
            nn.Linear(query_size, query_size),
            nn.GELU(),
            nn.LayerNorm(query_size),
            nn.Linear(query_size, query_size),
        )
        self.need_weights = need_weights

    def forward(self, queries: torch.Tensor, source: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attend from queries (cells, queries, size) to a source (cells, keys, size), its mask added to logits."""
        keys = self.layernorm_kv(source)
        attended, _ = self.cross_attn(
            self.layernorm_q(queries), keys, keys, key_padding_mask=mask, need_weights=self.need_weights
        )
        states = queries + attended
        return states + self.mlp(states)


class ReleasedExceiver(nn.Module):
    """The released model; with `need_weights` False it does not return attention weights."""

    def __init__(self, need_weights: bool = True, sizes: dict[str, Any] | None = None):
        super().__init__()
        s = sizes or PUBLISHED
        gene, latent = s["seq_dim"], s["query_dim"]
        self.query_emb = nn.Parameter(torch.randn(s["query_len"], latent))
        self.gene_emb = nn.Embedding(s["seq_len"] + 1, gene, padding_idx=s["seq_len"])
        self.encoder_cross_attn = CrossAttention(latent, gene, need_weights)
        layer = nn.TransformerEncoderLayer(
            latent, s["nhead"], s["dim_feedforward"], s["dropout"], activation="gelu", batch_first=True
        )
        self.process_self_attn = nn.ModuleDict({"transformer": nn.TransformerEncoder(layer, s["num_layers"])})
        self.decoder_cross_attn = CrossAttention(gene, latent, need_weights)
        self.mlp = nn.Sequential(nn.LayerNorm(gene), nn.Linear(gene, 1), nn.GELU(), nn.Linear(1, 1))

    def embed(self, ids: torch.Tensor, values: torch.Tensor, unexpressed: torch.Tensor) -> torch.Tensor:
        """Return the processed latents of cells, genes in columns; all shapes (cells, genes)."""
        genes = self.gene_emb(ids) * values.unsqueeze(-1)
        queries = self.query_emb.unsqueeze(0).expand(len(ids), -1, -1)
        return self.process_self_attn["transformer"](self.encoder_cross_attn(queries, genes, unexpressed))

    def forward(
        self, ids: torch.Tensor, values: torch.Tensor, unexpressed: torch.Tensor, query_ids: torch.Tensor
    ) -> torch.Tensor:
        """Predict the expression at queries, shape (cells, queries)."""
        latents = self.embed(ids, values, unexpressed)
        return self.mlp(self.decoder_cross_attn(self.gene_emb(query_ids), latents)).squeeze(-1)


def draw_cells(n_cells: int, share: float, seed: int = 0, mask_fraction: float = 0.15) -> dict[str, torch.Tensor]:
    """Draw cells that express a share of the genes, for both models, with some genes masked.

    Returns
    -------
    dict
        For ours: `input_ids`, `expression_values`, `masked_genes`, `background_values`; for the released model:
        `values` and `unexpressed` over all genes, `ids` and `masked_ids`, `masked_values`; for both: `query_ids`,
        `labels`.
    """
    random = torch.Generator().manual_seed(seed)
    n_genes = PUBLISHED["seq_len"]
    n, n_masked = int(share * n_genes), int(mask_fraction * share * n_genes)
    shuffled = torch.rand(n_cells, n_genes, generator=random).argsort(dim=1)
    input_ids, place = shuffled[:, :n].sort(dim=1)
    background = 1 - torch.rand(n_genes, generator=random)
    expression = background[input_ids] + torch.rand(n_cells, n, generator=random) * 3
    masked = place < n_masked
    query_ids = input_ids[masked].view(n_cells, n_masked)
    ids = torch.arange(n_genes).expand(n_cells, -1)
    everywhere = background.expand(n_cells, -1)
    return {
        "input_ids": input_ids,
        "expression_values": expression,
        "masked_genes": masked,
        "background_values": background,
        "query_ids": query_ids,
        "labels": expression[masked].view(n_cells, n_masked),
        "ids": ids,
        "values": everywhere.scatter(1, input_ids, expression),
        "masked_ids": ids.scatter(1, query_ids, n_genes),
        "masked_values": everywhere.scatter(1, input_ids, expression.masked_fill(masked, 1.0)),
        "unexpressed": torch.ones(n_cells, n_genes).scatter(1, input_ids, 0.0),
    }


def models(modes: tuple[str, ...] = ("exclude", "bias"), seed: int = 0) -> dict[str, nn.Module]:
    """Return the released model with and without weights and ours in both modes, all with the same parameters."""
    torch.manual_seed(seed)
    released = ReleasedExceiver()
    plain = ReleasedExceiver(need_weights=False)
    plain.load_state_dict(released.state_dict())
    result: dict[str, nn.Module] = {"as released": released, "without weights": plain}
    for mode in modes:
        result[mode] = convert(PUBLISHED, released.state_dict())
        result[mode].config.unexpressed_genes = mode
    return result
