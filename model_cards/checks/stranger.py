"""The use of a folder by a stranger: load its contents, and run them on example cells.

This file imports nothing of the package. The same code runs in this process, with the installed classes, and as a
script in a process where cellglot cannot be imported; both must return the same numbers.
"""

import inspect
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


HIDE_GENES = ("AutoModelForMaskedLM", "AutoModelForPreTraining")  # these predict masked genes
SEED = 0  # of weights that are not in the folder, equal in both processes
ROWS = 8  # compared rows of a data set

# Packages that a stranger does not have; a model needs only transformers, torch, safetensors and numpy.
OURS = ("cellglot", "anndata", "scanpy")
NOT_FOR_MODELS = (
    "accelerate", "datasets", "h5py", "matplotlib", "pandas", "peft", "pyarrow", "scipy", "sklearn", "typer", "umap",
    "zarr",
)  # fmt: skip


class Visit:
    """Loads and runs the contents of a folder, and keeps the results.

    Parameters
    ----------
    job
        ``kind`` (model, adapter, dataset, index, metric) and ``folder``; ``cells``, each a gene -> count; ``texts``
        and ``candidates`` for models that read texts; ``tasks``, the pipelines to run; ``base``, the model of an
        adapter; ``auto_class``, the Auto class of an adapter's model; ``calls``, the arguments of a metric.
    trust
        Whether to run the code in the folder, as a stranger must; with cellglot its classes are used.

    Attributes
    ----------
    arrays : dict
        Name -> numeric results.
    texts : dict
        Name -> results that are texts.
    loaded : dict
        Loaded object -> module and class.
    new_weights : dict
        Auto class -> parts whose weights are not in the folder.
    """

    def __init__(self, job: Mapping[str, Any], trust: bool = True):
        self.job, self.folder, self.trust = job, str(job["folder"]), trust
        self.arrays: dict[str, Any] = {}
        self.texts: dict[str, Any] = {}
        self.loaded: dict[str, str] = {}
        self.new_weights: dict[str, list[str]] = {}

    def run(self) -> None:
        """Run the job."""
        by_kind = {"model": self._model, "adapter": self._adapter, "dataset": self._dataset, "metric": self._metric}
        (by_kind | {"index": self._index})[self.job["kind"]]()

    # ---------------------------------------------------------------- models

    def _model(self) -> None:
        import transformers

        batch, texts = self._tokens(self.folder), self._texts()
        auto_map = json.loads(Path(self.folder, "config.json").read_text(encoding="utf-8"))["auto_map"]
        for kind in sorted(k for k in auto_map if k.startswith("AutoModel")):
            transformers.set_seed(SEED)
            model, info = getattr(transformers, kind).from_pretrained(
                self.folder, trust_remote_code=self.trust, output_loading_info=True
            )
            self._saw(kind, model)
            self.new_weights[kind] = sorted({name.split(".")[0] for name in info["missing_keys"]})
            self._forward(kind, model.eval(), batch, texts)
        for task in sorted(self.job.get("tasks", [])):
            self._pipeline(task)

    def _tokens(self, folder: str) -> dict[str, Any]:
        """Tokenize the example cells; return arbitrary tokens if the model's genes are unknown."""
        import numpy as np
        import torch
        import transformers

        if not self.job["cells"]:
            ids = torch.arange(1, 41).reshape(2, 20)
            return {
                "input_ids": ids,
                "expression_values": 1 + (ids % 7) / 7,
                "attention_mask": torch.ones_like(ids),
            }
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=self.trust)
        self._saw("AutoTokenizer", tokenizer)
        genes = sorted({gene for cell in self.job["cells"] for gene in cell})
        counts = np.array([[cell.get(gene, 0) for gene in genes] for cell in self.job["cells"]], dtype=np.float32)
        batch = dict(tokenizer(counts, genes=genes, return_tensors="pt"))
        self._keep("AutoTokenizer", batch)
        return batch

    def _texts(self) -> dict[str, Any]:
        """Tokenize the example texts if the folder has a processor."""
        import transformers

        if not self.job.get("texts") or not Path(self.folder, "processor_config.json").exists():
            return {}
        processor = transformers.AutoProcessor.from_pretrained(self.folder, trust_remote_code=self.trust)
        self._saw("AutoProcessor", processor)
        texts = dict(processor(text=self.job["texts"], return_tensors="pt"))
        self._keep("AutoProcessor", texts)
        return texts

    def _forward(self, kind: str, model: Any, batch: dict[str, Any], texts: dict[str, Any]) -> None:
        import torch

        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        taken, given = inspect.signature(plain.forward).parameters, dict(batch)
        if "masked_genes" in taken and kind in HIDE_GENES:
            places = torch.arange(batch["input_ids"].shape[1])
            given["masked_genes"] = (places % 3 == 0) & batch["attention_mask"].bool()
        if "text_input_ids" in taken:
            given |= texts
        with torch.inference_mode():
            self._keep(kind, model(**{name: value for name, value in given.items() if name in taken}))
            if hasattr(plain, "annotate") and texts:
                both = {name: value for name, value in (batch | texts).items() if name != "expression_values"}
                self._keep(f"{kind}.annotate", plain.annotate(**both))

    def _pipeline(self, task: str) -> None:
        import transformers

        transformers.set_seed(SEED)
        made = transformers.pipeline(task, model=self.folder, trust_remote_code=self.trust)
        self._saw(f"pipeline {task}", made)
        candidates = self.job.get("candidates")
        asked = {"candidate_labels": candidates} if candidates and task == "cell-type-annotation" else {}
        self._keep(f"pipeline {task}", {"output": made(self.job["cells"], **asked)})

    # ---------------------------------------------------------------- adapters, data sets, metrics

    def _adapter(self) -> None:
        import peft
        import transformers

        base = self.job["base"]
        config = transformers.AutoConfig.from_pretrained(self.folder, trust_remote_code=self.trust)
        transformers.set_seed(SEED)
        model = getattr(transformers, self.job["auto_class"]).from_pretrained(
            base, config=config, trust_remote_code=self.trust, ignore_mismatched_sizes=True
        )  # the base may have a head of its own, which that of the adapter replaces
        model = peft.PeftModel.from_pretrained(model, self.folder).eval()
        self._saw("PeftModel", model.get_base_model())
        self._forward("PeftModel", model, self._tokens(base), {})

    def _dataset(self) -> None:
        import datasets
        import numpy as np
        import transformers

        loaded = datasets.load_dataset(self.folder, streaming=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(Path(self.folder, "tokenizer")), trust_remote_code=self.trust
        )
        self._saw("AutoTokenizer", tokenizer)
        for split, rows in loaded.items():
            self.texts[f"{split}: features"] = {name: str(kind) for name, kind in rows.features.items()}
            for number, row in enumerate(rows.take(ROWS)):
                for name, value in row.items():
                    place = f"{split}: cell {number}: {name}"
                    if isinstance(value, list):
                        self.arrays[place] = np.asarray(value)
                    else:
                        self.texts[place] = value
                self.texts[f"{split}: cell {number}: genes"] = tokenizer.decode(row["input_ids"])

    def _index(self) -> None:
        import datasets
        import numpy as np

        vectors = np.load(Path(self.folder, "embeddings.npy"), mmap_mode="r", allow_pickle=False)
        self.arrays["embeddings"] = np.asarray(vectors[:ROWS], dtype=np.float32)
        rows = datasets.load_dataset(self.folder, split="train", streaming=True)
        self.texts["features"] = {name: str(kind) for name, kind in rows.features.items()}
        for number, row in enumerate(rows.take(ROWS)):
            for name, value in row.items():
                if isinstance(value, float | int):
                    self.arrays[f"cell {number}: {name}"] = np.asarray(value)
                else:
                    self.texts[f"cell {number}: {name}"] = value

    def _metric(self) -> None:
        import evaluate

        module = evaluate.load(self.folder)
        self._saw("metric", module)
        for number, call in enumerate(self.job["calls"]):
            self._keep(f"call {number}", {"result": module.compute(**call)})

    # ---------------------------------------------------------------- results

    def _saw(self, what: str, made: Any) -> None:
        self.loaded[what] = f"{type(made).__module__}.{type(made).__name__}"

    def _keep(self, what: str, output: Mapping[str, Any]) -> None:
        for name, value in output.items():
            self._keep_value(f"{what}: {name}", value)

    def _keep_value(self, name: str, value: Any) -> None:
        """Keep numbers as arrays and other values as text, at any depth of nesting."""
        import numpy as np
        import torch

        if isinstance(value, torch.Tensor):
            self.arrays[name] = value.detach().float().numpy() if value.is_floating_point() else value.numpy()
        elif isinstance(value, np.ndarray | np.generic | float | int | bool):
            self.arrays[name] = np.asarray(value)
        elif isinstance(value, Mapping):
            for key, part in value.items():
                self._keep_value(f"{name}.{key}", part)
        elif isinstance(value, list | tuple):
            for number, part in enumerate(value):
                self._keep_value(f"{name}[{number}]", part)
        elif value is not None:
            self.texts[name] = str(value)


def main() -> None:
    """Run the job in a file as a stranger, and write the results to a folder."""
    job, result = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    for name in (*OURS, *(NOT_FOR_MODELS if job["kind"] == "model" else ())):
        sys.modules[name] = None  # type: ignore[assignment]  # makes its import fail
    import numpy as np

    visit = Visit(job)
    visit.run()
    np.savez(result / "arrays.npz", **visit.arrays)
    rest = {"texts": visit.texts, "loaded": visit.loaded, "new_weights": visit.new_weights}
    (result / "rest.json").write_text(json.dumps(rest), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # Python before 3.14 may abort at its end while PyArrow's threads read ahead


if __name__ == "__main__":
    main()
