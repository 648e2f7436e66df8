"""The network that is fine-tuned: a pretrained one with a head, or a new one for small corpora; and what learns."""

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
    family: TrainedFamily, task: str, section: Mapping[str, Any], model: str | Path, fields: Mapping[str, Any]
) -> PreTrainedModel:
    """Load a pretrained model with a head for a task.

    Parameters
    ----------
    task
        As for `finetune`.
    section
        The section ``model``: fields of the model's configuration to change.
    fields
        Of the configuration, that the task decides.
    """
    model_class = family.model_class(task)
    changes = {k: v for k, v in section.items() if k != "type"}
    check_keys(changes, list(model_class.config_class.__dataclass_fields__), where(section, "model"))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the table of weights that are new; said in one line instead
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
    task
        As for `finetune`.
    section
        The section ``model``: its sizes.
    corpus
        Cells tokenized for this type of model; its vocabulary becomes the model's.
    seed
        Of the start of the gene embeddings.
    initialize_embeddings
        Start gene embeddings from the training cells' co-expression.
    **given
        Further fields of the model's configuration, such as its classes.

    Raises
    ------
    ValueError
        If configuration, corpus and model do not fit together.
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


def what_learns(
    network: PreTrainedModel, method: str, heads: tuple[str, ...], sizes: dict[str, Any]
) -> tuple[Any, list[nn.Module]]:
    """Return the model that learns, and the modules of it that are frozen and run as in evaluation.

    Parameters
    ----------
    method
        As for `finetune`.
    """
    if method in ADAPTERS:
        return put_adapter(network, method, heads, sizes), []
    if method == "full":
        return network, []
    network.requires_grad_(False)
    for name in heads:
        network.get_submodule(name).requires_grad_(True)
    frozen = [m for name, m in network.named_children() if name not in heads and any(True for _ in m.parameters())]
    return network, frozen


__all__ = ["new_network", "pretrained_network", "what_learns"]
