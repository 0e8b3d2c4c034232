"""A tracker at arm's length: whatever it raises and however long it takes, the run goes on.

It works in a thread of its own, and the run waits for each call only so long. The thread is a daemon: one that hangs
does not keep the process alive.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from threading import Thread
from typing import Any

from mstar_engine.report.trackers.tracker import Tracker

SHOWN = 240  # characters of a reason


class Guarded:
    """Makes a tracker in its thread with `make` and calls it there, one call after the other."""

    def __init__(self, make: Callable[[], Tracker]) -> None:
        self._make = make
        self._calls: SimpleQueue[tuple[Future[None], str, tuple[Any, ...]] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, daemon=True)

    def call(self, method: str, seconds: float, *arguments: Any) -> str | None:
        """Call a method of the tracker; why that failed in one line, or None. Returns within `seconds`.

        An interrupt (Ctrl-C) ends the waiting and passes through; one that the tracker raises is a failure like others.
        """
        future: Future[None] = Future()
        self._calls.put((future, method, arguments))
        if not self._thread.is_alive():
            self._thread.start()
        wait([future], seconds)
        if not future.done():
            return f"{method} has not returned within {seconds:g} seconds"
        error = future.exception()
        return None if error is None else reason(error, getattr(self._make, "package", ""))

    def close(self) -> None:
        """Let the thread end behind its last call; `call` must not follow."""
        self._calls.put(None)

    def _work(self) -> None:
        tracker: Tracker | None = None
        while (item := self._calls.get()) is not None:
            future, method, arguments = item
            try:
                tracker = tracker or self._make()
                getattr(tracker, method)(*arguments)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)


def reason(error: BaseException, package: str) -> str:
    """An exception in one short printable line; when `package` is what is missing, how to install it."""
    if package and isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == package:
        return f"{package} is not installed: pip install {package}"
    try:
        message = str(error)
    except Exception:  # even this is the tracker's
        message = ""
    line = " ".join((f"{type(error).__name__}: {message}" if message else type(error).__name__).split())
    return "".join(character if character.isprintable() else "?" for character in line)[:SHOWN]
