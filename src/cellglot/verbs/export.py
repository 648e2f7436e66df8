"""``export``: a model as ONNX graphs, for other runtimes and for browsers; or as a component of openproblems."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.model_names import resolve_model
from cellglot.outputs import OutputFolder
from cellglot.verbs.cells import as_path, existing


if TYPE_CHECKING:
    from cellglot.evaluation.judges.component import ComponentExport
    from cellglot.evaluation.onnx_export import OnnxExport


ONNX, OPENPROBLEMS = "onnx", "openproblems"
FORMATS = (ONNX, OPENPROBLEMS)


def export(
    model: str | os.PathLike,
    output: str | os.PathLike,
    *,
    format: str = "onnx",
    dtype: str | Sequence[str] = "float32",
    adapter: str | os.PathLike | None = None,
    cells: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> "OnnxExport | ComponentExport":
    """Export a model as ONNX graphs, which run without PyTorch: by onnxruntime, also in a browser.

    With ``format="openproblems"`` the folder is a component of openproblems' task label projection instead:
    ``config.vsh.yaml`` and ``script.py`` for viash, which call the model by its name.

    The folder is a model for `cellglot.embed` and `cellglot.annotate` with ``backend="onnx"``, and has the files that
    transformers.js expects: ``onnx/model.onnx`` (``model_fp16.onnx``, ``model_int8.onnx``), the configuration, the
    tokenizer, and the calibration of a classifier. Inputs of a graph are those of the tokenizer (``input_ids``,
    ``expression_values`` for Exceiver, ``attention_mask``), of any number of cells and genes; outputs are
    ``embedding``, and ``logits`` for a classifier.

    Each graph is compared with PyTorch before it is kept: on made cells of several shapes, and on real cells.

    Parameters
    ----------
    model
        Name in the collection, folder or repository of a model, a classifier or an adapter.
    output
        Folder for the result.
    format
        ``"onnx"``, or ``"openproblems"``, which takes no `dtype`, `adapter` or `cells`.
    dtype
        Type of the stored weights, or several: ``"float32"``; ``"float16"``, half the size, computed in float32;
        ``"int8"``, a quarter of the size, products of matrices in 8 bits.
    adapter
        Folder or repository of an adapter that was trained on `model`; it is merged into the weights.
    cells
        File of cells on which results are compared; by default blood cells that ship with scanpy, if they fit.
    overwrite
        Replace an earlier export in `output`.

    Returns
    -------
    OnnxExport or ComponentExport
        What each graph loses against PyTorch, or what was written; ``print(exported.summary())``.

    Raises
    ------
    ValueError
        If the model cannot be exported, or a graph returns other values than PyTorch.
    ImportError
        If a package is missing; says which to install.

    Examples
    --------
    >>> import cellglot
    >>> exported = cellglot.export("blood-exceiver", "blood-onnx", dtype=["float32", "float16"])
    >>> cellglot.annotate(adata, "blood-onnx", backend="onnx")
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: it is {', '.join(FORMATS)}")
    if format == OPENPROBLEMS:
        if adapter is not None or cells is not None or dtype != "float32":
            raise ValueError(f"format {OPENPROBLEMS!r} takes no dtype, adapter or cells: it names the model")
        return _component(model, as_path(output), overwrite)
    dtypes = list(dict.fromkeys([dtype] if isinstance(dtype, str) else dtype))
    if not dtypes:
        raise ValueError("dtype is empty: name float32, float16 or int8")
    source, adapted = resolve_model(model), None if adapter is None else resolve_model(adapter)
    read, target = None if cells is None else existing(cells), as_path(output)
    from cellglot.modeling.onnx_network import check_weights_type, needs

    for name in dtypes:
        check_weights_type(name)
    needs("onnx", "onnxscript", "onnxruntime")
    with OutputFolder(target, "export", [source, adapted, read]) as folder:
        folder.refuse_earlier(overwrite)
        from cellglot.modeling.any_model import load_any_model

        loaded = load_any_model(source, adapted)
        folder.clear()
        done = _graphs(loaded, target, dtypes, read)
        _save_beside(loaded, target)
        folder.finish()
    return done


def _component(model: str | os.PathLike, target: Path, overwrite: bool) -> "ComponentExport":
    source = resolve_model(model)
    from cellglot.evaluation.judges.component import write_component
    from cellglot.modeling.any_model import describe_model

    with OutputFolder(target, "export", [source]) as folder:
        folder.refuse_earlier(overwrite)
        doi = describe_model(source).family.doi
        if doi is None:
            raise ValueError(f"{model}: the paper of its family is unknown, and openproblems asks for one")
        folder.clear()
        done = write_component(target, str(model), doi)
        folder.finish()
    return done


def _graphs(loaded: LoadedModel, target: Path, dtypes: Sequence[str], cells: Path | None) -> "OnnxExport":
    from cellglot.evaluation.onnx_export import export_onnx
    from cellglot.tokenization.reading.cells import read_cells

    if cells is None:
        return export_onnx(loaded, target, dtypes)
    with read_cells(cells) as opened:
        return export_onnx(loaded, target, dtypes, opened)


def _save_beside(loaded: LoadedModel, target: Path) -> None:
    """Write the configuration, the tokenizer and the calibration of a model, but no weights."""
    import copy

    from cellglot.modeling.adapter_folders import model_file
    from cellglot.modeling.annotation_calibration import CALIBRATION_FILE
    from cellglot.modeling.loaded_model import without_adapter

    network: Any = without_adapter(loaded.network)
    config = copy.deepcopy(network.config)
    config.architectures = [type(network).__name__]
    config.save_pretrained(target)
    loaded.tokenizer.save_pretrained(target)
    calibration = model_file(loaded.name, CALIBRATION_FILE)
    if calibration is not None:
        shutil.copyfile(calibration, target / CALIBRATION_FILE)


__all__ = ["export"]
