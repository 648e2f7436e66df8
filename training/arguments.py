"""The trainer's arguments: those of `transformers.TrainingArguments`, and ours."""

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class CellTrainingArguments(TrainingArguments):
    """Keys of the section ``trainer``.

    Parameters
    ----------
    grad_cache
        Number of cells that are computed at once, for objectives that compare the cells of a batch with each other
        (scCello's relational alignment, LangCell's cell-cell and cell-text losses): the batch is computed in parts of
        this size, with the gradients of the whole batch. By default the whole batch is computed at once.
    """

    grad_cache: int | None = field(default=None, metadata={"help": "Cells of a batch that are computed at once."})

    def __post_init__(self) -> None:
        """Refuse a number below 1."""
        super().__post_init__()
        if self.grad_cache is not None and self.grad_cache < 1:
            raise ValueError(f"trainer.grad_cache {self.grad_cache}: it is a number of cells, 1 or more")


__all__ = ["CellTrainingArguments"]
