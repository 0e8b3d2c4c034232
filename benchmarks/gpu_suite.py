"""One command for a machine with a GPU: build, run the tests marked `gpu`, measure everything against floors and peers.

Each subject runs in a process of its own with a time limit; its rows are in the result file the moment they are
measured, so a crash, a hang or the end of the machine costs what was not measured yet and nothing else. Subjects come
in the order of what they are worth. The command itself holds no device memory, and needs the standard library alone.

    python -m benchmarks.gpu_suite [--only SUBJECT ...] [--skip-tests] [--budget SECONDS] [--out DIR] [--tiny]

The result is DIR/<date>_<device>.json: subjects measured again on the same day and device replace their own rows only.
Exit status: 0; 1 where something did not finish; 2 where there is nothing to run on. A missed goal is no failure.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.suite import ROOT, Subject, Suite

BUDGET = 480.0
SUBJECTS = (
    Subject("sampling", "benchmarks.gpu.sampling", 80),
    Subject("tree_attention", "benchmarks.gpu.tree_attention", 80),
    Subject("step_rewards", "benchmarks.gpu.step_rewards", 45),
    Subject("layers", "benchmarks.gpu.layers", 30),
    Subject("decode_7b", "benchmarks.gpu.decode", 170),
    Subject("decode_3b", "benchmarks.gpu.decode", 130),
    Subject("prm_scoring", "benchmarks.gpu.prm_scoring", 80),
    Subject("improve", "benchmarks.gpu.improve", 60),
    Subject("vllm", "benchmarks.gpu.engines", 300),
    Subject("sglang", "benchmarks.gpu.engines", 300),
)


def environment(device: str | None) -> dict[str, str]:
    """For every process: this source tree, the interpreter's programs, no network, and no GPU where the CPU is asked
    for."""
    found = dict(os.environ)
    paths = [str(ROOT), str(ROOT / "kernels"), found.get("PYTHONPATH", "")]
    found["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    found["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), found.get("PATH", os.defpath)])
    found |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    if device == "cpu":
        found["CUDA_VISIBLE_DEVICES"] = ""
    return found


def describe_machine(device: str | None, tiny: bool, variables: dict[str, str]) -> dict[str, Any]:
    """What `benchmarks.gpu.machine` says; `missing` in it says why there is nothing to run on."""
    command = [sys.executable, "-m", "benchmarks.gpu.machine"]
    command += ["--device", device] if device else []
    command += ["--tiny"] if tiny else []
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"missing": f"cannot look at the device: {said[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    names = [subject.name for subject in SUBJECTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite")
    parser.add_argument("--only", nargs="+", choices=names, metavar="SUBJECT", help=f"of {', '.join(names)}")
    parser.add_argument("--skip-tests", action="store_true", help="measure only")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="of the whole command")
    parser.add_argument("--out", type=Path, metavar="DIR", help="benchmarks/results, or build/gpu_suite with --tiny")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs, not how fast")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cuda; the CPU runs tiny sizes only")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.budget
    variables = environment(options.device)
    machine = describe_machine(options.device, options.tiny, variables)
    if "missing" in machine:
        print(f"gpu_suite: {machine['missing']}", file=sys.stderr)
        return 2
    print(f"{machine['name']}; copies move {machine['bandwidth'] / 1e9:.1f} GB/s, read and written")
    print(", ".join(f"{key} {value}" for key, value in machine["versions"].items()), flush=True)
    folder = options.out or ROOT / ("build/gpu_suite" if options.tiny else "benchmarks/results")
    device = machine["name"] if machine["device"] == "cuda" else "cpu"
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    path = folder / f"{datetime.date.today().isoformat()}_{slug}.json"
    suite = Suite(path, machine, variables, options.tiny, deadline)
    chosen = [subject for subject in SUBJECTS if options.only is None or subject.name in options.only]
    return suite.run(chosen, tests=not options.skip_tests and machine["device"] == "cuda")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the subject under way is ended too
    sys.exit(main())
