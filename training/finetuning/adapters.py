"""Adapters: which layers of each model they change, and their folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from cellglot.modeling.adapter_folders import cached_revision
from cellglot.modeling.adapters import as_peft_asks
from cellglot.outputs import share
from cellglot.training.choices import ADAPTERS
from cellglot.training.config import check_keys
from cellglot.training.families.records import FAMILIES


# End of the name of a model class -> task of PEFT, from which `AutoPeftModelFor...` finds the class of the base model.
TASK_TYPES = {"ForSequenceClassification": TaskType.SEQ_CLS, "ForTokenClassification": TaskType.TOKEN_CLS}


def adapter_config(
    method: str,
    model_type: str,
    heads: tuple[str, ...],
    settings: dict[str, Any] | None = None,
    task_type: TaskType | None = None,
) -> PeftConfig:
    """Return the configuration of an adapter.

    Parameters
    ----------
    heads
        Modules of which all weights are trained, and saved with the adapter.
    settings
        ``rank`` (8), ``alpha`` (twice the rank) and ``dropout`` (0) of LoRA and DoRA; IA3 has none.
    """
    if method not in ADAPTERS:
        raise ValueError(f"method {method!r}: the adapters are {', '.join(ADAPTERS)}")
    settings, preset = dict(settings or {}), FAMILIES[model_type].adapters
    if method == "ia3":
        check_keys(settings, [], f"finetuning of {method}: setting")
        return IA3Config(
            task_type=task_type,
            target_modules=preset.scaled,
            feedforward_modules=preset.inner,
            modules_to_save=list(heads),
        )
    check_keys(settings, ["rank", "alpha", "dropout"], f"finetuning of {method}: setting")
    rank = settings.get("rank", 8)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"finetuning.rank {rank!r}: it is a whole number, at least 1")
    return LoraConfig(
        task_type=task_type,
        r=rank,
        lora_alpha=settings.get("alpha", 2 * rank),
        lora_dropout=settings.get("dropout", 0.0),
        use_dora=method == "dora",
        target_modules=preset.low_rank,
        modules_to_save=list(heads),
    )


def put_adapter(
    model: PreTrainedModel, method: str, heads: tuple[str, ...], settings: dict[str, Any] | None = None
) -> PeftModel:
    """Freeze a model except for its heads, and add a new adapter; parameters as for `adapter_config`.

    The adapter records the folder or repository of the model, and the revision of a repository.
    """
    task_type = next((kind for end, kind in TASK_TYPES.items() if type(model).__name__.endswith(end)), None)
    config = adapter_config(method, model.config.model_type, heads, settings, task_type)
    config.revision = cached_revision(model.config.name_or_path)
    with as_peft_asks():
        return get_peft_model(model, config)


def save_adapter(model: PeftModel, folder: str | Path, state_dict: dict[str, Any] | None = None) -> None:
    """Write an adapter: its weights and those of the head, the configuration of the model with it, and the code.

    Auto classes load the folder without cellglot. The tokenizer is that of the base model.

    Parameters
    ----------
    model
        From `put_adapter`.
    state_dict
        Weights of the model if they are spread over devices.
    """
    base = model.get_base_model()
    with _no_card(model):
        model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=state_dict)
    base.config.architectures = [type(base).__name__]
    base.config.save_pretrained(str(folder))
    for weights in Path(folder).glob("adapter_model*.safetensors"):
        share(weights)


@contextmanager
def _no_card(model: PeftModel) -> Iterator[None]:
    """Keep PEFT from writing or changing a card: `publish` writes ours."""
    model.create_or_update_model_card = lambda output_dir: None
    try:
        yield
    finally:
        del model.create_or_update_model_card


__all__ = ["adapter_config", "put_adapter", "save_adapter"]
