"""Checks of what a model is called with. They read values on the CPU only, where that costs nothing."""

import torch

from .cell_losses import IGNORED


def is_readable(values: torch.Tensor) -> bool:
    """Whether there are values, and reading them neither waits for a device nor breaks a compiled graph."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling() and values.numel() > 0


def check_range(name: str, values: torch.Tensor, number: int, what: str) -> None:
    """Refuse values below 0, or `number` and above; `what` says what the model has instead."""
    if is_readable(values):
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= number:
            raise ValueError(f"{name} contains {low if low < 0 else high:,}, but this model has {what}")


def check_ids(name: str, ids: torch.Tensor, number: int, what: str) -> None:
    """Refuse token ids that are not below `number`."""
    check_range(name, ids, number, f"{what}: do tokenizer and model belong together?")


def check_labels(name: str, labels: torch.Tensor, number: int, what: str, hint: str = "") -> None:
    """Refuse labels that are neither below `number` nor -100."""
    if is_readable(labels):
        wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= number))].unique().tolist()
        if wrong:
            listed = ", ".join(map(str, wrong[:10])) + (", ..." if len(wrong) > 10 else "")
            raise ValueError(f"{name} contains {listed}, but this model has {number:,} {what}, counted from 0{hint}")


__all__ = ["check_ids", "check_labels", "check_range", "is_readable"]
