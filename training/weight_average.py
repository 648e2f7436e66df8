"""The mean of the weights over the last steps of training, instead of the last weights."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback

from cellglot.training.runs.checkpoints import checkpoint_name


FILE = "weight_average.safetensors"


class WeightAverage(TrainerCallback):
    """Averages the trained weights after each of the last steps, and sets the model to the average at the end.

    Averaged weights are in a flatter region of the loss than the last ones, and predict better for cells of other
    laboratories: stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407), after every step as in SWAD
    (Cha et al. 2021, arXiv 2102.08604). The fixed share of the steps is our choice.

    Parameters
    ----------
    share
        Share of all steps, above 0 and at most 1.
    """

    def __init__(self, share: float):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"finetuning.average_weights {share!r}: it is a share of the steps, up to 1")
        self.share = share
        self.steps = 0
        self.mean: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the average of a resumed training."""
        self.steps = self._averaged(state)
        path = Path(args.output_dir, checkpoint_name(state.global_step), FILE)
        if path.exists():
            with safe_open(path, "pt") as file:
                written = int(file.metadata()["steps"])
                self.mean = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            written = 0
        if written != self.steps:
            raise ValueError(
                f"{path.parent} has an average of {written:,} steps instead of {self.steps:,}: it is of a training "
                "with other finetuning.average_weights or steps. Choose another folder, or start again with "
                "--overwrite"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Add the weights of this step."""
        self.steps = self._averaged(state)
        for name, weights in _learning(model) if self.steps else ():
            mean = self.mean.setdefault(name, torch.zeros_like(weights, dtype=torch.float32))
            mean.copy_(mean.to(weights.device).lerp_(weights.float(), 1 / self.steps))

    def write_checkpoint(self, folder: Path) -> None:
        """Write the average to a checkpoint."""
        if self.steps:
            save_file(self.mean, folder / FILE, metadata={"steps": str(self.steps)})

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Set the weights of the model to the average."""
        for name, weights in _learning(model) if self.steps else ():
            weights.copy_(self.mean[name])

    def _averaged(self, state: Any) -> int:
        """Return the number of steps so far whose weights are averaged."""
        return max(state.global_step - int((1 - self.share) * state.max_steps), 0)


def _learning(model: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, weights.detach()) for name, weights in model.named_parameters() if weights.requires_grad]


__all__ = ["WeightAverage"]
