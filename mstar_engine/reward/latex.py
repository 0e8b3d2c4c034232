"""LaTeX answers compared by math-verify, each in a worker process under a hard time limit.

A comparison of symbols can run for ever or eat all memory, and a signal does not stop it everywhere. So a worker that
does not answer in time is killed and the next comparison starts another; the time-outs are counted. The workers import
math-verify only, and die with this process: their standard input closes, and their processor time is bounded.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import math
import os
import queue
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mstar_engine.reward import verdict

INSTALL = "pip install 'mstar_engine[latex]'"
SECONDS = 5.0
START_SECONDS = 60.0
_WORKER = Path(__file__).with_name("latex_worker.py")


def installed() -> bool:
    """Whether LaTeX can be compared here."""
    return importlib.util.find_spec("math_verify") is not None


def require() -> None:
    """ValueError saying what to install where LaTeX cannot be compared."""
    if not installed():
        raise ValueError(f"LaTeX answers need math-verify; install it: {INSTALL}")


@dataclass(slots=True)
class LatexCounts:
    """How the comparisons went: all of them, those stopped at the time limit, those whose worker died."""

    comparisons: int = 0
    timeouts: int = 0
    crashes: int = 0


class LatexWorkers:
    """`workers` processes, started when first needed. `seconds` is the limit of a comparison.

    Usable from several threads: each comparison borrows a worker. `close` ends them; a later comparison starts anew.
    """

    def __init__(self, workers: int = 1, seconds: float = SECONDS) -> None:
        if workers < 1 or not 0.0 < seconds < float("inf"):
            raise ValueError(f"LatexWorkers: workers={workers}, seconds={seconds}; allowed: 1 or more, above 0")
        self.seconds, self.counts = seconds, LatexCounts()
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all = [_Worker() for _ in range(workers)]
        for worker in self._all:
            self._idle.put(worker)

    def compare(self, answer: str, gold: str) -> str:
        """`MATCH`, `MISMATCH`, `UNREADABLE` (the answer says nothing to math-verify), `TIMEOUT` or `CRASH`."""
        worker = self._idle.get()
        try:
            self.counts.comparisons += 1
            # Below what a pipe holds, so that writing to a worker that does not read cannot block.
            said = worker.ask(json.dumps([answer, gold], ensure_ascii=False), self.seconds)
        except BaseException:  # What was interrupted may answer later, to another question.
            worker.stop()
            raise
        finally:
            self._idle.put(worker)
        self.counts.timeouts += said == verdict.TIMEOUT
        self.counts.crashes += said == verdict.CRASH
        return said

    def close(self) -> None:
        """Kill the workers. A second call does nothing."""
        for worker in self._all:
            worker.stop()


class _Worker:
    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def ask(self, line: str, seconds: float) -> str:
        if (self._process is None or self._process.poll() is not None) and not self._start():
            return verdict.CRASH
        try:
            # A lone surrogate has no bytes.
            self._process.stdin.write(line.encode(errors="replace") + b"\n")
            self._process.stdin.flush()
        except OSError:
            self.stop()
            return verdict.CRASH
        said = self._line(seconds)
        if said in (verdict.MATCH, verdict.MISMATCH, verdict.UNREADABLE):
            return said
        self.stop()
        return said if said == verdict.TIMEOUT else verdict.CRASH

    def _start(self) -> bool:
        self.stop()
        require()
        # By file, so that the worker imports nothing of this package, which would bring torch.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=environment, start_new_session=True, bufsize=0,
        )  # fmt: skip
        if self._line(START_SECONDS) == "ready":
            return True
        self.stop()
        return False

    def _line(self, seconds: float) -> str:
        """One line of the worker's; `TIMEOUT` or `CRASH` where none comes."""
        end, said, pipe = time.monotonic() + seconds, b"", self._process.stdout.fileno()
        poll = select.poll()  # `select.select` takes no descriptor above 1023
        poll.register(pipe, select.POLLIN)
        while not said.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0.0 or not poll.poll(math.ceil(left * 1000)):
                return verdict.TIMEOUT
            more = os.read(pipe, 4096)
            if not more:
                return verdict.CRASH
            said += more
        return said.decode().strip()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None


_workers: LatexWorkers | None = None


def workers() -> LatexWorkers:
    """The workers of this process that `compare` uses."""
    global _workers
    if _workers is None:
        _workers = LatexWorkers()
        atexit.register(_workers.close)
    return _workers


def compare(answer: str, gold: str) -> str:
    """See `LatexWorkers.compare`."""
    return workers().compare(answer, gold)
