"""The process of one subject: its rows go to a file one by one, so that what is measured outlives what comes after.

python -m benchmarks.gpu.subject MODULE PART --out FILE --device cuda --bandwidth BYTES_PER_SECOND [--tiny]
"""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.suite_row import SuiteRow
from benchmarks.gpu.timing import Timer

TURNS, TINY_TURNS = 25, 2


def main() -> None:
    """Append a JSON line for each row or skipped peer of the subject."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.subject")
    parser.add_argument("module")
    parser.add_argument("part")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--bandwidth", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    timer = Timer(device, TINY_TURNS if options.tiny else TURNS)
    bench = Bench(options.part, device, options.tiny, options.bandwidth, timer)
    with options.out.open("a") as out:
        for found in importlib.import_module(options.module).rows(bench):
            kind = "row" if isinstance(found, SuiteRow) else "skipped"
            print(json.dumps({kind: asdict(found)}), file=out, flush=True)


if __name__ == "__main__":
    main()
