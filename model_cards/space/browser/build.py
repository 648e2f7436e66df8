"""Build the page: files of our own, packages of npm at pinned versions, and the model as ONNX."""

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from cellglot.evaluation.cell_plot.page import script, style
from cellglot.evaluation.onnx_export import made_batches
from cellglot.model_cards.space.browser.genes import gene_names
from cellglot.model_cards.space.browser.npm import page_files
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
MOST_BYTES = 25_000_000  # of a page with its model, if the weights allow it


def stage_page(folder: str | Path, target: Path, *, name: str, title: str = "", link: str = "") -> list[str]:
    """Write the page for a model into a folder.

    Parameters
    ----------
    folder
        Folder of a classifier.
    target
        Empty folder, which exists.
    name
        Name of the model, as the page shows it.
    title, link
        Heading of the page, and the address of the model.

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
            f"{folder} cannot annotate cells in a browser: it is for {what.purpose}, and the page shows the classes of "
            "a classifier. Fine-tune it first (cellglot finetune), or publish a Space with a server (without --browser)"
        )
    loaded = load_any_model(folder)
    files = {
        path.relative_to(PAGE).as_posix(): path.read_bytes() for path in sorted(PAGE.rglob("*")) if path.is_file()
    }
    files |= page_files()
    files |= {"vendor/cell_plot/cell_plot.js": script().encode(), "vendor/cell_plot/cell_plot.css": style().encode()}
    files |= _model_files(folder, loaded, {"name": name, "title": title or name, "link": link})
    files["model/model.onnx.gz"] = _packed_graph(folder, loaded, sum(map(len, files.values())))
    for path, content in files.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(content)
    return sorted(files)


def _model_files(folder: Path, loaded: LoadedModel, names: dict[str, str]) -> dict[str, bytes]:
    config, tokenizer = without_adapter(loaded.network).config, loaded.tokenizer
    classes = [config.id2label[number] for number in range(config.num_labels)]
    cl_ids = config.label_cl_ids or {}
    calibration = AnnotationCalibration.load(folder)
    if calibration is not None:
        calibration.check(folder, classes)
    example = folder / EXAMPLE_FILE
    settings = names | {
        "classes": classes,
        "cell_types": [cl_ids.get(label) for label in classes],
        "calibrated": calibration is not None,
        "tokenizer": tokenizer_settings(tokenizer),
        "example": example.is_file(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.vocabulary.save_files(Path(scratch, VOCABULARY_FILE), Path(scratch, STATISTICS_FILE))
        statistics = Path(scratch, STATISTICS_FILE).read_bytes()
    genes = gene_names(tokenizer.vocabulary, human_genes())
    files = {
        "model/settings.json": _json(settings),
        "model/genes.json.gz": gzip.compress(_json(genes), 9, mtime=0),
        "model/gene_stats.safetensors": statistics,
    }
    if calibration is not None:
        files[f"model/{CALIBRATION_FILE}"] = (folder / CALIBRATION_FILE).read_bytes()
    if example.is_file():
        files[f"model/{EXAMPLE_FILE}"] = example.read_bytes()
    return files


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


def _packed_graph(folder: Path, loaded: LoadedModel, others: int) -> bytes:
    """Return the model as ONNX, packed: the graph in its folder, or one that is exported now.

    Weights are float32; float16 if the page, whose other files have `others` bytes, would be larger than `MOST_BYTES`.
    """
    packed = b""
    for dtype in ("float32", "float16"):
        packed = gzip.compress(_graph(folder, loaded, dtype), 9, mtime=0)
        if others + len(packed) <= MOST_BYTES:
            break
    return packed


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
