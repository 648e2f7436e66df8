"""What a training run did and took: cells, tokens, seconds, floating point operations, memory, energy."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from cellglot.training.runs.machine import EnergyMeter, code_version, peak_flops, peak_memory


COUNTED_EVERY = 200  # steps, of which one has its operations counted
LEAST_SECONDS = 10.0  # of a run whose utilisation is recorded: the peak of a processor has to be measured
COUNTABLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# Of a CPU: PyTorch counts only the attention of GPUs.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class WorkMeter(TrainerCallback, ExportableState):
    """Measures a run, over all its parts if it was stopped and resumed.

    Operations are those that PyTorch dispatches in a step: products of matrices and attention, forward and backward,
    with those that gradient checkpointing repeats. They are counted in the first step and one of 200, and are taken as
    proportional to tokens with padding. Those of compiled and sharded networks are not counted.

    Attributes
    ----------
    totals : dict
        Sums of this process: ``seconds`` of the whole run, ``step_seconds``, ``waiting_seconds`` for data,
        ``counted_flops`` of ``counted_positions`` tokens, ``energy`` in joules, ``peak_memory`` in bytes.
    """

    def __init__(self) -> None:
        self.totals = dict.fromkeys(
            ("seconds", "step_seconds", "waiting_seconds", "counted_flops", "counted_positions", "energy",
             "peak_memory"), 0.0,
        )  # fmt: skip
        self._counts: torch.Tensor | None = None  # cells, tokens, positions of batches; on the device, without a wait
        self._earlier = [0, 0, 0]
        self._step_began = self._began = 0.0
        self._energy: EnergyMeter | None = None

    # ---------------------------------------------------------------- as a callback

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock, from the sums of the checkpoint if there is one."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        if isinstance(saved, dict) and state.global_step:
            self.totals.update(saved["attributes"]["totals"])
            self._earlier = list(saved["attributes"]["counts"])
        self._began, self._energy = time.perf_counter(), EnergyMeter(args.device)
        if args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(args.device)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin a step."""
        self._step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a step."""
        self.totals["step_seconds"] += time.perf_counter() - self._step_began

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the power of the device."""
        if self._energy is not None:
            self._energy.read()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self._add_up(args.device)
        self._energy = None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        if self._energy is not None:
            self._add_up(self._energy.device)
        return {"args": {}, "attributes": {"totals": dict(self.totals), "counts": self._all_counts()}}

    def _add_up(self, device: torch.device) -> None:
        now = time.perf_counter()
        self.totals["seconds"] += now - self._began
        self._began = now
        assert self._energy is not None
        self.totals["energy"] += self._energy.joules()
        self.totals["peak_memory"] = max(self.totals["peak_memory"], peak_memory(device))

    def _all_counts(self) -> list[int]:
        now = [0, 0, 0] if self._counts is None else self._counts.tolist()
        return [int(a + b) for a, b in zip(self._earlier, now, strict=True)]

    # ---------------------------------------------------------------- called by the trainer

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the time in which the next batch is waited for."""
        began = time.perf_counter()
        yield
        self.totals["waiting_seconds"] += time.perf_counter() - began

    @contextmanager
    def batch(self, trainer: Any, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Count a batch, and the operations inside this context in some steps."""
        mask = inputs["attention_mask"].bool()
        found = torch.stack([mask.any(dim=1).sum(), mask.sum(), mask.new_tensor(mask.numel(), dtype=torch.long)])
        self._counts = found if self._counts is None else self._counts + found
        compiled = trainer.args.torch_compile or trainer.accelerator.distributed_type not in COUNTABLE
        if compiled or (trainer.state.global_step % COUNTED_EVERY and self.totals["counted_positions"]):
            yield
            return
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            yield
        self.totals["counted_flops"] += counter.get_total_flops()
        self.totals["counted_positions"] += mask.numel()

    def record(self, trainer: Any) -> dict[str, Any]:
        """Return the entry ``work`` of the record of a run; every process calls it."""
        accelerator, totals = trainer.accelerator, self.totals
        device = trainer.args.device
        mine = [*self._all_counts(), totals["counted_flops"], totals["counted_positions"], totals["energy"],
                totals["peak_memory"]]  # fmt: skip
        each = accelerator.gather(torch.tensor([mine], dtype=torch.float64 if device.type != "mps" else torch.float32,
                                               device=device)).cpu().numpy()  # fmt: skip
        cells, tokens, positions, counted, of_positions, energy = each[:, :6].sum(axis=0).tolist()
        busy = totals["step_seconds"] + totals["waiting_seconds"]
        flops = counted / of_positions * positions if of_positions else None
        found: dict[str, Any] = {
            "cells": int(cells),
            "tokens": int(tokens),
            "padding": 1 - tokens / positions if positions else 0.0,
            "seconds": totals["seconds"],
            "step_seconds": totals["step_seconds"],
            "waiting_seconds": totals["waiting_seconds"],
            "cells_per_second": cells / busy if busy else None,
            "tokens_per_second": tokens / busy if busy else None,
            "flops": flops,
            "flops_per_second": flops / busy if busy and flops else None,
            "peak_memory_bytes": int(each[:, 6].max()),
            "memory_of": "device" if device.type == "cuda" else "process",
            "energy_kwh": energy / 3.6e6,
            "energy_source": EnergyMeter(device).source,
            "code": code_version(),
        }
        if flops and busy >= LEAST_SECONDS:
            peak, source = peak_flops(device, _precision(trainer.args))
            found |= {
                "peak_flops_per_second": peak * len(each),
                "peak_source": source,
                "flop_utilisation": found["flops_per_second"] / (peak * len(each)),
            }
        return found


def summary(work: Mapping[str, Any]) -> str:
    """Describe the work of a run in one line."""
    parts = [f"{work['cells']:,} cells in {_time(work['seconds'])}"]
    if work.get("cells_per_second"):
        parts.append(f"{work['cells_per_second']:,.0f} cells/s, {work['tokens_per_second']:,.0f} tokens/s")
    parts.append(f"{work['padding']:.0%} padding")
    if work.get("flop_utilisation"):
        parts.append(f"{work['flop_utilisation']:.0%} of the peak of {work['peak_source']}")
    parts.append(f"at most {work['peak_memory_bytes'] / 2**30:.1f} GiB of the {work['memory_of']}")
    if work["energy_kwh"] >= 5e-4:
        parts.append(f"about {work['energy_kwh']:.3g} kWh ({work['energy_source']})")
    return "; ".join(parts)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _precision(args: Any) -> torch.dtype:
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


__all__ = ["WorkMeter", "summary"]
