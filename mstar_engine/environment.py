"""On what a figure was measured: the device and the versions that a reader needs to have it again."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from mstar_kernels.dispatch import extension


def device_name(threads: int | None = None) -> str:
    """The GPU where there is one, else the processor, its instruction set and `threads` (None: torch's number)."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    native = extension()
    isa = native.active_isa() if native is not None else "no extension"
    count = torch.get_num_threads() if threads is None else threads
    return f"{processor}, {isa}, {count} thread{'' if count == 1 else 's'}"


def versions() -> dict[str, str]:
    """Versions of Python, torch, torchvision (what images are resized by, where it is installed), transformers and this
    package, and the number of processors."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": importlib.metadata.version("torchvision") if _installed("torchvision") else "none",
        "transformers": importlib.metadata.version("transformers"),
        "mstar_engine": importlib.metadata.version("mstar_engine") if _installed("mstar_engine") else "source tree",
        "cpus": str(os.cpu_count()),
    }


def _installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False
