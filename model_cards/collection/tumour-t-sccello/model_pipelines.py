"""The pipelines that a model's configuration names, and the code that is saved with it."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers.dynamic_module_utils import get_cached_module_file, get_relative_import_files
from transformers.utils import HF_MODULES_CACHE, logging

from .named_modules import name_in_package


logger = logging.get_logger(__name__)

# Task -> its pipeline.
PIPELINES = {
    "cell-embedding": "pipeline_cell_embedding.CellEmbeddingPipeline",
    "cell-type-annotation": "pipeline_cell_type_annotation.CellTypeAnnotationPipeline",
    "fill-gene-expression": "pipeline_fill_gene_expression.FillGeneExpressionPipeline",
    "cell-text-matching": "pipeline_cell_text_matching.CellTextMatchingPipeline",
}


class ModelPipelines:
    """Part of a configuration: which pipelines its model has.

    A saved folder names them in ``custom_pipelines`` of ``config.json`` and contains all code that this file names.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        name_in_package(cls.__module__)

    embeds_by_head = False  # whether a model with a head embeds cells itself: its encoder differs from AutoModel's

    gene_heads: Mapping[str, str] = MappingProxyType({})  # end of a class's name, if it fills genes -> Auto class
    matches_texts: tuple[str, ...] = ()  # names of the classes that read cells and texts

    architectures: Any
    auto_map: Any
    name_or_path: Any

    @property
    def custom_pipelines(self) -> dict[str, dict[str, Any]]:
        """Pipelines to load from the model's folder: those whose task is not registered in this process."""
        loaded = sys.modules.get("transformers.pipelines")
        known = () if loaded is None else loaded.PIPELINE_REGISTRY.get_supported_tasks()
        return {task: found for task, found in self.pipelines().items() if task not in known}

    @custom_pipelines.setter
    def custom_pipelines(self, given: Any) -> None:
        """Ignore what a file or a saved pipeline says: the pipelines follow from the architecture."""

    def pipelines(self) -> dict[str, dict[str, Any]]:
        """Return task -> code of its pipeline and the Auto class that loads the model; empty for text encoders."""
        name = (self.architectures or [""])[0]
        if not name or name.endswith("TextModel"):
            return {}
        kind = "AutoModel"
        for head in ("ForSequenceClassification", "ForTokenClassification"):
            if self.embeds_by_head and name.endswith(head):
                kind = f"AutoModel{head}"
        kinds = dict.fromkeys(("cell-embedding", "cell-type-annotation"), kind)
        for end, auto_class in self.gene_heads.items():
            if name.endswith(end):
                kinds["fill-gene-expression"] = auto_class
        if name in self.matches_texts:
            kinds["cell-text-matching"] = "AutoModel"
        if name.endswith("ForSequenceClassification"):
            kinds["cell-type-annotation"] = "AutoModelForSequenceClassification"
        return {task: {"impl": code, "pt": [kinds[task]]} for task, code in PIPELINES.items() if task in kinds}

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, including the pipelines."""
        given = super().to_dict()  # type: ignore[misc]
        found = self.pipelines()
        return given | {"custom_pipelines": found} if found else given

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the configuration, and the code that it names of models and pipelines."""
        named = [*(self.auto_map or {}).values(), *(p["impl"] for p in self.pipelines().values())]
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        for module in sorted({path.split("--")[-1].split(".")[0] for path in named}):
            _copy_code(self, f"{module}.py", Path(save_directory))
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)  # type: ignore[misc]


def _copy_code(config: Any, name: str, folder: Path) -> None:
    """Copy a file and the files that it imports, from the configuration's own folder or from the model's origin."""
    code = Path(str(sys.modules[type(config).__module__].__file__)).with_name(name)
    if not code.exists() and config.name_or_path:
        try:
            code = Path(HF_MODULES_CACHE, get_cached_module_file(config.name_or_path, name))
        except OSError as error:
            logger.warning(f"{folder / 'config.json'} names {name}, which was not found: {error}")
    for file in (code, *map(Path, get_relative_import_files(code))) if code.exists() else ():
        if not (folder / file.name).exists() or not (folder / file.name).samefile(file):
            shutil.copyfile(file, folder / file.name)


__all__ = ["PIPELINES", "ModelPipelines"]
