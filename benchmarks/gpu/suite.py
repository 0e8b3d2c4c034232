"""Runs subjects one after the other, each in a process of its own, and keeps what they measured.

The invariant: a row is in the result file before the next is waited for, and how a subject ended is there in any case.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.preparation import LAST_LINES, build_command, run_step, tests_command
from benchmarks.gpu.table import cells, lines

ROOT = Path(__file__).resolve().parents[2]
BUILD_SECONDS, TEST_SECONDS = 180.0, 120.0
LEAST_SECONDS = 10.0
"""A subject is not started with less than this left of the budget."""
POLL_SECONDS = 0.1
FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Subject:
    """`name` in the results, the `module` with its `rows(bench)`, and the most seconds it may take."""

    name: str
    module: str
    seconds: float


@dataclass
class Suite:
    """One run. `machine` is what `benchmarks.gpu.machine` says, `environment` that of every process it starts,
    `deadline` on the monotonic clock. `path` is the result file: subjects that are not run again keep their rows."""

    path: Path
    machine: dict[str, Any]
    environment: dict[str, str]
    tiny: bool
    deadline: float
    result: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Take up the result file of an earlier run, or begin one."""
        known = json.loads(self.path.read_text()) if self.path.exists() else {}
        about = {key: self.machine[key] for key in ("name", "versions", "bandwidth")}
        about |= {"tiny": self.tiny, "date": datetime.date.today().isoformat()}
        self.result = about | {"steps": known.get("steps", {}), "subjects": known.get("subjects", {})}
        self.save()

    def save(self) -> None:
        """Write the result file, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".json.part")
        beside.write_text(json.dumps(self.result, indent=2) + "\n")
        beside.replace(self.path)

    def run(self, subjects: Sequence[Subject], *, tests: bool) -> int:
        """Build if need be, test if asked to, measure, print the table; 0 when all of it finished, else 1."""
        ended = []
        if not self.machine["extension"]:
            ended.append(self.step("build", build_command(), BUILD_SECONDS))
        if tests:
            ended.append(self.step("tests", tests_command(ROOT), TEST_SECONDS))
        ended += [self.measure(subject) for subject in subjects]
        print("\n".join(["", *lines(self.result), f"written to {self.path}"]), flush=True)
        return 0 if all(outcome == FINISHED for outcome in ended) else 1

    def step(self, name: str, command: list[str], seconds: float) -> str:
        """Something that comes before the subjects; how it ended."""
        print(f"{name}: {' '.join(command[1:])}", flush=True)
        limit = max(1.0, min(seconds, self.deadline - time.monotonic()))
        self.result["steps"][name] = run_step(command, ROOT, self.environment, limit)
        return self._report(name, self.result["steps"][name])

    def measure(self, subject: Subject) -> str:
        """Run a subject to its end, its time limit or its death; how it ended. Its rows are kept in each case."""
        left = self.deadline - time.monotonic()
        entry: dict[str, Any] = {"outcome": "running", "seconds": 0.0, "rows": [], "skipped": []}
        if left < LEAST_SECONDS:
            entry["outcome"] = "not started: the budget is spent"
            self.result["subjects"].setdefault(subject.name, entry)
            return self._report(subject.name, entry)
        self.result["subjects"][subject.name] = entry
        print(f"{subject.name}:", flush=True)
        begin, limit = time.monotonic(), min(subject.seconds, left)
        with tempfile.TemporaryDirectory() as folder:
            rows, log = Path(folder) / "rows", Path(folder) / "log"
            rows.touch()
            with log.open("wb") as output:
                process = subprocess.Popen(
                    self._command(subject, rows),
                    cwd=ROOT,
                    env=self.environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                )
                try:
                    entry["outcome"] = self._watch(process, rows, entry, begin + limit)
                finally:
                    _end(process)
            if entry["outcome"] != FINISHED:
                entry["last_lines"] = log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
        entry["seconds"] = round(time.monotonic() - begin, 1)
        return self._report(subject.name, entry)

    def _command(self, subject: Subject, rows: Path) -> list[str]:
        command = [sys.executable, "-m", "benchmarks.gpu.subject", subject.module, subject.name]
        command += ["--out", str(rows), "--device", self.machine["device"]]
        command += ["--bandwidth", repr(self.machine["bandwidth"])]
        return [*command, "--tiny"] if self.tiny else command

    def _watch(self, process: subprocess.Popen[bytes], rows: Path, entry: dict[str, Any], until: float) -> str:
        """Take over what the process writes until it ends or its time does; how it ended."""
        with rows.open() as written:
            partial = ""
            while True:
                code = process.poll()
                for line in iter(written.readline, ""):
                    partial += line
                    if partial.endswith("\n"):
                        self._take(json.loads(partial), entry)
                        partial = ""
                if code is not None:
                    return FINISHED if code == 0 else _death(code)
                if time.monotonic() > until:
                    return "stopped: its time was up"
                time.sleep(POLL_SECONDS)

    def _take(self, found: dict[str, Any], entry: dict[str, Any]) -> None:
        if "row" in found:
            entry["rows"].append(found["row"])
            print("  " + " | ".join(text for text in cells(found["row"]) if text), flush=True)
        else:
            entry["skipped"].append(found["skipped"])
            print("  skipped: {peer} beside {subject}: {reason}".format(**found["skipped"]), flush=True)
        self.save()

    def _report(self, name: str, entry: dict[str, Any]) -> str:
        self.save()
        print(f"{name}: {entry['outcome']} ({entry['seconds']:.0f} s)", flush=True)
        for line in entry.get("last_lines", ()):
            print(f"    {line}", flush=True)
        return entry["outcome"]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the subject's process and those it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _death(code: int) -> str:
    return f"died: exit code {code}" if code > 0 else f"died: {signal.Signals(-code).name}"
