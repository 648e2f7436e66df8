"""Adapters: a small folder of weights that belongs to a base model, loaded onto that base."""

import hashlib
import importlib
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedConfig
from transformers.utils import cached_file, find_adapter_config_file, is_peft_available, logging
from transformers.utils.hub import extract_commit_hash

from .model_files import check_adapter_settings, check_finite, check_model_folder, is_inside, read_configuration
from .named_modules import name_in_package


RUN_FILE = "training_run.json"


# Fields that have to be the same for an adapter to fit a base.
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "gene_embedding_size",
    "num_latents",
    "num_cross_attention_heads",
)


class AdapterFolders:
    """Part of a model class: its `from_pretrained` also takes the folder or repository of an adapter.

    An adapter has ``adapter_config.json``, ``adapter_model.safetensors`` and the ``config.json`` of the adapted model,
    but no weights of a complete model: these come from the base that ``adapter_config.json`` names.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        name_in_package(cls.__module__)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a model; an adapter together with its base.

        Parameters
        ----------
        pretrained_model_name_or_path
            Folder or repository of a model or of an adapter.
        """
        if pretrained_model_name_or_path is not None:
            check_model_folder(Path(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
            kwargs["use_safetensors"] = True  # pickles can run code
        given = kwargs.get("adapter_kwargs") or {}
        # Auto classes replace an adapter's repository by its base, with the configuration of the base.
        name = given.get("_adapter_model_path", pretrained_model_name_or_path)
        hub = {key: kwargs[key] for key in _HUB if key in kwargs}
        of_adapter = hub | {key: given.get(key, kwargs.get(key)) for key in ("revision", "subfolder")}
        of_adapter["subfolder"] = of_adapter["subfolder"] or ""
        if not holds_adapter(name, **of_adapter) or weight_files(name, **of_adapter):
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)  # type: ignore[misc]
        settings, base = adapter_settings(name, **of_adapter), base_of(name, **of_adapter)
        config = kwargs.pop("config", None)
        if config is None or name != pretrained_model_name_or_path:
            config = cls.config_class.from_pretrained(name, **of_adapter)  # type: ignore[attr-defined]
        of_base = hub | {"revision": revision_of_base(settings, base)}
        _check_place(name, settings, base, of_adapter)
        given = PreTrainedConfig.get_config_dict(base, **of_base)[0]
        trained_on = check_base(_origin(name, settings, of_adapter), config.to_dict(), base, given, **of_base)
        with_info = kwargs.pop("output_loading_info", False)
        kwargs = {k: v for k, v in kwargs.items() if k not in ("adapter_kwargs", "revision", "subfolder")}
        with only_errors():
            model, info = super().from_pretrained(  # type: ignore[misc]
                base, *model_args, config=config, revision=of_base["revision"], **kwargs, **_NEW_HEAD
            )
        _put(model, name, info, trained_on, of_adapter)
        # Heads come from the adapter, whose weights are complete, or are not used.
        info = info | {"missing_keys": set(), "mismatched_keys": set()}
        return (model, info) if with_info else model


# Options of loading for both an adapter and its base.
_HUB = ("cache_dir", "local_files_only", "proxies", "token")

# A base may have a head for other classes, which the adapter's head replaces.
_NEW_HEAD = {"ignore_mismatched_sizes": True, "output_loading_info": True}


def with_adapter(model: Any, adapter: str | os.PathLike) -> Any:
    """Create the adapted classifier of a base model (with any head) and an adapter; the base does not change."""
    settings = adapter_settings(adapter)
    recorded = type(model.config).get_config_dict(str(adapter))[0]
    if "model_type" not in recorded:
        raise ValueError(f"{adapter} has no config.json, which contains the classes of the adapter")
    base = model.config.name_or_path or type(model).__name__
    trained_on = check_base(_origin(adapter, settings), recorded, base, model.config.to_dict())
    config = type(model.config).from_pretrained(adapter)
    names = [*(config.architectures or []), config.auto_map["AutoModelForSequenceClassification"].split(".")[-1]]
    kind = next(name for name in names if name.endswith("ForSequenceClassification"))
    with only_errors():
        adapted, info = getattr(sys.modules[type(model).__module__], kind).from_pretrained(
            None, config=config, state_dict=model.state_dict(), **_NEW_HEAD
        )
    _put(adapted, adapter, info, trained_on)
    return adapted.to(model.device)


@dataclass(frozen=True)
class AdapterOrigin:
    """What an adapter records of the model that it was trained on.

    Parameters
    ----------
    adapter
        Folder or repository of the adapter.
    base, revision
        Folder or repository of the model, and the revision of a repository.
    fingerprint
        `weights_fingerprint` of the model; None if it was not recorded.
    """

    adapter: str
    base: str
    revision: str | None
    fingerprint: str | None

    def named(self, model_type: str) -> str:
        """Name the model in messages."""
        revision = f" at revision {self.revision[:12]}" if self.revision else ""
        weights = f", weights {self.fingerprint[:12]}" if self.fingerprint else ""
        return f"{self.base} ({model_type}{revision}{weights})"


def _origin(
    adapter: Any, settings: Mapping[str, Any], of_adapter: Mapping[str, Any] = MappingProxyType({})
) -> AdapterOrigin:
    file = model_file(adapter, RUN_FILE, **of_adapter)
    fingerprint = read_configuration(file).get("base_model_fingerprint") if file else None
    return AdapterOrigin(
        str(adapter), str(settings.get("base_model_name_or_path")), settings.get("revision"), fingerprint
    )


def check_base(
    origin: AdapterOrigin, config: Mapping[str, Any], base: str, given: Mapping[str, Any], **of_base: Any
) -> str:
    """Refuse another base than the adapter's, by type, sizes or weights; return the start of messages that names both.

    Parameters
    ----------
    config
        Configuration of the adapted model.
    base
        Folder or repository of the base.
    given
        Configuration of the base.
    **of_base
        Options of the Hub for the base, such as ``revision``.
    """
    trained_on = f"{origin.adapter} was trained on {origin.named(config['model_type'])}, not on {base}"
    if given.get("model_type") != config["model_type"]:
        raise ValueError(f"{trained_on} ({given.get('model_type')}): they are models of different types")
    wanted, found = (of.get("cell_config", of) for of in (config, given))
    sizes = [name for name in SIZES if name in wanted and wanted[name] != found.get(name)]
    if sizes:
        raise ValueError(
            f"{trained_on}, which has {', '.join(f'{n}={found.get(n)} instead of {wanted[n]}' for n in sizes)}"
        )
    if origin.fingerprint and weight_files(base, **of_base):
        weights = weights_fingerprint(base, **of_base)
        if weights != origin.fingerprint:
            raise ValueError(f"{trained_on}, whose weights ({weights[:12]}) differ: predictions would be wrong")
    return trained_on


def _put(
    model: Any,
    adapter: Any,
    info: Mapping[str, Any],
    trained_on: str,
    of_adapter: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Load an adapter onto a base that has a new head."""
    encoders = {model.base_model_prefix, "cell_model"}  # heads that are not in the adapter are not used
    lacking = sorted(key for key in info["missing_keys"] if key.split(".")[0] in encoders)
    if lacking:
        raise ValueError(f"{trained_on}, which lacks {', '.join(lacking[:3])}")
    if not is_peft_available():
        raise ImportError(f"{adapter} is an adapter, which needs PEFT: pip install peft")
    weights = {_full_name(name): tensor for name, tensor in _adapter_weights(adapter, of_adapter).items()}
    with only_errors():
        lost = model.load_adapter(str(adapter), adapter_state_dict=weights, adapter_kwargs=dict(of_adapter))
    left = sorted([*lost.missing_keys, *lost.unexpected_keys])
    if left:
        raise ValueError(
            f"{len(left):,} weights of the adapter {adapter} do not match {type(model).__name__}, such as {left[0]}"
        )
    check_finite(f"{adapter}/adapter_model.safetensors", model)
    within = Path(adapter, of_adapter.get("subfolder") or "")
    model.eval().config.name_or_path = str(within if within.is_dir() else adapter)


def _adapter_weights(adapter: Any, of_adapter: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read the weights of an adapter, from safetensors only."""
    file = model_file(adapter, "adapter_model.safetensors", **of_adapter)
    if file is None:
        raise ValueError(f"{adapter} has no adapter_model.safetensors: save its weights as safetensors")
    return load_file(file)


def _full_name(weight: str) -> str:
    """Return a weight's name for transformers: PEFT saves DoRA's magnitudes under the name of their module."""
    return f"{weight}.weight" if weight.endswith("lora_magnitude_vector") else weight


def holds_adapter(name: str | os.PathLike | None, **hub: Any) -> bool:
    """Whether there is an adapter of ours: PEFT's settings and the configuration of the adapted model."""
    if name is None or find_adapter_config_file(str(name), **hub) is None:
        return False
    return model_file(name, "config.json", **hub) is not None


def weight_files(model: str | os.PathLike, revision: str | None = None, **hub: Any) -> list[str]:
    """Return the paths of a model's safetensors; empty if it has none."""
    whole, index = (model_file(model, f"model.safetensors{end}", revision, **hub) for end in ("", ".index.json"))
    if whole is not None or index is None:
        return [] if whole is None else [whole]
    names = sorted(set(map(str, (read_configuration(index).get("weight_map") or {}).values())))
    if outside := [name for name in names if not is_inside(name)]:
        raise ValueError(f"{index} names {outside[0]!r:.200}, outside of its folder: it is not read")
    return [file for name in names if (file := model_file(model, name, revision, **hub)) is not None]


def weights_fingerprint(model: str | os.PathLike, revision: str | None = None, **hub: Any) -> str:
    """Hash the weights of a model to 32 hexadecimal digits, independent of how they are split into files."""
    files = weight_files(model, revision, **hub)
    if not files:
        raise ValueError(f"{model} has no model.safetensors: it is not a model, or it has no weights")
    digest = hashlib.blake2b(digest_size=16)
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        places = {name: part for part in opened for name in sorted(part.keys())}
        for name in sorted(places):
            tensor = places[name].get_tensor(name).contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(memoryview(tensor.flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def model_file(name: str | os.PathLike, file: str, revision: str | None = None, **hub: Any) -> str | None:
    """Return the path of a file of a folder or repository; None if there is no such file."""
    if Path(name).is_dir():
        path = Path(name, hub.get("subfolder") or "", file)
        return str(path) if path.exists() else None
    return cached_file(str(name), file, revision=revision, _raise_exceptions_for_missing_entries=False, **hub)


def revision_of_base(settings: Mapping[str, Any], base: str | os.PathLike) -> str | None:
    """Return the revision of an adapter's base to load: the recorded one of a repository, None for folders."""
    return None if Path(base).is_dir() else settings.get("revision")


def cached_revision(model: str | os.PathLike) -> str | None:
    """Return the commit (40 hexadecimal digits) of a repository whose files were loaded last; None for folders."""
    if Path(model).is_dir():
        return None
    file = cached_file(
        str(model),
        "config.json",
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return extract_commit_hash(file, None)


def adapter_settings(adapter: str | os.PathLike, **hub: Any) -> dict[str, Any]:
    """Read and check an adapter's ``adapter_config.json``."""
    file = model_file(adapter, "adapter_config.json", **hub)
    if file is None:
        raise ValueError(f"{adapter} is not an adapter: it has no adapter_config.json")
    settings = read_configuration(file)
    check_adapter_settings(Path(file), settings)
    return settings


def base_of(adapter: str | os.PathLike, **hub: Any) -> str:
    """Return folder or repository of an adapter's base.

    A relative folder is searched in the working directory, then in the folder of the adapter and its parents, so that
    an adapter and its base can be moved together. If cellglot is imported, a model of its collection is found by its
    name, also if cellglot was installed in another place when the adapter was trained.
    """
    base = adapter_settings(adapter, **hub).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{adapter} does not name its base model: pass model=BASE, adapter={str(adapter)!r}")
    if Path(base).exists():
        return str(base)
    if not Path(base).is_absolute() and Path(adapter).is_dir():
        folder = Path(adapter, hub.get("subfolder") or "")
        for place in (folder, *folder.resolve().parents):
            if (place / base / "config.json").exists():
                return str(place / base)
    return _in_collection(base) or str(base)


def _in_collection(base: str) -> str | None:
    """Return the folder of a model that ships with cellglot; None for others and without cellglot."""
    name = Path(base).name if Path(base).parent.name == "collection" else base
    if "cellglot" not in sys.modules or "/" in name:
        return None
    found = importlib.import_module("cellglot.modeling.collection").shipped_models().get(name)
    return None if found is None else str(found)


def _check_place(adapter: Any, settings: Mapping[str, Any], base: str, of_adapter: Mapping[str, Any]) -> None:
    """Refuse the missing folder of a base: such a name must not be searched on the Hub."""
    if Path(base).is_dir():
        return
    not_of_the_hub = base.count("/") > 1 or base.startswith((".", "/", "~"))
    trained_here = model_file(adapter, RUN_FILE, **of_adapter) is not None and not settings.get("revision")
    if not_of_the_hub or (trained_here and Path(adapter).is_dir()):
        raise ValueError(
            f"{adapter} was trained on the folder {base}, which is neither in the working directory nor next to the "
            "adapter: put it there, or name it in base_model_name_or_path of adapter_config.json"
        )


@contextmanager
def only_errors() -> Any:
    """Hide messages of transformers below errors: its table of new weights lists what an adapter replaces."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


__all__ = [
    "AdapterFolders",
    "AdapterOrigin",
    "adapter_settings",
    "base_of",
    "cached_revision",
    "check_base",
    "holds_adapter",
    "model_file",
    "only_errors",
    "revision_of_base",
    "weight_files",
    "weights_fingerprint",
    "with_adapter",
]
