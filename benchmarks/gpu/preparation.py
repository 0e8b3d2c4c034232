"""What must be there before the suite: the C++ extension, built in place, and the tests that need a device.

Nothing is installed and nothing fetched: `setup.py` runs CMake with what the interpreter's environment has.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

LAST_LINES = 20
PROCESSES = 8
"""At most, that share the device: each holds half a gigabyte of it for itself."""


def run_step(command: list[str], root: Path, environment: dict[str, str], seconds: float) -> dict:
    """Run a command from `root`; {"outcome", "seconds"}, and "last_lines" of its output where it did not succeed."""
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, timeout=seconds, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output, code = done.stdout, done.returncode
        outcome = "finished" if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired as error:
        output, outcome = error.stdout or b"", f"stopped after {seconds:.0f} s"
    lines = output.decode(errors="replace").strip().splitlines()
    step = {"outcome": outcome, "seconds": round(time.perf_counter() - begin, 1)}
    return step if outcome == "finished" else step | {"last_lines": lines[-LAST_LINES:]}


def build_command() -> list[str]:
    """Builds `mstar_kernels._C` for this interpreter, beside its package."""
    return [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]


def gpu_tests(root: Path) -> list[str]:
    """The test files with cases marked `gpu`, by their own text or that of a module beside them which they import.

    The others are left out unread: they may import what a bare machine lacks.
    """
    texts = {path: path.read_text() for path in sorted((root / "tests").rglob("*.py"))}
    marked = {path for path, text in texts.items() if "pytest.mark.gpu" in text}
    names = {(path.parent, path.stem) for path in marked}
    found = []
    for path, text in texts.items():
        imports = re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)
        if path.name.startswith("test_") and (path in marked or any((path.parent, name) in names for name in imports)):
            found.append(str(path.relative_to(root)))
    return found


def tests_command(root: Path) -> list[str]:
    """Runs the cases marked `gpu`, several at a time where pytest-xdist is there: they compile most of the time."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(PROCESSES, len(os.sched_getaffinity(0))))]
    return [*command, *gpu_tests(root)]
