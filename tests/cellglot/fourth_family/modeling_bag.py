"""A toy: the embedding of a cell is the mean of its genes' embeddings. This file travels with saved models."""

from dataclasses import field
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput


@strict
class BagConfig(PreTrainedConfig):
    model_type = "bag"

    vocab_size: int = 10
    hidden_size: int = 8
    max_position_embeddings: int = 64
    pad_token_id: int | None = 0
    label_cl_ids: dict[str, str] | None = None
    target_mean: float | None = None
    target_std: float | None = None
    auto_map: dict[str, Any] | None = field(
        default_factory=lambda: {
            "AutoConfig": "modeling_bag.BagConfig",
            "AutoModel": "modeling_bag.BagModel",
            "AutoModelForPreTraining": "modeling_bag.BagForPreTraining",
            "AutoModelForSequenceClassification": "modeling_bag.BagForSequenceClassification",
        }
    )


class BagModel(PreTrainedModel):
    config_class = BagConfig
    base_model_prefix = "bag"

    def __init__(self, config):
        super().__init__(config)
        if type(self) is BagModel:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        else:
            self.bag = BagModel(config)
            self.add_module(self.head, nn.Linear(config.hidden_size, self.outputs(config)))
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **kwargs):
        genes = self.embed_tokens(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mean = (genes * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return BaseModelOutputWithPooling(last_hidden_state=genes, pooler_output=mean)


class BagForPreTraining(BagModel):
    """Predict masked genes from the bag of the others."""

    head = "decoder"

    def outputs(self, config):
        return config.vocab_size

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        logits = self.decoder(self.bag(input_ids, attention_mask).pooler_output)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, None].expand(-1, labels.shape[1], -1).mT, labels)
        return MaskedLMOutput(loss=loss, logits=logits)


class BagForSequenceClassification(BagModel):
    head = "classifier"

    def outputs(self, config):
        return config.num_labels

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        logits = self.classifier(self.bag(input_ids, attention_mask).pooler_output)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
