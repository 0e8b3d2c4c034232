"""What the suite runs on, asked in a process of its own so that the suite itself holds no device memory.

python -m benchmarks.gpu.machine [--device cuda|cpu] [--tiny]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json

import torch

from benchmarks.gpu.bench import PACKAGES
from benchmarks.gpu.timing import copy_bandwidth
from mstar_engine.environment import device_name, versions
from mstar_kernels.dispatch import extension

COPY_BYTES, TINY_COPY_BYTES = 2 << 30, 8 << 20


def describe(device: str | None, tiny: bool) -> dict:
    """Name, versions, copy bandwidth (bytes per second), and whether the C++ extension is there.

    `device` None takes CUDA where there is a device, and the CPU where only tiny sizes are asked for. Where there is
    nothing to run on, `missing` says what is needed.
    """
    has_cuda = torch.cuda.is_available()
    chosen = device or ("cuda" if has_cuda or not tiny else "cpu")
    if chosen == "cpu" and not tiny:
        return {"missing": "real sizes need a CUDA device; --tiny runs on the CPU"}
    if chosen == "cuda" and not has_cuda:
        return {"missing": f"needs a CUDA device, torch {torch.__version__} sees none; --tiny runs on the CPU"}
    bandwidth = copy_bandwidth(torch.device(chosen), TINY_COPY_BYTES if tiny else COPY_BYTES)
    return {
        "device": chosen,
        "name": device_name(),
        "bandwidth": bandwidth,
        "versions": versions() | _more_versions(),
        "extension": extension() is not None,
    }


def _more_versions() -> dict[str, str]:
    """Of what the figures of a GPU depend on besides, where it is there."""
    found = {"cuda": str(torch.version.cuda)} if torch.version.cuda else {}
    for name in ("triton", *PACKAGES):
        for distribution in (name, name.replace("_", "-"), f"{name}-python"):
            try:
                found[name] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def main() -> None:
    """Print the description as one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.machine")
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    print(json.dumps(describe(options.device, options.tiny)))


if __name__ == "__main__":
    main()
