"""Build the page: files of our own, packages of npm at pinned versions, and the model as ONNX."""

import gzip
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anndata import AnnData

from cellglot.evaluation.cell_plot.page import script, style
from cellglot.evaluation.onnx_export import made_batches
from cellglot.model_cards.space.browser.genes import gene_names
from cellglot.model_cards.space.browser.npm import page_files
from cellglot.model_cards.space.gradio.annotator import example_cells
from cellglot.modeling.annotation_calibration import CALIBRATION_FILE, AnnotationCalibration
from cellglot.modeling.any_model import describe_model, load_any_model
from cellglot.modeling.convert.onnx import export_graphs
from cellglot.modeling.loaded_model import LoadedModel, without_adapter
from cellglot.modeling.onnx_network import FOLDER, ONNX_FILES, load_onnx_model
from cellglot.tokenization.gene_vocabulary import STATISTICS_FILE, VOCABULARY_FILE
from cellglot.tokenization.genes.tables import human_genes
from cellglot.tokenization.tokenization_exceiver import ExceiverTokenizer
from cellglot.tokenization.tokenization_rank_value import RankValueTokenizer


PAGE = Path(__file__).with_name("page")
EXAMPLE_FILE = "example_cells.h5ad"
SETTINGS, GRAPH = "model/settings.json", "model/model.onnx.gz"
MOST_CELLS = 20_000  # annotated of a file
MOST_FILE_BYTES = 4 << 30
# Loaded, and kept for use without a network, only by browsers with a graphics processor.
WEBGPU = (
    "vendor/onnxruntime/ort.webgpu.bundle.min.mjs",
    "vendor/onnxruntime/ort-wasm-simd-threaded.asyncify.wasm.gz",
)
MOST_BYTES = 25_000_000  # of a page with its model, if the weights allow it


def stage_page(
    folder: str | Path,
    target: Path,
    *,
    name: str,
    title: str = "",
    link: str = "",
    most_cells: int = MOST_CELLS,
    most_bytes: int = MOST_FILE_BYTES,
) -> list[str]:
    """Write the page for a model into a folder.

    Parameters
    ----------
    folder
        Folder of a classifier, or of an adapter.
    target
        Empty folder, which exists.
    name
        Name of the model, as the page shows it.
    title, link
        Heading of the page, and the address of the model.
    most_cells
        Cells of a file that are annotated; of a larger file these are taken at equal steps.
    most_bytes
        Largest file that is read.

    Returns
    -------
    list of str
        The written files, relative to `target`.

    Raises
    ------
    ValueError
        If the model is not a classifier of cells, or has no tokenizer that the page knows.
    """
    folder = Path(folder)
    if (what := describe_model(folder)).purpose != "classes of cells":
        raise ValueError(
            f"{folder} cannot annotate cells in a browser: it is for {what.purpose}, and the page shows the classes "
            "of a classifier. Fine-tune it (cellglot finetune), or publish a Space with a server (without --browser)"
        )
    loaded = load_any_model(folder)
    files = {path.relative_to(PAGE).as_posix(): path.read_bytes() for path in PAGE.rglob("*") if path.is_file()}
    files |= page_files()
    files |= {"vendor/cell_plot/cell_plot.js": script().encode(), "vendor/cell_plot/cell_plot.css": style().encode()}
    files |= _model_files(folder, loaded)
    files[GRAPH], weights = _packed_graph(folder, loaded, sum(map(len, files.values())))
    files[SETTINGS] = _json(
        {"name": name, "title": title or name, "link": link, "weights": weights}
        | {"most_cells": most_cells, "most_bytes": most_bytes, "example": f"model/{EXAMPLE_FILE}" in files}
        | _model_settings(folder, loaded)
    )
    files["offline.js"] = files["offline.js"].replace(b"FILES_OF_THE_PAGE", _listed(files))
    for path, content in files.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(content)
    return sorted(files)


def _model_settings(folder: Path, loaded: LoadedModel) -> dict[str, Any]:
    """Return what the page has to know of a model."""
    config = without_adapter(loaded.network).config
    classes = [config.id2label[number] for number in range(config.num_labels)]
    ids = config.label_cl_ids or {}
    calibration = AnnotationCalibration.load(folder)
    if calibration is not None:
        calibration.check(folder, classes)
    return {
        "classes": classes,
        "cell_types": [ids.get(label) for label in classes],
        "calibrated": calibration is not None,
        "tokenizer": tokenizer_settings(loaded.tokenizer),
    }


def _model_files(folder: Path, loaded: LoadedModel) -> dict[str, bytes]:
    vocabulary = loaded.tokenizer.vocabulary
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary.save_files(Path(scratch, VOCABULARY_FILE), Path(scratch, STATISTICS_FILE))
        statistics = Path(scratch, STATISTICS_FILE).read_bytes()
    files = {
        "model/genes.json.gz": gzip.compress(_json(gene_names(vocabulary, human_genes())), 9, mtime=0),
        "model/gene_stats.safetensors": statistics,
    }
    if (folder / CALIBRATION_FILE).is_file():
        files[f"model/{CALIBRATION_FILE}"] = (folder / CALIBRATION_FILE).read_bytes()
    if (example := _example(folder, loaded.tokenizer)) is not None:
        files[f"model/{EXAMPLE_FILE}"] = example
    return files


def _example(folder: Path, tokenizer: Any) -> bytes | None:
    """Return a file of example cells: the model's own, else blood cells of scanpy; None if these do not fit it."""
    source, _ = example_cells(folder)
    if not isinstance(source, AnnData):
        return Path(source).read_bytes()
    known = tokenizer.vocabulary.resolve(source.var_names).known
    if source.X[:, known].sum() < tokenizer.min_coverage * source.X.sum():
        return None
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, EXAMPLE_FILE)
        AnnData(source.X, obs=source.obs[["cell_type"]], var=source.var[[]]).write_h5ad(path, compression="gzip")
        return path.read_bytes()


def _listed(files: Mapping[str, bytes]) -> bytes:
    """Return the files of the page and a mark of their contents, for the cache of the visitor's browser."""
    mark = hashlib.sha256()
    for path in sorted(files):
        mark.update(path.encode() + hashlib.sha256(files[path]).digest())
    usual = ["./", *sorted(files.keys() - WEBGPU)]
    return json.dumps({"mark": mark.hexdigest()[:16], "files": usual, "webgpu": WEBGPU}).encode()


def tokenizer_settings(tokenizer: Any) -> dict[str, Any]:
    """Return what the page has to know of a tokenizer.

    Raises
    ------
    ValueError
        If the page does not know its rules.
    """
    common = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "min_coverage": tokenizer.min_coverage,
        "target_sum": tokenizer.target_sum,
    }
    if isinstance(tokenizer, ExceiverTokenizer):
        return common | {"kind": "exceiver", "clip": tokenizer.clip, "cls_token_id": None, "max_length": None}
    if isinstance(tokenizer, RankValueTokenizer):
        first = tokenizer.cls_token_id if tokenizer.add_cls_token else None
        return common | {"kind": "rank", "cls_token_id": first, "max_length": tokenizer.model_max_length}
    raise ValueError(f"the page does not know the tokens of {type(tokenizer).__name__}: publish a Space with a server")


def _packed_graph(folder: Path, loaded: LoadedModel, others: int) -> tuple[bytes, str]:
    """Return the model as ONNX, packed, and the type of its weights: the graph in its folder, or a new one.

    Weights are float32; float16 if the page, whose other files have `others` bytes, would be larger than `MOST_BYTES`.
    """
    for dtype in ("float32", "float16"):
        packed = gzip.compress(_graph(folder, loaded, dtype), 9, mtime=0)
        if others + len(packed) <= MOST_BYTES:
            break
    return packed, dtype


def _graph(folder: Path, loaded: LoadedModel, dtype: str) -> bytes:
    if (folder / FOLDER / ONNX_FILES[dtype]).is_file():
        network: Any = load_onnx_model(folder, dtype).network  # refuses the graph of another model
        return network.path.read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        (path,) = export_graphs(loaded, scratch, list(made_batches(loaded.tokenizer)), [dtype])
        return path.read_bytes()


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


__all__ = ["stage_page", "tokenizer_settings"]
