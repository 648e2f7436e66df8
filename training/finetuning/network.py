"""The network that is fine-tuned: pretrained or new, with a head; and which of its weights are trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from cellglot.modeling.loading import load_model
from cellglot.modeling.model_files import check_loaded
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer
from cellglot.training.choices import ADAPTERS
from cellglot.training.config import check_keys, where
from cellglot.training.data.gene_embeddings import initialize_gene_embeddings
from cellglot.training.families.family import TrainedFamily
from cellglot.training.families.recipe import new_configuration
from cellglot.training.finetuning.adapters import put_adapter


def pretrained_network(
    family: TrainedFamily,
    task: str,
    section: Mapping[str, Any],
    model: str | Path,
    fields: Mapping[str, Any],
    method: str = "full",
) -> PreTrainedModel:
    """Load a pretrained model with a head for a task.

    Gene sums are trained in full alone: they are large beside an adapter, and a probe reads the encoder.

    Parameters
    ----------
    section
        The section ``model``: fields of the model's configuration to change.
    fields
        Fields of the configuration from the task.
    method
        As for `finetune`.
    """
    model_class = family.model_class(task)
    changes = {k: v for k, v in section.items() if k != "type"}
    check_keys(changes, list(model_class.config_class.__dataclass_fields__), where(section, "model"))
    if method != "full" and "gene_sums" in model_class.config_class.__dataclass_fields__:
        changes |= {"gene_sums": False, "imputed_genes": 0, "imputation_factors": 0}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # no table of new weights: one line is printed instead
    try:
        made, info = load_model(
            model_class,
            model,
            check=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **fields,
            **changes,
        )
        made.config.validate()
    except StrictDataclassError as error:
        raise ValueError(f"{where(section, 'model')}: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    check_loaded(model, made, info, new=[name for name, _ in made.named_children() if name != family.encoder])
    other = {name for name, *_ in info["mismatched_keys"]}
    new = sorted({name.split(".")[0] for name in {*info["missing_keys"], *other}})
    print(f"{model}: all weights loaded" + (f", new are those of {', '.join(new)}" if new else ""), flush=True)
    return made


def new_network(
    family: TrainedFamily,
    task: str,
    section: Mapping[str, Any],
    corpus: Corpus,
    seed: int,
    *,
    initialize_embeddings: bool = False,
    **given: Any,
) -> tuple[PreTrainedModel, GeneExpressionTokenizer]:
    """Make a network with a head for a task, and the tokenizer that is saved with it.

    Parameters
    ----------
    section
        The section ``model``: sizes of the network.
    corpus
        Cells tokenized for this type of model, with the vocabulary of the new model.
    initialize_embeddings
        Start gene embeddings from the co-expression of the training cells.
    **given
        Further fields of the model's configuration, such as its classes.
    """
    model_class: Any = family.model_class(task)
    tokenizer = family.tokenizer_of(corpus, model_class.__name__)
    config = new_configuration(model_class.config_class, section, tokenizer, **given)
    network = model_class(config)
    family.set_up(network, tokenizer)
    if initialize_embeddings:
        scale = family.gene_scale(config)
        initialize_gene_embeddings(network.get_input_embeddings(), corpus, seed, deviation=scale)
    return network, family.saved_tokenizer(tokenizer, config)


def set_gene_sums(network: PreTrainedModel, tokenizer: Any) -> None:
    """Set the statistics of the genes in the gene sums of a network, if it has any."""
    sums = getattr(network, "gene_sums", None)
    if sums is not None:
        sums.set_statistics(tokenizer)


def what_learns(
    network: PreTrainedModel, method: str, heads: tuple[str, ...], sizes: dict[str, Any]
) -> tuple[Any, list[nn.Module]]:
    """Return the model to train, and its frozen modules, which run in evaluation mode."""
    if method in ADAPTERS:
        return put_adapter(network, method, heads, sizes), []
    if method == "full":
        return network, []
    network.requires_grad_(False)
    for name in heads:
        network.get_submodule(name).requires_grad_(True)
    frozen = [m for name, m in network.named_children() if name not in heads and any(True for _ in m.parameters())]
    return network, frozen


__all__ = ["new_network", "pretrained_network", "set_gene_sums", "what_learns"]
