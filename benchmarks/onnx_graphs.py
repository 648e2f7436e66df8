"""ONNX graphs beside PyTorch in float32, both on one thread of the CPU.

python benchmarks/onnx_graphs.py

The shipped classifier of blood, and Exceiver and scCello at their published sizes with random weights; batches of
cells with as many genes as usual. The graph of float32 returns PyTorch's values, or the export fails. A row has the
cells a second of both, and what the graph with 8 bits loses: the smallest cosine of an embedding by both. There is no
target: PyTorch, with its fused attention, is faster where it can be had; graphs run where it cannot.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from measure import alternate, median, parser, ratio, report

import cellglot
from cellglot.modeling import ExceiverConfig, ExceiverModel, ScCelloConfig, ScCelloModel
from cellglot.modeling.convert.onnx import export_graphs
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.masked_genes import cell_encoder
from cellglot.modeling.onnx_network import OnnxNetwork


CELLS, GENES = 16, 1000
DTYPES = ("float32", "int8")


def exceiver() -> LoadedModel:
    model = ExceiverModel(ExceiverConfig(unexpressed_genes="bias")).eval()
    model.set_background_values(torch.rand(model.config.num_genes))
    return wrapped("Exceiver, published size", model)


def wrapped(name: str, model) -> LoadedModel:
    model.config.architectures = [type(model).__name__]
    with_values = ["expression_values"] if model.config.model_type == "exceiver" else []
    names = ["input_ids", *with_values, "attention_mask"]
    return LoadedModel(name, model, SimpleNamespace(model_input_names=names))


def batch(loaded: LoadedModel, cells: int, genes: int) -> dict[str, torch.Tensor]:
    """Return random genes of cells; the last one has half as many."""
    config = loaded.network.config
    number = min(config.vocab_size - 4, getattr(config, "max_position_embeddings", config.vocab_size) - 1)
    genes = min(genes, number)
    ids = torch.stack([torch.randperm(config.vocab_size - 4)[:genes] for _ in range(cells)])
    mask = torch.ones_like(ids)
    mask[-1, max(1, genes // 2) :] = 0
    ids = ids.masked_fill(mask == 0, config.pad_token_id)
    if (
        getattr(config, "cls_token_id", None) is not None
        and "expression_values" not in loaded.tokenizer.model_input_names
    ):
        ids[:, 0] = config.cls_token_id
    return {"input_ids": ids, "expression_values": torch.rand(cells, genes) * 4, "attention_mask": mask}


def compared(loaded: LoadedModel, cells: int, repeats: int, folder: Path) -> dict[str, float]:
    """Time PyTorch and the graphs on one batch."""
    names = loaded.tokenizer.model_input_names
    made = [batch(loaded, 3, 50), batch(loaded, 1, 1), batch(loaded, cells, GENES)]
    files = export_graphs(loaded, folder, made, DTYPES)
    given = {name: made[-1][name] for name in names}
    encoder = cell_encoder(loaded.network)
    sides = {"PyTorch": encoder} | {
        d: OnnxNetwork(f, loaded.network.config) for d, f in zip(DTYPES, files, strict=True)
    }

    def running(network):
        def run():
            with torch.inference_mode():
                return network(**given).pooler_output.numpy()

        return run

    runs = {name: running(network) for name, network in sides.items()}
    times = alternate(runs, repeats)
    a, b = runs["PyTorch"](), runs["int8"]()
    cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return {
        "model": loaded.name,
        "genes of a cell": given["input_ids"].shape[1],
        **{f"{name}, cells/s": cells / median(seconds) for name, seconds in times.items()},
        "float32 over PyTorch": ratio(times["PyTorch"], times["float32"]),
        "int8 over PyTorch": ratio(times["PyTorch"], times["int8"]),
        "int8, smallest cosine": float(cosines.min()),
    }


def main() -> None:
    given = parser(__doc__, repeats=5).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    blood = cellglot.load_model("blood-exceiver")
    blood = LoadedModel("blood-exceiver", blood.network, blood.tokenizer, None, blood.purpose, blood.classes)
    models = [(blood, CELLS), (exceiver(), CELLS)]
    models.append((wrapped("scCello, published size", ScCelloModel(ScCelloConfig(num_cell_types=0)).eval()), 4))
    repeats = 2 if given.quick else given.repeats
    rows = []
    for loaded, cells in models:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compared(loaded, cells // 2 if given.quick else cells, repeats, Path(folder)))
    report(given, rows, [])


if __name__ == "__main__":
    main()
