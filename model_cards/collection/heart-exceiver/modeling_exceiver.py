"""Exceiver: a Perceiver IO over sparse gene expression (Connell, Khan and Keiser 2022, arXiv 2210.14330)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .adapter_folders import AdapterFolders
from .background_attention import BackgroundMemory, background_attention, background_sums, has_cpu_kernel
from .cell_losses import IGNORED, count_items, every_weight_counts, share_of_step
from .configuration_exceiver import ExceiverConfig
from .cpu_layers import Dropout, pays, wide_feed_forward
from .gene_projections import GeneProjections, may_project
from .gene_sums import StandardizedGeneSums, joined_scores, joined_terms
from .input_checks import check_ids, check_labels
from .label_losses import ONE_CLASS, in_units, is_regression, problem_of
from .linear_latent import LinearLatent
from .model_tasks import Predicts, former_name
from .plain_layers import eager_attention_forward, embedding_rows, is_hooked, works_alone


@dataclass
class ExceiverModelOutput(BaseModelOutputWithPooling):
    """Output of `ExceiverModel`.

    Parameters
    ----------
    last_hidden_state
        Processed latents, shape (cells, latents, hidden size).
    pooler_output
        Cell embedding: the flattened latents, shape (cells, latents * hidden size), or their mean, followed by the
        linear latent if there is one.
    hidden_states
        Latents before the first and after every layer, on request.
    attentions
        Self-attention weights of every layer, shape (cells, heads, latents, latents), on request under eager.
    cross_attentions
        Weights of the encoder's cross attention, shape (cells, heads, latents, genes), on request under eager with
        ``unexpressed_genes="exclude"``.
    """

    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class ExceiverForMaskedExpressionOutput(ModelOutput):
    """Output of `ExceiverForMaskedExpression`.

    Parameters
    ----------
    loss
        Mean squared error of predicted expression, if labels are given.
    predicted_expression
        Standardised expression (+1) at the queries, shape (cells, queries).
    last_hidden_state
        Processed latents, shape (cells, latents, hidden size).
    hidden_states, attentions, cross_attentions
        As in `ExceiverModelOutput`.
    """

    loss: torch.Tensor | None = None
    predicted_expression: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class ExceiverForSequenceClassificationOutput(ModelOutput):
    """Output of `ExceiverForSequenceClassification`.

    Parameters
    ----------
    loss
        Sum of the losses below; None if none was computed.
    logits
        Scores of the classes, shape (cells, classes), or the value in its unit, shape (cells, 1).
    classification_loss
        Cross entropy, if labels are classes.
    regression_loss
        Mean squared error of the standardised value, if labels are values.
    expression_loss
        Mean squared error of predicted expression, if `expression_targets` are given.
    predicted_expression
        Standardised expression (+1) at the queries, shape (cells, queries), if there are queries.
    last_hidden_state
        Processed latents, shape (cells, latents, hidden size).
    hidden_states, attentions, cross_attentions
        As in `ExceiverModelOutput`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    classification_loss: torch.Tensor | None = None
    regression_loss: torch.Tensor | None = None
    expression_loss: torch.Tensor | None = None
    predicted_expression: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


class ExceiverAttention(nn.Module):
    """Multi-head attention in which queries (and the output) may have another size than keys and values."""

    def __init__(self, config: ExceiverConfig, query_size: int, key_value_size: int, num_heads: int, dropout: float):
        super().__init__()
        self.config = config
        self.head_dim = query_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = dropout
        self.is_causal = False
        self.q_proj = nn.Linear(query_size, query_size)
        self.k_proj = nn.Linear(key_value_size, query_size)
        self.v_proj = nn.Linear(key_value_size, query_size)
        self.o_proj = nn.Linear(query_size, query_size)
        self.q_proj.start = self.k_proj.start = self.v_proj.start = "attention"
        self.o_proj.start = "attention output"

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """Reshape (cells, tokens, size) to (cells, heads, tokens, size of a head)."""
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend by the configured implementation.

        Parameters
        ----------
        query, key, value
            Shape (cells, heads, tokens, size of a head).
        key_mask
            True for keys to use, shape (cells, keys).

        Returns
        -------
        output
            Shape (cells, queries, heads, size of a head).
        weights
            Shape (cells, heads, queries, keys); None if the implementation returns none.
        """
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        size = value.shape[-1]
        if query.is_cuda and size % 8:  # the fast kernels need head sizes that are multiples of 8
            query, key, value = (nn.functional.pad(states, (0, -size % 8)) for states in (query, key, value))
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            None if key_mask is None else key_mask[:, None, None, :],
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return output[..., :size], weights

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        key_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from `hidden_states` to `key_value_states` (by default to themselves).

        A cell without keys to use gets the output of a zero context.
        """
        source = hidden_states if key_value_states is None else key_value_states
        query = self.split_heads(self.q_proj(hidden_states)).expand(source.shape[0], -1, -1, -1)
        key, value = self.split_heads(self.k_proj(source)), self.split_heads(self.v_proj(source))
        context, weights = self.attend(query, key, value, key_mask, **kwargs)
        return self.o_proj(without_empty(context, key_mask).flatten(2)), weights

    def from_projections(
        self,
        hidden_states: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        values_in_common: torch.Tensor,
        key_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Attend to the keys and values of `GeneProjections`, shape (cells, keys, query size); as `forward` does."""
        key, value = self.split_heads(keys), self.split_heads(values)
        query = self.split_heads(self.q_proj(hidden_states)).expand(len(key), -1, -1, -1)
        context, _ = self.attend(query, key, value, key_mask)
        return self.o_proj(without_empty(context.flatten(2) + values_in_common, key_mask))


def without_empty(context: torch.Tensor, key_mask: torch.Tensor | None) -> torch.Tensor:
    """Set what cells without keys attend to, shape (cells, ...), to 0."""
    if key_mask is None:
        return context
    filled = key_mask.any(dim=1).view(-1, *[1] * (context.ndim - 1))
    return context.where(filled, context.new_zeros(()))


class ExceiverCrossBlock(GradientCheckpointingLayer):
    """Pre-norm cross attention and a small feed-forward block, used in encoder and decoder.

    Keys and values share one layer norm; the residual is added to the query before its norm.
    """

    def __init__(self, config: ExceiverConfig, query_size: int, key_value_size: int):
        super().__init__()
        heads, eps = config.num_cross_attention_heads, config.layer_norm_eps
        self.norm_query = nn.LayerNorm(query_size, eps=eps)
        self.norm_key_value = nn.LayerNorm(key_value_size, eps=eps)
        self.cross_attn = ExceiverAttention(config, query_size, key_value_size, heads, dropout=0.0)
        self.mlp = nn.Sequential(
            nn.LayerNorm(query_size, eps=eps),
            nn.Linear(query_size, query_size),
            nn.GELU(),
            nn.LayerNorm(query_size, eps=eps),
            nn.Linear(query_size, query_size),
        )
        self.background_memory, self.gene_memory = BackgroundMemory(), BackgroundMemory()

    def forward(
        self,
        query_states: torch.Tensor,
        key_value_states: torch.Tensor,
        key_mask: torch.Tensor | None = None,
        background_states: torch.Tensor | None = None,
        genes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Attend from queries to keys.

        Parameters
        ----------
        query_states
            Shape (cells or 1, queries, query size).
        key_value_states
            Shape (cells, keys, key and value size).
        key_mask
            True for keys to use, shape (cells, keys).
        background_states
            States of all genes without counts, shape (1, genes, key and value size); with them, genes that a cell does
            not express are keys, too, with +1 on their logits.
        genes
            Number of the gene of each key, shape (cells, keys); needed with `background_states`.
        """
        queries = self.norm_query(query_states)
        keys = self.norm_key_value(key_value_states)
        if background_states is None:
            attended, _ = self.cross_attn(queries, keys, key_mask, **kwargs)
        else:
            assert genes is not None
            attended = self._attend_all(queries, keys, key_mask, background_states, genes)
        return self._finish(query_states, attended)

    def _finish(self, query_states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        states = query_states + attended
        return states + self.mlp(states)

    def from_genes(
        self,
        query_states: torch.Tensor,
        embedding: nn.Embedding,
        genes: torch.Tensor,
        expression: torch.Tensor,
        key_mask: torch.Tensor,
    ) -> torch.Tensor | None:
        """Attend to genes times their expression by a table of all genes; None where that is impossible or slower.

        Parameters
        ----------
        query_states
            Shape (1, queries, query size).
        genes, expression, key_mask
            Shape (cells, genes).
        """
        norm, attn = self.norm_key_value, self.cross_attn
        layers = (embedding, norm, attn.k_proj, attn.v_proj)
        if is_hooked(self) or is_hooked(attn) or not may_project(*layers):
            return None
        if genes.numel() < embedding.num_embeddings:  # the table would take longer
            return None
        weights = [weight for layer in layers for weight in layer.parameters()]
        table = self.gene_memory(
            [*weights, torch.tensor(norm.eps)],
            lambda: GeneProjections(embedding.weight, norm, attn.k_proj, attn.v_proj),
        )
        keys, values = table(genes, expression.float())
        queries = self.norm_query(query_states)
        return self._finish(query_states, attn.from_projections(queries, keys, values, table.in_common, key_mask))

    def _background(
        self, query: torch.Tensor, background: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """Return keys and values of the background, and its sums if they are kept from call to call."""
        norm, attn = self.norm_key_value, self.cross_attn
        layers = (norm, attn.k_proj, attn.v_proj)

        def projected() -> tuple[torch.Tensor, torch.Tensor]:
            states = norm(background)
            return attn.split_heads(attn.k_proj(states)), attn.split_heads(attn.v_proj(states))

        if not has_cpu_kernel(query) or torch.is_grad_enabled() or not all(map(works_alone, layers)):
            return *projected(), None

        def summed() -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
            keys, values = projected()
            return keys, values, background_sums(query, keys, values, attn.scaling)

        numbers = torch.tensor([norm.eps, attn.scaling], dtype=torch.float64)
        weights = [weight for layer in layers for weight in layer.parameters()]
        return self.background_memory([query, background, numbers, *weights], summed)

    def _attend_all(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        key_mask: torch.Tensor | None,
        background: torch.Tensor,
        genes: torch.Tensor,
    ) -> torch.Tensor:
        attn = self.cross_attn
        query, key, value = (
            attn.split_heads(projection(source))
            for projection, source in ((attn.q_proj, queries), (attn.k_proj, keys), (attn.v_proj, keys))
        )
        background_key, background_value, sums = self._background(query, background)

        def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            return attn.attend(q, k, v, mask)[0].transpose(1, 2)

        with torch.autocast(query.device.type, enabled=False):
            context = background_attention(
                None if has_cpu_kernel(query) else attention,
                query,
                key,
                value,
                key_mask,
                background_key,
                background_value,
                genes,
                attn.scaling,
                sums=sums,
            )
        return attn.o_proj(context.to(queries.dtype).transpose(1, 2).flatten(2))


class ExceiverLayer(GradientCheckpointingLayer):
    """Post-norm self-attention and feed-forward block for the latents."""

    def __init__(self, config: ExceiverConfig):
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = ExceiverAttention(config, size, size, config.num_attention_heads, config.attention_dropout)
        self.norm_attention = nn.LayerNorm(size, eps=eps)
        self.fc1 = nn.Linear(size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, size)
        self.norm_feed_forward = nn.LayerNorm(size, eps=eps)
        self.dropout = Dropout(config.hidden_dropout)

    def feed_forward(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the feed-forward block, shape (cells, latents, hidden size)."""
        dropped = self.training and self.dropout.p > 0
        if not dropped and works_alone(self.fc2) and pays(states, self.fc1, self.activation):
            return wide_feed_forward(states, self.fc1, self.fc2)
        return self.fc2(self.dropout(self.activation(self.fc1(states))))

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Process latents, shape (cells, latents, hidden size)."""
        attended, _ = self.self_attn(hidden_states, **kwargs)
        hidden_states = self.norm_attention(hidden_states + self.dropout(attended))
        return self.norm_feed_forward(hidden_states + self.dropout(self.feed_forward(hidden_states)))


class ExceiverPreTrainedModel(Predicts, AdapterFolders, PreTrainedModel):
    """Base of the Exceiver models: initialisation, and settings that transformers reads.

    Weights start as in PyTorch's own layers (the released code sets nothing else): embeddings and latents from a
    standard normal distribution, attention by Xavier, other layers by Kaiming. The start of heads is our choice. Their
    GELU has one unit per output, a single one for expression, which often starts at a slope of zero and never learns;
    ours starts at a slope of one and at the average expression.
    """

    config: ExceiverConfig
    config_class = ExceiverConfig
    base_model_prefix = "exceiver"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ExceiverLayer", "ExceiverCrossBlock"]
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_flex_attn = False
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": ExceiverLayer,
        "attentions": OutputRecorder(ExceiverAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(ExceiverAttention, index=1, layer_name="encoder.cross_attn"),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            self._init_linear(module, getattr(module, "start", "linear"))
        elif isinstance(module, ExceiverModel):
            init.normal_(module.latent_queries)
            init.constant_(module.background_values, float("nan"))
        elif isinstance(module, (StandardizedGeneSums, LinearLatent)):
            module.reset()
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        else:
            super()._init_weights(module)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Refuse: the ids of padding and of the class query follow the last gene, and every gene has a background.

        Raises
        ------
        NotImplementedError
            If the number of tokens would change.
        """
        number = args[0] if args else kwargs.get("new_num_tokens")
        embeddings = self.get_input_embeddings()
        if number is None or number == embeddings.num_embeddings:
            return embeddings
        raise NotImplementedError(
            f"resize_token_embeddings({number:,}) is unsupported: Exceiver's padding and class query are the two "
            "tokens after its last gene. Create a model of the right size: ExceiverConfig(vocab_size=genes + 2)"
        )

    @staticmethod
    def _init_linear(module: nn.Linear, start: str) -> None:
        """Initialise a layer as its attribute `start` says.

        Transformers does not call `_init_weights` for custom modules without own parameters, hence the attribute.
        """
        bound = module.in_features**-0.5
        if start == "attention":
            init.xavier_uniform_(module.weight)
        elif start == "identity":
            init.eye_(module.weight)
        else:
            init.uniform_(module.weight, -bound, bound)
        if start == "linear":
            init.uniform_(module.bias, -bound, bound)
        else:
            init.constant_(module.bias, 1.0 if start == "head" else 0.0)


class ExceiverModel(ExceiverPreTrainedModel):
    """Gene embeddings, latents, the encoder's cross attention and the layers on the latents.

    Parameters
    ----------
    config
        The configuration.
    """

    prediction = "pooler_output"
    _input_embed_layer = "gene_embedding"
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^expression_head\.", r"^classifier\.", r"^gene_sums\."]

    def __init__(self, config: ExceiverConfig):
        super().__init__(config)
        self.gene_embedding = nn.Embedding(config.vocab_size, config.gene_embedding_size, config.pad_token_id)
        self.latent_queries = nn.Parameter(torch.empty(config.num_latents, config.hidden_size))
        self.encoder = ExceiverCrossBlock(config, config.hidden_size, config.gene_embedding_size)
        self.layers = nn.ModuleList([ExceiverLayer(config) for _ in range(config.num_hidden_layers)])
        self.linear_latent = LinearLatent(config) if config.linear_genes else None
        self.register_buffer("background_values", torch.empty(config.num_genes))
        self.gradient_checkpointing = False
        self._checked_background: tuple[int, int] | None = None
        self.post_init()

    def set_background_values(self, values: Any) -> None:
        """Set each gene's value without counts (the tokenizer's `background_values`), shape (genes,).

        Raises
        ------
        ValueError
            If the number of values is not that of genes.
        """
        self.background_values.copy_(self._background(torch.as_tensor(values, dtype=self.background_values.dtype)))

    def _background(self, given: torch.Tensor | None) -> torch.Tensor:
        if given is not None:
            if given.shape != (self.config.num_genes,):
                raise ValueError(
                    f"background_values has shape {tuple(given.shape)}, but the model has {self.config.num_genes:,} "
                    "genes"
                )
            return given
        values = self.background_values
        if torch.compiler.is_compiling():
            return values
        # Tensors of `torch.inference_mode` have no version counter: check them every time.
        version = None if values.is_inference() else (values.data_ptr(), values._version)
        if version is None or version != self._checked_background:
            if values.isnan().any():
                raise ValueError(
                    "unexpressed_genes='bias' needs the value of every gene without counts, which this model does not "
                    "have: pass background_values, or call set_background_values(tokenizer.background_values) once"
                )
            self._checked_background = version
        return values

    def _check_ids(self, name: str, ids: torch.Tensor) -> None:
        number = self.config.num_genes  # also the id of padding
        check_ids(name, ids, number + 1, f"{number:,} genes (vocab_size={self.config.vocab_size:,})")

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor,
        expression_values: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        masked_genes: torch.Tensor | None = None,
        background_values: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ExceiverModelOutput:
        """Encode cells.

        Parameters
        ----------
        input_ids
            Expressed genes, shape (cells, genes).
        expression_values
            Their standardised expression + 1, shape (cells, genes).
        attention_mask
            1 for genes, 0 for padding, shape (cells, genes); by default computed from the id of padding.
        masked_genes
            True for genes to hide, shape (cells, genes): they keep their place and id, and get the zero embedding and
            the value 1.
        background_values
            Value of each gene without counts, shape (genes,), for ``unexpressed_genes="bias"``; by default the model's
            own.

        Raises
        ------
        ValueError
            If an id is not one of the model's genes, or background values are needed and missing.
        """
        config = self.config
        self._check_ids("input_ids", input_ids)
        if input_ids.shape[1] == 0:
            input_ids = nn.functional.pad(input_ids, (0, 1), value=config.pad_token_id)
            expression_values = nn.functional.pad(expression_values, (0, 1))
            attention_mask = masked_genes = None
        key_mask = input_ids != config.pad_token_id
        if attention_mask is not None:
            key_mask = key_mask & attention_mask.bool()
        embedded, values = input_ids, expression_values
        if masked_genes is not None:
            masked_genes = masked_genes.bool()
            embedded = input_ids.masked_fill(masked_genes, config.pad_token_id)
            values = expression_values.masked_fill(masked_genes, 1.0)
        queries, background, latents = self.latent_queries.unsqueeze(0), None, None
        if config.unexpressed_genes == "bias":
            background_values = self._background(background_values)
            background = embedding_rows(self.gene_embedding, config.num_genes, input_ids.device)
            background = (background * background_values.to(background).unsqueeze(-1)).unsqueeze(0)
        else:
            latents = self.encoder.from_genes(queries, self.gene_embedding, embedded, values, key_mask)
        if latents is None:
            genes = self.gene_embedding(embedded)
            genes = genes * values.to(genes.dtype).unsqueeze(-1)
            latents = self.encoder(
                queries,
                genes,
                key_mask=key_mask,
                background_states=background,
                genes=input_ids.clamp(max=config.num_genes - 1),
                **kwargs,
            )
        for layer in self.layers:
            latents = layer(latents, **kwargs)
        if self.linear_latent is not None:
            latents = torch.cat([latents, self.linear_latent(embedded, values).unsqueeze(1)], dim=1)
        return ExceiverModelOutput(last_hidden_state=latents, pooler_output=self.pool(latents))

    def pool(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the cell embeddings of processed latents, shape (cells, size)."""
        if self.config.pooling != "mean":
            return latents.flatten(1)
        if self.linear_latent is None:
            return latents.mean(dim=1)
        number = self.config.num_latents
        return torch.cat([latents[:, :number].mean(dim=1), latents[:, number:].flatten(1)], dim=1)


class ExceiverHead(nn.Sequential):
    """Layer norm, linear, GELU, linear: decoded states to outputs."""

    def __init__(self, config: ExceiverConfig, num_outputs: int):
        super().__init__(
            nn.LayerNorm(config.gene_embedding_size, eps=config.layer_norm_eps),
            nn.Linear(config.gene_embedding_size, num_outputs),
            nn.GELU(),
            nn.Linear(num_outputs, num_outputs),
        )
        self[1].start, self[3].start = "head", "identity"


def masked_queries(input_ids: torch.Tensor, masked_genes: torch.Tensor, pad_token_id: Any) -> torch.Tensor:
    """Return the masked genes of each cell in their order, padded, shape (cells, most masked genes of a cell)."""
    masked_genes = masked_genes.bool()
    most = int(masked_genes.sum(dim=1).max()) if masked_genes.numel() else 0
    first = masked_genes.long().argsort(dim=1, descending=True, stable=True)[:, :most]
    return input_ids.gather(1, first).masked_fill(~masked_genes.gather(1, first), pad_token_id)


def expression_loss(predicted: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean squared error over valid queries, in float32; all of shape (cells, queries), labels of -100 are ignored."""
    if labels.shape != predicted.shape:
        raise ValueError(
            f"labels of expression have shape {tuple(labels.shape)}, but the genes to predict have shape "
            f"{tuple(predicted.shape)}: one label for each query of each cell"
        )
    valid = valid & (labels != IGNORED)
    squared = (predicted.float() - labels.float()).square().where(valid, 0.0)
    return squared.sum() / valid.sum().clamp(min=1)


class ExceiverForMaskedExpression(ExceiverPreTrainedModel):
    """Predicts the expression of masked genes: Exceiver's pretraining.

    Parameters
    ----------
    config
        The configuration.
    """

    prediction = "predicted_expression"

    def __init__(self, config: ExceiverConfig):
        super().__init__(config)
        self.exceiver = ExceiverModel(config)
        self.decoder = ExceiverCrossBlock(config, config.gene_embedding_size, config.hidden_size)
        self.expression_head = ExceiverHead(config, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        expression_values: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        masked_genes: torch.Tensor | None = None,
        query_ids: torch.LongTensor | None = None,
        labels: torch.FloatTensor | None = None,
        background_values: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ExceiverForMaskedExpressionOutput:
        """Predict standardised expression at queries.

        Parameters
        ----------
        input_ids, expression_values, attention_mask, masked_genes, background_values
            As for `ExceiverModel`.
        query_ids
            Genes to predict, shape (cells, queries), padded by ``<pad>``; by default the masked genes in their order.
        labels
            Their standardised expression + 1, shape (cells, queries); padding and -100 are ignored.
        num_items_in_batch
            Labels of the whole step that are not -100, over accumulated batches and processes, as
            `transformers.Trainer` counts them: the loss is multiplied by this call's share of them. If padding is
            labelled -100, the sum over all calls is the mean over the whole step.

        Raises
        ------
        ValueError
            If neither queries nor masked genes are given, or a query is not one of the model's genes.
        """
        if query_ids is None:
            if masked_genes is None:
                raise ValueError("no genes to predict: pass query_ids, or masked_genes to predict those")
            query_ids = masked_queries(input_ids, masked_genes, self.config.pad_token_id)
        self.exceiver._check_ids("query_ids", query_ids)
        outputs = self.exceiver(
            input_ids, expression_values, attention_mask, masked_genes, background_values, **kwargs
        )
        decoded = self.decoder(self.exceiver.gene_embedding(query_ids), outputs.last_hidden_state)
        predicted = self.expression_head(decoded).squeeze(-1)
        loss = None
        if labels is not None:
            loss = expression_loss(predicted, labels, query_ids != self.config.pad_token_id)
            if num_items_in_batch is not None:
                loss = loss * share_of_step((labels != IGNORED).sum(), num_items_in_batch)
        return ExceiverForMaskedExpressionOutput(
            loss=loss,
            predicted_expression=predicted,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


class ExceiverForSequenceClassification(ExceiverPreTrainedModel):
    """Classifies cells, or predicts a value of each, by a learned class query; also predicts masked expression.

    Parameters
    ----------
    config
        The configuration; ``num_labels`` or ``id2label`` give the classes. With ``problem_type="regression"``, or one
        label, it predicts a value; with ``"multi_label_classification"`` each class separately.
    """

    def __init__(self, config: ExceiverConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.exceiver = ExceiverModel(config)
        self.decoder = ExceiverCrossBlock(config, config.gene_embedding_size, config.hidden_size)
        self.expression_head = ExceiverHead(config, 1)
        self.classifier = ExceiverHead(config, config.num_labels)
        sums = StandardizedGeneSums(config) if config.gene_sums else None
        self.gene_sums = sums
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        expression_values: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        masked_genes: torch.Tensor | None = None,
        query_ids: torch.LongTensor | None = None,
        labels: torch.Tensor | None = None,
        expression_targets: torch.FloatTensor | None = None,
        background_values: torch.Tensor | None = None,
        loss_weights: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
        measured_genes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ExceiverForSequenceClassificationOutput:
        """Classify cells, or predict a value of each.

        Parameters
        ----------
        input_ids, expression_values, attention_mask, masked_genes, background_values
            As for `ExceiverModel`.
        query_ids
            Genes whose expression to predict, too, shape (cells, queries), padded by ``<pad>``.
        labels
            Shape (cells,): classes, -100 ignored, or values in their unit, NaN ignored. Shape (cells, classes): 0 or 1
            for each class of a multi-label problem; or, as bool, a set of classes for each cell, one of which is the
            right one: the loss is -log of their summed probability.
        expression_targets
            Standardised expression + 1 at the queries, shape (cells, queries). Its former name ``expression_labels``
            works too.
        loss_weights
            Weight of each cell in the loss of classes, shape (cells,). Its former name ``label_weights`` works too.
        num_items_in_batch
            Labels of the whole step that are not -100, over accumulated batches and processes, as
            `transformers.Trainer` counts them: losses are multiplied by this call's share of them, so that they add up
            to those of the whole step.
        measured_genes
            Whether each token is a gene that was measured, bool, shape (vocabulary,), for models with an imputation of
            the others, see `GeneSums`; from `GeneExpressionTokenizer.measured_genes`. By default all.

        Raises
        ------
        ValueError
            If a label is not a class, a query is not one of the model's genes, or there are targets without queries.
        """
        expression_targets = former_name(kwargs, "expression_labels", expression_targets)
        loss_weights = former_name(kwargs, "label_weights", loss_weights)
        if expression_targets is not None and query_ids is None:
            raise ValueError("expression_targets need query_ids: the genes that they belong to")
        if query_ids is None:
            query_ids = input_ids.new_empty(input_ids.shape[0], 0)
        self.exceiver._check_ids("query_ids", query_ids)
        outputs = self.exceiver(
            input_ids, expression_values, attention_mask, masked_genes, background_values, **kwargs
        )
        class_query = query_ids.new_full((query_ids.shape[0], 1), self.config.cls_token_id)
        queries = self.exceiver.gene_embedding(torch.cat([query_ids, class_query], dim=1))
        decoded = self.decoder(queries, outputs.last_hidden_state)
        predicted = self.expression_head(decoded[:, :-1]).squeeze(-1)
        of_network, of_sums = in_units(self.config, self.classifier(decoded[:, -1])), None
        if self.gene_sums is not None:
            kept = input_ids != self.config.pad_token_id
            kept = kept if attention_mask is None else kept & attention_mask.bool()
            kept = kept if masked_genes is None else kept & ~masked_genes.bool()
            of_sums = self.gene_sums(input_ids, expression_values, kept, measured_genes)
        logits = joined_scores(self.config, of_network, of_sums)
        label_loss = gene_loss = None
        if labels is not None:
            if problem_of(self.config, labels) == ONE_CLASS:
                check_labels("labels", labels, self.num_labels, "classes")
            label_loss = joined_terms(self.config, of_network, of_sums, labels, loss_weights).mean()
        if expression_targets is not None:
            gene_loss = expression_loss(predicted, expression_targets, query_ids != self.config.pad_token_id)
        if num_items_in_batch is not None:
            share = share_of_step(count_items(labels, logits.new_tensor(len(logits))), num_items_in_batch)
            label_loss, gene_loss = (None if part is None else part * share for part in (label_loss, gene_loss))
        losses = [part for part in (label_loss, gene_loss) if part is not None]
        if losses and every_weight_counts():
            losses += [predicted[:, :0].sum(), logits[:0].sum()]  # both heads are part of the graph
        regression = is_regression(self.config)
        return ExceiverForSequenceClassificationOutput(
            loss=torch.stack(losses).sum() if losses else None,
            logits=logits,
            classification_loss=None if regression else label_loss,
            regression_loss=label_loss if regression else None,
            expression_loss=gene_loss,
            predicted_expression=predicted if query_ids.shape[1] else None,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


ExceiverModel.register_for_auto_class("AutoModel")
ExceiverForMaskedExpression.register_for_auto_class("AutoModelForMaskedLM")
ExceiverForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "ExceiverForMaskedExpression",
    "ExceiverForMaskedExpressionOutput",
    "ExceiverForSequenceClassification",
    "ExceiverForSequenceClassificationOutput",
    "ExceiverModel",
    "ExceiverModelOutput",
    "ExceiverPreTrainedModel",
]
