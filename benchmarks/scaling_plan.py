"""What pretraining costs on GPUs that were not here: operations of a cell are counted, the rest is arithmetic.

python benchmarks/scaling_plan.py

Operations are those of the cell encoders of the published configurations, forward and backward, counted by PyTorch at
two lengths and extended to the lengths of real cells: they are the sum of a part proportional to the length and one
proportional to its square. scCello and LangCell (stage 1) encode every cell twice. Heads and text encoders are left
out. Bytes and tokens of a cell are those of the token Parquet of real cells, about 1,100 tokens each. The rate of a
GPU assumes that it reaches 40% of 989 x 10^12 operations per second (H100, bfloat16): no GPU was here to measure it.
A row that is bound by reading needs more than 16 processor cores a GPU; its GPU hours are a lower bound that is not
reached.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import parser, report
from repeated_corpus import small_corpus
from torch.utils.flop_counter import FlopCounterMode

from cellglot.modeling import ExceiverConfig, ExceiverModel, ScCelloConfig, ScCelloModel
from cellglot.modeling.configuration_langcell import LangCellCellConfig
from cellglot.modeling.modeling_langcell import LangCellCellModel
from cellglot.tokenization import Corpus
from cellglot.training.config import load_config
from cellglot.training.runs.work import CPU_ATTENTION


PEAK, SHARE = 989e12, 0.4
CORES = 16  # processor cores a GPU, as machines with GPUs have them
READ = 10_000  # cells that one processor core reads and pads per second, the target of benchmarks/streaming.py
VOCABULARY = 25_000
MANY = 100e6
# System, its configuration, networks, passes of a cell, longest cell, published cells and epochs (None: unpublished).
SYSTEMS: tuple[tuple[str, str, Any, Any, int, int, float, int | None], ...] = (
    ("Exceiver", "exceiver_published.yaml", ExceiverConfig, ExceiverModel, 1, 1 << 20, 0.5e6, 130),
    ("scCello", "sccello_published.yaml", ScCelloConfig, ScCelloModel, 2, 2048, 22e6, 3),
    ("LangCell, stage 1", "langcell_published.yaml", LangCellCellConfig, LangCellCellModel, 2, 2048, 27.5e6, None),
)
LENGTHS = (128, 256)


def operations(config_class: Any, model_class: Any, settings: dict[str, Any]) -> list[float]:
    """Return the operations of a cell with 128 and with 256 tokens, forward and backward."""
    settings = settings.get("cell_config", settings)
    known = {k: v for k, v in settings.items() if k in config_class.__dataclass_fields__}
    model = model_class(config_class(vocab_size=VOCABULARY, **known)).train()
    found = []
    for length in LENGTHS:
        ids = torch.arange(5, 5 + length).expand(2, -1).clone()
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if model_class is ExceiverModel:
            given["expression_values"] = torch.ones(2, length)
        else:
            given["input_ids"][:, 0] = model.config.cls_token_id or 0
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            model(**given).last_hidden_state.sum().backward()
        found.append(counter.get_total_flops() / 2)
    return found


def at_lengths(counted: list[float], lengths: np.ndarray) -> float:
    """Return the mean operations of cells, from those at two lengths: constant, linear and quadratic parts."""
    a, b = LENGTHS
    quadratic = (counted[1] / b - counted[0] / a) / (b - a)
    linear = counted[0] / a - quadratic * a
    return float(np.mean(linear * lengths + quadratic * lengths.astype(float) ** 2))


def main() -> None:
    options = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus.open(small_corpus(Path(folder, "corpus")))
        shards = corpus.shards("train")
        lengths = _lengths(shards)
        stored = sum(Path(shard).stat().st_size for shard in shards) / len(lengths)
    rows = []
    for name, file, config_class, model_class, passes, longest, cells, epochs in SYSTEMS:
        counted = operations(config_class, model_class, dict(load_config(file).model))
        cut = np.minimum(lengths, longest)
        if model_class is ExceiverModel:  # latents: a constant part and one proportional to the genes
            slope = (counted[1] - counted[0]) / (LENGTHS[1] - LENGTHS[0])
            each = counted[0] + slope * (float(cut.mean()) - LENGTHS[0])
        else:
            each = at_lengths(counted, cut)
        each *= passes
        rate = SHARE * PEAK / each
        rows.append(
            {
                "system": name,
                "10^9 operations a cell": each / 1e9,
                "cells/s a GPU": rate,
                "published cells, 10^6": cells / 1e6,
                "epochs": "3 (our choice)" if epochs is None else epochs,
                "GPU hours": cells * (epochs or 3) / rate / 3600,
                "GPU hours, 10^8 cells once": MANY / rate / 3600,
                "GB for 10^8 cells": MANY * stored / 1e9,
                "MB/s a GPU": rate * stored / 1e6,
                "reading cores a GPU": rate / READ,
                "bound by": "the GPU" if rate / READ < CORES else "reading",
            }
        )
    report(options, rows, [])


def _lengths(shards: list[str]) -> np.ndarray:
    import pyarrow.parquet as pq

    return np.concatenate([pq.read_table(shard, columns=["length"])["length"].to_numpy() for shard in shards])


if __name__ == "__main__":
    main()
