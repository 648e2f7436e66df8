"""What a machine can do and takes: peak of its processor, memory, power; and which code runs on it."""

import functools
import json
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import cellglot


WATTS_PER_CORE = 10.0  # of a busy core of a server, with its share of memory and fans; our choice
RAPL = Path("/sys/class/powercap")  # energy counters of Intel and AMD processors on Linux

# Peak of dense products in 10^12 operations per second, from data sheets: bfloat16 and float16; float32 (TF32 on A100
# and later, as PyTorch uses it if it is allowed to).
PEAKS = {
    "H200": (989.0, 494.0),
    "H100 PCIe": (756.0, 378.0),
    "H100": (989.0, 494.0),
    "A100": (312.0, 156.0),
    "L40S": (362.0, 183.0),
    "L4": (121.0, 60.0),
    "A10G": (70.0, 35.0),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Return the highest rate of floating point operations of one device, and where the figure is from.

    Parameters
    ----------
    device
        Of known GPUs, the figure of the data sheet is used; of others and of CPUs, the rate of a product of two square
        matrices, the best of three, with the threads of this process.
    dtype
        In which the network computes.

    Returns
    -------
    rate
        Operations per second.
    source
        Name of the device, or how it was measured.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, (half, single) in PEAKS.items():
            if known in name:
                tf32 = torch.backends.cuda.matmul.allow_tf32 or known in ("V100", "T4")
                of_single = single if tf32 else single / 8
                return 1e12 * (of_single if dtype == torch.float32 else half), f"{name}, data sheet"
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        product = a @ a
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best, f"a product of matrices on {device.type}, measured"


def peak_memory(device: torch.device) -> int:
    """Return the most memory that was used so far, in bytes: of the CUDA device, else of this process.

    On Linux it is the kernel's high-water mark of this process alone. ``getrusage`` would count the memory of the
    process that started it, too, if that is larger.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        marks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
        if marks:
            return marks[0]
    if sys.platform == "win32":
        return 0
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


class EnergyMeter:
    """Energy that a device takes, in joules.

    Of a CUDA GPU, its power as NVML reports it, if ``nvidia-ml-py`` is installed. Of a CPU, the counters of the
    processor if they can be read, which include other programs. Else an estimate of 10 W for each busy core, our
    choice; GPUs whose power cannot be read are left out.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._powers: list[float] = []
        self._counters = () if device.type == "cuda" else _counters()
        self._began, self._busy, self._counted = time.perf_counter(), time.process_time(), self._count()
        self.source = "estimate, 10 W for each busy core"
        if self._counters:
            self.source = "counters of the processor"
        if device.type == "cuda" and self.read():
            self.source = "power of the GPU by NVML"

    def read(self) -> bool:
        """Read the power of a GPU; return whether that is possible."""
        if self.device.type != "cuda":
            return False
        try:
            self._powers.append(torch.cuda.power_draw(self.device) / 1000)
        except (ImportError, RuntimeError, AttributeError):
            return False
        return True

    def joules(self) -> float:
        """Return the energy since the last call."""
        self.read()
        now, busy, counted = time.perf_counter(), time.process_time(), self._count()
        seconds, cores = now - self._began, busy - self._busy
        took = sum(max(b - a, 0.0) for a, b in zip(self._counted, counted, strict=True))
        self._began, self._busy, self._counted = now, busy, counted
        if self._powers:
            mean, self._powers = sum(self._powers) / len(self._powers), []
            return mean * seconds
        return took if self._counters else WATTS_PER_CORE * cores

    def _count(self) -> list[float]:
        return [int(path.read_text()) / 1e6 for path in self._counters]


def _counters() -> tuple[Path, ...]:
    """Return the readable energy counters of whole processors, in microjoules."""
    found = []
    for path in sorted(RAPL.glob("intel-rapl:[0-9]*/energy_uj")):
        if path.parent.name.count(":") == 1:
            try:
                path.read_text()
            except OSError:
                return ()
            found.append(path)
    return tuple(found)


@functools.cache
def code_version() -> dict[str, Any]:
    """Return the version of cellglot, and its commit if it runs from a checkout or was installed from one."""
    found: dict[str, Any] = {"cellglot": cellglot.__version__}
    root = Path(cellglot.__file__).resolve().parents[2]
    if (root / ".git").exists() and (root / "pyproject.toml").is_file():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return found
        commit, _, dirty = answer.stdout.strip().partition("-")
        return found | {"commit": commit, "changed": bool(dirty)}
    try:
        text = metadata.distribution("cellglot").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return found
    installed_from = json.loads(text).get("vcs_info", {}).get("commit_id") if text else None
    return found | ({"commit": installed_from} if installed_from else {})


__all__ = ["EnergyMeter", "code_version", "peak_flops", "peak_memory"]
