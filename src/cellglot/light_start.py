"""A quick start of commands that compute with a model in one process and train nothing.

To define its base class of models, transformers imports parts that such a command does not use: distributed tensors,
the compiler of PyTorch (and SymPy), accelerate, SciPy's optimizers; together they take longer than transformers and
PyTorch themselves. `start_light` is called before the first import of transformers. Then transformers sees a PyTorch
without ``torch.distributed`` and neither accelerate nor SciPy, which it supports, and its functions are not marked for
the compiler. PyTorch and all other libraries are as always. It also scans its folder of models once, not twice.

Only the command line calls it: a library must not change others in somebody's process.
"""

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


MAJOR_VERSION = "5"  # of transformers
_UNUSED = ("is_accelerate_available", "is_scipy_available", "is_torch_distributed_available")
_COMPILER = "torch._dynamo"
_MARKS = ("allow_in_graph", "assume_constant_result", "disable")  # decorators of functions for the compiler


def start_light() -> bool:
    """Leave parts of transformers out of this process. Return whether that is so.

    Nothing is done where transformers is loaded already, or has another major version than 5.
    """
    if "transformers" in sys.modules:
        return any(isinstance(finder, _Finder) for finder in sys.meta_path)
    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return False
    if version.split(".")[0] != MAJOR_VERSION:
        return False
    sys.meta_path.insert(0, _Finder())
    return True


class _Finder(MetaPathFinder):
    """Calls functions of `_BEFORE` and `_LOADED` when their module is loaded. It finds no modules itself."""

    def __init__(self) -> None:
        self.waiting = dict(_LOADED)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find a module of `_LOADED` as the other finders do."""
        loaded = self.waiting.pop(name, None)
        if loaded is None:
            return None
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                _BEFORE.get(name, _nothing)()
                load(module)
                loaded(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _availability_loaded(module: ModuleType) -> None:
    """Say that unused libraries are not there, before anything of transformers asks."""
    for name in _UNUSED:
        if hasattr(module, name):
            setattr(module, name, _unavailable)
    if hasattr(module, "create_import_structure_from_path") and hasattr(module, "spread_import_structure"):
        _scan_once(module)
    _hide_compiler()
    _spare_empty_embeddings()


def _masks_load(name: str = f"{_COMPILER}._trace_wrapped_higher_order_op") -> None:
    """Let masks import the one helper of the compiler that they use when it is used."""
    if name in sys.modules:
        return
    stand_in = ModuleType(name)

    def helper(*given: Any, **named: Any) -> Any:
        return importlib.import_module(name).TransformGetItemToIndex(*given, **named)

    stand_in.TransformGetItemToIndex = helper  # type: ignore[attr-defined]
    sys.modules[name] = stand_in


def _masks_loaded(_module: ModuleType, name: str = f"{_COMPILER}._trace_wrapped_higher_order_op") -> None:
    if getattr(sys.modules.get(name), "__spec__", None) is None:
        sys.modules.pop(name, None)


def _unavailable(*_given: Any, **_named: Any) -> bool:
    return False


def _scan_once(module: ModuleType) -> None:
    """Scan a folder of models once, whether it is named by its path or by that of its ``__init__.py``."""
    scan, spread, known = module.create_import_structure_from_path, module.spread_import_structure, {}

    def scan_folder(path: str | os.PathLike) -> Any:
        return scan(os.path.dirname(path) if os.path.isfile(path) else os.fspath(path))

    def spread_once(structure: Any) -> Any:
        if id(structure) not in known:
            known[id(structure)] = structure, spread(structure)
        return {key: dict(value) for key, value in known[id(structure)][1].items()}

    module.create_import_structure_from_path = scan_folder
    module.spread_import_structure = spread_once


def _hide_compiler() -> None:
    """Put a module in the place of PyTorch's compiler that has only its marks, and becomes the real one when used."""
    import torch

    if _COMPILER in sys.modules:
        return
    stand_in = ModuleType(_COMPILER)
    kept = {name: getattr(torch.compiler, name) for name in _MARKS if hasattr(torch.compiler, name)}

    def real(name: str) -> Any:
        if sys.modules[_COMPILER] is stand_in:
            for mark, function in kept.items():
                setattr(torch.compiler, mark, function)
            del sys.modules[_COMPILER]
            importlib.import_module(_COMPILER)
        return getattr(sys.modules[_COMPILER], name)

    stand_in.__getattr__ = real  # type: ignore[method-assign]
    for name in kept:
        setattr(stand_in, name, _mark)
        setattr(torch.compiler, name, _mark)
    sys.modules[_COMPILER] = torch._dynamo = stand_in  # type: ignore[attr-defined]


def _spare_empty_embeddings() -> None:
    """Draw no numbers for embeddings without memory, whose weights are loaded next: to do so imports SymPy."""
    from torch import nn

    draw = nn.Embedding.reset_parameters

    def reset_parameters(self: nn.Embedding) -> None:
        if not self.weight.is_meta:
            draw(self)

    nn.Embedding.reset_parameters = reset_parameters  # type: ignore[method-assign]


def _nothing() -> None:
    pass


def _mark(function: Any = None, *_given: Any, **_named: Any) -> Any:
    return _mark if function is None else function


_BEFORE: dict[str, Callable[[], None]] = {"transformers.masking_utils": _masks_load}


_LOADED: dict[str, Callable[[ModuleType], None]] = {
    "transformers.utils.import_utils": _availability_loaded,
    "transformers.masking_utils": _masks_loaded,
}


__all__ = ["start_light"]
