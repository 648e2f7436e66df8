"""Copy the code that serves a model over HTTP into its folder."""

import shutil
from pathlib import Path


HANDLER_FILES = (
    "handler.py", "endpoint_service.py", "endpoint_request.py", "endpoint_limits.py", "endpoint_h5ad.py"
)  # fmt: skip
REQUIREMENTS_FILE = "requirements.txt"
REQUIREMENTS = ("h5py>=3.12", "numpy>=2.0", "safetensors>=0.5", "torch>=2.7", "transformers>=5.20,<6")
OF_ADAPTERS = ("peft>=0.17",)


def stage_endpoint(folder: str | Path) -> list[str]:
    """Write ``handler.py``, the files that it loads and ``requirements.txt`` into the folder of a model or an adapter.

    Returns
    -------
    list of str
        Names of the files.
    """
    folder = Path(folder)
    for name in HANDLER_FILES:
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
    adapter = (folder / "adapter_config.json").exists()
    needed = sorted([*REQUIREMENTS, *(OF_ADAPTERS if adapter else ())])
    (folder / REQUIREMENTS_FILE).write_text("".join(f"{line}\n" for line in needed), encoding="utf-8")
    return [*HANDLER_FILES, REQUIREMENTS_FILE]


__all__ = ["HANDLER_FILES", "REQUIREMENTS_FILE", "stage_endpoint"]
