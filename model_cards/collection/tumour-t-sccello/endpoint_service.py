"""The service behind an endpoint: one model, loaded once, that answers requests with embeddings and cell types."""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from .endpoint_h5ad import H5adError, read_h5ad
from .endpoint_limits import Clock, Limits, RequestError
from .endpoint_request import EMBEDDINGS, LABELS, OF_LABELS, OF_READING, cells_of, checked_parameters, clean


ANNOTATION, EMBEDDING = "cell-type-annotation", "cell-embedding"
LONGEST_MESSAGE = 2000


class CellService:
    """A model that answers requests.

    Parameters
    ----------
    path
        Folder or repository of a model or an adapter.
    limits
        Limits of requests; by default those of the environment (`Limits.of_environment`).
    """

    def __init__(self, path: str, limits: Limits | None = None):
        self.path = os.fspath(path)
        self.limits = Limits.of_environment() if limits is None else limits
        self.lock = threading.Lock()  # the pipelines keep the classes and the report of a call
        self.pipelines = load_pipelines(self.path)
        self.model = self.pipelines[EMBEDDING].model
        self.by_texts = hasattr(self.model, "annotate")

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a request.

        Parameters
        ----------
        data
            ``inputs`` and ``parameters``.

        Returns
        -------
        dict
            ``cells``: number of cells; ``names``: their names, of an h5ad; ``labels``: for each cell what
            `CellTypeAnnotationPipeline` returns; ``embeddings``: a vector for each cell, null for cells without genes
            of the model; ``genes``: how many genes were matched, and the share of counts on them; ``warnings``:
            sentences.

        Raises
        ------
        RequestError
            If the request is wrong, or exceeds a limit.
        """
        try:
            return self._answer(data)
        except MemoryError:
            message = "the request needs more memory than this endpoint has: send fewer cells"
        except (ValueError, TypeError, KeyError, ArithmeticError, OSError, RuntimeError, LookupError) as error:
            message = self._message(error)
        raise RequestError(clean(message)[:LONGEST_MESSAGE])

    def _answer(self, data: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(data, Mapping) or "inputs" not in data:
            raise RequestError('the request has no "inputs": send {"inputs": ..., "parameters": {...}} as JSON')
        if unknown := [str(name) for name in data if name not in ("inputs", "parameters")]:
            raise RequestError(f"the request has {unknown[0]!r:.80}, which is unknown: it takes inputs and parameters")
        parameters = checked_parameters(data)
        limits = self.limits.lowered(parameters)
        clock = Clock(limits.max_seconds)
        outputs = self._outputs(parameters)
        cells, names = cells_of(data["inputs"], limits), None
        if isinstance(cells, bytes):
            bounds = {"max_cells": limits.max_cells, "max_decompressed_bytes": limits.max_decompressed_bytes}
            cells = read_h5ad(cells, bounds, clock.left(), parameters.get("layer"))
            names = cells.obs_names
        elif "layer" in parameters:
            raise RequestError("parameters: layer is for an h5ad, and the inputs are counts of cells")
        with self.lock, stopped_by(self.model, clock):
            return self._run(cells, names, outputs, parameters)

    def _outputs(self, parameters: Mapping[str, Any]) -> list[str]:
        """Return what is wanted: by default labels if the model can give them, else embeddings."""
        classes = ANNOTATION in self.pipelines and (not self.by_texts or "candidate_labels" in parameters)
        outputs = parameters.get("outputs", [LABELS if classes else EMBEDDINGS])
        given = [name for name in OF_LABELS if name in parameters]
        if LABELS in outputs and not classes:
            raise RequestError(
                "this model labels cells by texts: name the cell types in parameters, candidate_labels"
                if self.by_texts
                else "this model has no cell types, it embeds cells: leave out outputs, or ask for embeddings"
            )
        if given and LABELS not in outputs:
            raise RequestError(f"parameters: {given[0]} is for labels, and only {', '.join(outputs)} are asked for")
        return outputs

    def _run(self, cells: Any, names: Any, outputs: list[str], parameters: Mapping[str, Any]) -> dict[str, Any]:
        reading = {name: parameters[name] for name in OF_READING if name in parameters}
        answer: dict[str, Any] = {"names": names} if names is not None else {}
        if LABELS in outputs:
            options = {name: parameters[name] for name in OF_LABELS if name in parameters}
            answer["labels"] = self.pipelines[ANNOTATION](cells, progress=False, **reading, **options)
        if EMBEDDINGS in outputs:
            answer["embeddings"] = _rows(self.pipelines[EMBEDDING](cells, progress=False, **reading))
        report = self.pipelines[ANNOTATION if LABELS in outputs else EMBEDDING].last_report
        genes = {
            "given": report.genes, "matched": report.matched, "counts_covered": report.coverage,
            "counts_in": clean(report.counts_in),
        }  # fmt: skip
        return {"cells": report.cells, **answer, "genes": genes, "warnings": _warnings(report, answer)}

    def _message(self, error: Exception) -> str:
        """Say what was wrong, without options of the command line and folders of the server."""
        if isinstance(error, RequestError | H5adError):
            return str(error)
        text = " ".join(str(error).split()) or type(error).__name__
        if type(error).__name__ == "GeneCoverageError":
            tokenizer = self.pipelines[EMBEDDING].tokenizer
            first = tokenizer.vocabulary.genes[0] if tokenizer.vocabulary.genes else ""
            start = (
                text.partition("It names genes as in")[0].removeprefix("the matrix: ").removeprefix("the AnnData: ")
            )
            mouse = (
                " They are named as in mouse: this model reads human genes, so send the human orthologs."
                if "species mouse" in text or _mouse(text) else ""
            )  # fmt: skip
            return f"{start.strip()} The model names genes as in {first!r}, by Ensembl id or symbol.{mouse}"
        return text.replace(self.path, "the model") if len(self.path) > 1 else text


def load_pipelines(path: str) -> dict[str, Any]:
    """Load a model once, and return the pipelines that it can run, by task.

    Parameters
    ----------
    path
        Folder or repository of a model or an adapter.
    """
    config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    classes = (config.architectures or [""])[0].endswith("ForSequenceClassification")
    task = ANNOTATION if classes and config.problem_type != "regression" else EMBEDDING
    device = 0 if torch.cuda.is_available() else -1
    first = pipeline(task, model=path, trust_remote_code=True, device=device)
    found = {task: first}
    for other in (ANNOTATION, EMBEDDING):
        if other in found or (other == ANNOTATION and not hasattr(first.model, "annotate")):
            continue
        kind = get_class_from_dynamic_module(config.pipelines()[other]["impl"], path)
        found[other] = kind(first.model, first.tokenizer, device=first.device)
    return found


@contextmanager
def stopped_by(model: torch.nn.Module, clock: Clock) -> Iterator[None]:
    """Refuse to compute the next batch when the time of a request is over."""

    def check(*passed: Any) -> None:
        clock.left()

    encoder = getattr(model, "cell_model", model.base_model)
    hook = encoder.register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()


def _rows(embeddings: np.ndarray) -> list[list[float] | None]:
    """Return embeddings as lists, None for cells without genes, whose values are NaN."""
    known = np.isfinite(embeddings).all(axis=1)
    return [row if there else None for row, there in zip(embeddings.tolist(), known.tolist(), strict=True)]


def _mouse(text: str) -> bool:
    """Whether most of the names in a message, in quotes, are those of mouse genes: Cd3e, ENSMUSG..."""
    names = text.partition("e.g. ")[2].partition(". It names")[0].replace("'", "").split(", ")
    mouse = [n for n in names if n.startswith("ENSMUSG") or (n[:1].isupper() and n[1:].islower() and len(n) > 2)]
    return len(mouse) * 2 > len(names)


def _warnings(report: Any, answer: Mapping[str, Any]) -> list[str]:
    found = []
    if report.cells_without_genes:
        found.append(f"{report.cells_without_genes:,} of {report.cells:,} cells express no gene of the model")
    if report.cells_cut:
        found.append(f"{report.cells_cut:,} of {report.cells:,} cells have more genes than the model reads")
    if report.coverage < 0.5:
        found.append(f"only {report.coverage:.0%} of the counts are on genes of the model")
    labels = answer.get("labels") or [{}]
    if isinstance(labels[0], dict) and "assigned" in labels[0]:
        left = sum(not cell["assigned"] for cell in labels)
        if 2 * left > len(labels):
            found.append(f"{left:,} of {len(labels):,} cells are unassigned: they may not be of the model's tissue")
    if report.left_out:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in report.left_out.items())
        found.append(f"left out features that are not genes: {kinds}")
    if report.hint:
        found.append(report.hint)
    return [clean(text) for text in found]


__all__ = ["CellService", "load_pipelines"]
