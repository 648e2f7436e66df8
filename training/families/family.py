"""The record of one family of models in training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from cellglot.modeling.families import FAMILIES as NETWORKS
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.families import FAMILIES as INPUTS
from cellglot.training.families.recipe import Recipe


@dataclass(frozen=True)
class AdapterPreset:
    """Layers of a model that adapters change, as regular expressions over the names of modules.

    Parameters
    ----------
    low_rank
        Layers that LoRA and DoRA change.
    scaled
        Layers whose output or input IA3 scales: keys, values, and second layers of feed-forward blocks.
    inner
        Of these, the layers whose input is scaled.
    """

    low_rank: str
    scaled: str
    inner: str

    @classmethod
    def of_layers(cls, layers: str) -> "AdapterPreset":
        r"""Return the preset of a BERT, from the names of its layers such as ``sccello\.layers\.\d+``."""
        return cls(
            low_rank=rf"{layers}\.(self_attn\.[qkvo]_proj|fc[12])",
            scaled=rf"{layers}\.(self_attn\.[kv]_proj|fc2)",
            inner=rf"{layers}\.fc2",
        )


@dataclass(frozen=True)
class TrainedFamily:
    """What differs between families of models in training. BERTs over genes share `rank_value.RANK_VALUE`.

    Parameters
    ----------
    pretraining_data, finetuning_data
        Strict dataclasses: the keys of the section ``data``. Those of fine-tuning include
        ``initialize_gene_embeddings``, for new models.
    recipe
        (section ``model``, settings of ``data``, corpus, seed) -> `Recipe` of pretraining.
    model_classes
        Task -> class with a head for it.
    heads
        Names of the modules of the head, which a linear probe trains.
    head_reads
        Field of the encoder's output that heads for cells read.
    collators
        (tokenizer, model's configuration, settings of ``data``, corpus, seed) -> collators for training and for
        evaluation, without labels.
    tokenizer_of
        (corpus, name of the model for messages) -> its tokenizer, after a check that the model can read it.
    saved_tokenizer
        (tokenizer of the corpus, model's configuration) -> tokenizer to save with the model.
    corpus_tokenizer
        Tokenizer of a model -> tokenizer for a corpus to train on.
    set_up
        (new model, tokenizer) -> None: sets other values of the model that depend on the tokenizer.
    gene_scale
        Model's configuration -> standard deviation of gene embeddings that start from co-expression.
    """

    name: str
    pretraining_data: type
    finetuning_data: type
    recipe: Callable[[Mapping[str, Any], Any, Corpus, int], Recipe]
    model_classes: Mapping[str, type[PreTrainedModel]]
    heads: tuple[str, ...]
    head_reads: str
    collators: Callable[..., tuple[Any, Any]]
    adapters: AdapterPreset
    tokenizer_of: Callable[[Corpus, str], Any]
    saved_tokenizer: Callable[[Any, Any], Any] = lambda tokenizer, config: tokenizer
    corpus_tokenizer: Callable[[Any], Any] = lambda tokenizer: tokenizer
    set_up: Callable[[Any, Any], None] = lambda model, tokenizer: None
    gene_scale: Callable[[Any], float] = lambda config: 1.0

    def model_class(self, task: str) -> type[PreTrainedModel]:
        """Return the class for a task."""
        if task not in self.model_classes:
            raise ValueError(
                f"{self.name} has no head for the task {task!r}, only for {', '.join(self.model_classes)}"
            )
        return self.model_classes[task]

    @property
    def encoder(self) -> str:
        """Name of the encoder of cells in a model with a head."""
        return NETWORKS[self.name].encoder

    @property
    def tokenizer_class(self) -> Any:
        """Class of the tokenizer."""
        return INPUTS[self.name].tokenizer_class


__all__ = ["AdapterPreset", "TrainedFamily"]
