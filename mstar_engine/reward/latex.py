"""LaTeX answers compared by math-verify, each in a worker process under a hard time limit.

A comparison of symbols can run for ever or eat all memory, and a signal does not stop it everywhere. So a worker that
does not answer in time is killed and the next comparison starts another; the time-outs are counted. The workers import
math-verify only, and die with this process: their standard input closes, and their processor time is bounded. They are
of the process that started them: one that was forked from it starts its own.
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
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from mstar_engine.reward import verdict

INSTALL = "pip install 'mstar_engine[latex]'"
MISSING = f"LaTeX answers need math-verify; install it: {INSTALL}"
SECONDS = 5.0
START_SECONDS = 60.0
MOST_WORKERS = 8
"""When as many are wanted as there are cores: each takes some 100 MB."""
_WORKER = Path(__file__).with_name("latex_worker.py")
_AT_ONCE = 1024  # questions that wait; each takes memory
_One, _Other = TypeVar("_One"), TypeVar("_Other")


def installed() -> bool:
    """Whether LaTeX can be compared here."""
    return importlib.util.find_spec("math_verify") is not None


def require() -> None:
    """ValueError saying what to install where LaTeX cannot be compared."""
    if not installed():
        raise ValueError(MISSING)


@dataclass(slots=True)
class LatexCounts:
    """How the comparisons went: all of them, those stopped at the time limit, those whose worker died or never was."""

    comparisons: int = 0
    timeouts: int = 0
    crashes: int = 0

    def __sub__(self, earlier: LatexCounts) -> LatexCounts:
        """What came after `earlier`."""
        return LatexCounts(*(getattr(self, name) - getattr(earlier, name) for name in self.__slots__))


class LatexWorkers:
    """`workers` processes, started when first needed. `seconds` is the limit of a comparison.

    Usable from several threads: each comparison borrows a worker. `close` ends them; a later comparison starts anew.
    """

    def __init__(self, workers: int = 1, seconds: float = SECONDS) -> None:
        if workers < 1 or not 0.0 < seconds < float("inf"):
            raise ValueError(f"LatexWorkers: workers={workers}, seconds={seconds}; allowed: 1 or more, above 0")
        self.seconds, self.counts, self._counting = seconds, LatexCounts(), threading.Lock()
        self._closings = 0
        # The one that worked last is the first to work again: who asks one question at a time starts one process.
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._all = [_Worker() for _ in range(workers)]
        for worker in self._all:
            self._idle.put(worker)

    def compare(self, answer: str, gold: str) -> str:
        """`MATCH`, `MISMATCH`, `UNREADABLE` (the answer says nothing to math-verify), `TIMEOUT` or `CRASH`."""
        closings = self._closings
        said = self._ask([answer, gold])
        with self._counting:
            if closings != self._closings:  # The worker did not fail: it was not wanted any more.
                return said
            self.counts.comparisons += 1
            self.counts.timeouts += said == verdict.TIMEOUT
            self.counts.crashes += said == verdict.CRASH
        return said

    def read(self, gold: str) -> str:
        """`MATCH` for a formula that math-verify can read, else `UNREADABLE`, `TIMEOUT` or `CRASH`; not counted."""
        return self._ask([gold])

    def _ask(self, question: list[str]) -> str:
        worker = self._idle.get()
        try:
            # Below what a pipe holds, so that writing to a worker that does not read cannot block.
            return worker.ask(json.dumps(question, ensure_ascii=False), self.seconds)
        except BaseException:  # What was interrupted may answer later, to another question.
            worker.stop()
            raise
        finally:
            self._idle.put(worker)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._all)

    def close(self) -> None:
        """Kill the workers. A second call does nothing; a comparison that a thread waits for fails."""
        with self._counting:
            self._closings += 1
        for worker in self._all:
            worker.kill()


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
        return said.decode(errors="replace").strip()

    def kill(self) -> None:
        """End the process; who waits for its answer sees that it is gone, and only who asks it closes its pipes."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def stop(self) -> None:
        self.kill()
        if self._process is not None:
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None


_settings: tuple[int, float] = (1, SECONDS)
_workers: LatexWorkers | None = None


def use(count: int, seconds: float) -> None:
    """Let `compare` have `count` workers (0: one a core, MOST_WORKERS at most), `seconds` for each comparison."""
    global _settings
    _settings = (count or min(MOST_WORKERS, len(os.sched_getaffinity(0))), seconds)
    if _workers is not None:
        _close()


def workers() -> LatexWorkers:
    """The workers of this process that `compare` uses."""
    global _workers
    if _workers is None:
        _workers = LatexWorkers(*_settings)
    return _workers


def counts() -> LatexCounts:
    """What `compare` has counted in this process since `use`."""
    return LatexCounts() if _workers is None else replace(_workers.counts)


def side_by_side(judge: Callable[[_One], _Other], items: Iterable[_One]) -> Iterator[_Other]:
    """As `map`, with as many calls at a time as there are workers."""
    count = len(workers())
    if count == 1:
        yield from map(judge, items)
        return
    with ThreadPoolExecutor(count, "latex") as pool:
        try:
            waiting = iter(items)
            while some := list(islice(waiting, _AT_ONCE)):
                yield from pool.map(judge, some)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, Exception):  # Who was interrupted need not wait for what runs.
                workers().close()
            raise


def _close() -> None:
    global _workers
    if _workers is not None:
        _workers.close()
    _workers = None


def _forget() -> None:
    """After a fork: the workers are the parent's, and some may be asked by threads that are not here."""
    global _workers
    _workers = None


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)


def compare(answer: str, gold: str) -> str:
    """See `LatexWorkers.compare`."""
    return workers().compare(answer, gold)
