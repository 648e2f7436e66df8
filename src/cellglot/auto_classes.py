"""Registration of our classes with transformers' Auto classes and pipelines, when their tables are first read.

Importing cellglot imports neither transformers nor PyTorch. It installs a finder that notices the import of modules
with such tables, and replaces them by tables that register our classes when they are first read. So our models are
found in every process that imports cellglot.
"""

import importlib
import sys
import threading
from collections.abc import Callable
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from cellglot.modeling import families as models
from cellglot.tokenization import families as inputs


AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForPreTraining",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
)

PIPELINES = {
    "cell-embedding": "CellEmbeddingPipeline",
    "cell-type-annotation": "CellTypeAnnotationPipeline",
    "fill-gene-expression": "FillGeneExpressionPipeline",
    "cell-text-matching": "CellTextMatchingPipeline",
}

_READS = (
    "__contains__", "__eq__", "__getitem__", "__iter__", "__len__", "__or__", "__reversed__", "__ror__", "copy", "get",
    "items", "keys", "pop", "popitem", "setdefault", "values",
)  # fmt: skip


# -------------------------------------------------------------------- registration


def register_auto_classes() -> None:
    """Register configurations, models, tokenizers, processors and pipelines with transformers now.

    This is done anyway when transformers first reads its tables. Call it after you add a family.
    """
    _register_configs()
    for auto_class in AUTO_CLASSES:
        _register_models(auto_class)
    _register_tokenizers()
    _register_processors()
    _register_pipelines()


def _register_configs() -> None:
    from transformers import AutoConfig

    for family in models.FAMILIES.values():
        for config in family.config_classes():
            AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models(auto_class: str) -> None:
    kind = getattr(importlib.import_module("transformers"), auto_class)
    for family in models.FAMILIES.values():
        for config, network in family.networks(auto_class):
            kind.register(config, network, exist_ok=True)


def _register_tokenizers() -> None:
    from transformers import AutoTokenizer

    for name, family in inputs.FAMILIES.items():
        config = models.FAMILIES[name].config_classes()[0]
        AutoTokenizer.register(config, slow_tokenizer_class=family.tokenizer_class, exist_ok=True)


def _register_processors() -> None:
    from transformers import AutoProcessor

    for name, family in inputs.FAMILIES.items():
        if family.processor is not None:
            config = models.FAMILIES[name].config_classes()[0]
            AutoProcessor.register(config, family.processor_class, exist_ok=True)


def _register_pipelines() -> None:
    from transformers.pipelines import PIPELINE_REGISTRY

    modeling = importlib.import_module("cellglot.modeling")
    for task, pipeline in PIPELINES.items():
        if task not in PIPELINE_REGISTRY.supported_tasks:
            found = getattr(modeling, pipeline)
            PIPELINE_REGISTRY.register_pipeline(task, found, pt_model=modeling.AutoModelForCells)


# -------------------------------------------------------------------- at the first look


class FilledWhenRead(dict):
    """A dictionary that calls `fill` before it is first read. `fill` may read it, too."""

    def __init__(self, given: dict, fill: Callable[[], None]):
        super().__init__(given)
        self.fill = fill

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)


def _filling(name: str) -> Callable[..., Any]:
    read = getattr(dict, name)

    def method(self: FilledWhenRead, *given: Any) -> Any:
        self.fill()
        return read(self, *given)

    method.__name__ = name
    return method


for _name in _READS:
    setattr(FilledWhenRead, _name, _filling(_name))


def _once(fill: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls `fill` once, again only after an error. Other threads wait."""
    lock, begun = threading.RLock(), False

    def run() -> None:
        nonlocal begun
        with lock:
            if begun:
                return
            begun = True
            try:
                fill()
            except BaseException:
                begun = False
                raise

    return run


def _fill_when_read(fill: Callable[[], None], *tables: tuple[Any, str]) -> None:
    """Replace tables, each an (object, attribute), by ones that are filled together when one is first read."""
    once = _once(fill)
    for owner, attribute in tables:
        setattr(owner, attribute, FilledWhenRead(getattr(owner, attribute), once))


def _configs_loaded(module: ModuleType) -> None:
    _fill_when_read(_register_configs, (module.CONFIG_MAPPING, "_extra_content"))


def _models_loaded(module: ModuleType) -> None:
    for auto_class in AUTO_CLASSES:
        table = getattr(module, auto_class)._model_mapping
        _fill_when_read(partial(_register_models, auto_class), (table, "_extra_content"))


def _tokenizers_loaded(module: ModuleType) -> None:
    tables = (module.TOKENIZER_MAPPING, "_extra_content"), (module, "REGISTERED_TOKENIZER_CLASSES")
    _fill_when_read(_register_tokenizers, *tables)


def _processors_loaded(module: ModuleType) -> None:
    _fill_when_read(_register_processors, (module.PROCESSOR_MAPPING, "_extra_content"))


def _pipelines_loaded(module: ModuleType) -> None:
    _fill_when_read(_register_pipelines, (module.PIPELINE_REGISTRY, "supported_tasks"))


def _our_tokenizers_loaded(module: ModuleType) -> None:
    """Tell tokenizers where the compiled loops are: their file is copied to the Hub, where there are none."""
    compiled = partial(importlib.import_module, "cellglot.tokenization.kernels.encoding")
    module.GeneExpressionTokenizer.load_compiled = staticmethod(compiled)


def _our_vocabulary_loaded(module: ModuleType) -> None:
    """Tell vocabularies where the package's table of human genes is."""
    module.GeneVocabulary.load_human_genes = staticmethod(_human_genes)


def _human_genes() -> Any:
    return importlib.import_module("cellglot.tokenization.genes.tables").human_genes()


WATCHED: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _configs_loaded,
    "transformers.models.auto.modeling_auto": _models_loaded,
    "transformers.models.auto.tokenization_auto": _tokenizers_loaded,
    "transformers.models.auto.processing_auto": _processors_loaded,
    "transformers.pipelines": _pipelines_loaded,
    "cellglot.tokenization.tokenization_gene_expression": _our_tokenizers_loaded,
    "cellglot.tokenization.gene_vocabulary": _our_vocabulary_loaded,
}


class _Watcher(MetaPathFinder):
    """Calls the function in `WATCHED` after a module is loaded. It finds no modules itself."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find a watched module as the other finders do."""
        if name not in WATCHED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                WATCHED[name](module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def watch() -> None:
    """Register with the modules that are loaded, and watch for the import of the others."""
    if any(type(finder).__name__ == _Watcher.__name__ for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Watcher())
    for name, loaded in WATCHED.items():
        if name in sys.modules:
            loaded(sys.modules[name])


__all__ = ["FilledWhenRead", "register_auto_classes", "watch"]
