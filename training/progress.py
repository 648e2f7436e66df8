"""A progress bar for training: steps, cells per second, loss, and a few lines with metrics."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from cellglot.progress import progress_bars


LINES = 10


class TrainingProgress(TrainerCallback):
    """Shows a bar on a terminal, and prints a line for evaluations.

    The first and the last evaluation of a run have a line; between them the first one in each tenth of the steps.
    """

    def __init__(self, description: str = "training"):
        self.description = description
        self.console = Console()
        self.bar: Progress | None = None
        self._tenth: int | None = None  # of the steps, in which the last line was printed
        self._unprinted: str | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar."""
        if not state.is_world_process_zero:
            return
        cells = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.bar = progress_bars("steps", console=self.console)
        self.bar.start()
        self._tenth = self._unprinted = None
        self.task = self.bar.add_task(
            self.description, total=state.max_steps, completed=state.global_step, cells=cells
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Show the loss."""
        if self.bar is not None and logs and "loss" in logs:
            self.bar.update(self.task, note=f"loss {logs['loss']:.4f}")

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Print the metrics of held-out cells, or keep them for the end of the run."""
        if state.is_world_process_zero and metrics:
            shown = {
                name.removeprefix("eval_"): value
                for name, value in metrics.items()
                if name.startswith("eval_") and not name.endswith(("runtime", "per_second", "loss"))
            }
            numbers = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in shown.items())
            self._unprinted = f"step {state.global_step:,} (epoch {state.epoch or 0:.1f}): {numbers}"
            if self.bar is None:
                self._print()
                return
            tenth = LINES * state.global_step // state.max_steps
            if self._tenth is None or tenth > self._tenth:
                self._tenth = tenth
                self._print()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print the metrics of the last evaluation, and end the bar."""
        if self.bar is not None:
            self._print()
            self.bar.stop()
            self.bar = None

    def _print(self) -> None:
        if self._unprinted is not None:
            self.console.print(self._unprinted, highlight=False)
            self._unprinted = None


@contextmanager
def no_other_bars() -> Iterator[None]:
    """Turn off the progress bars of transformers for reading and writing weights."""
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


__all__ = ["TrainingProgress", "no_other_bars"]
