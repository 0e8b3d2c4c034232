"""What a running stage shows: a bar with a live line in a terminal, plain lines now and then anywhere else.

    progress = Progress()
    with progress.phase("evolve 3/8: sampling", total=512, unit="problems") as phase:
        phase.advance(tokens=640, sampled=16, accepted=5)
    progress.greedy = estimate

A phase that is over leaves one line, the same in both forms. Writes to standard error; results belong to standard
output.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from mstar_engine.types import Estimate


class Phase:
    """One long task. Counts what it is told; `line` puts the counts into words."""

    def __init__(self, title: str, total: int | None, unit: str, show: Callable[[Phase], None]) -> None:
        """Use `Progress.phase`."""
        self.title, self.total, self.unit, self._show = title, total, unit, show
        self.done = self.tokens = self.sampled = self.accepted = 0
        self.note = ""
        self._begin = time.monotonic()

    def advance(self, steps: int = 1, *, tokens: int = 0, sampled: int = 0, accepted: int = 0, note: str = "") -> None:
        """`steps` more units are done, in which so many tokens and responses were sampled and so many accepted."""
        self.done += steps
        self.tokens += tokens
        self.sampled += sampled
        self.accepted += accepted
        self.note = note or self.note
        self._show(self)

    @property
    def seconds(self) -> float:
        """Since the phase began."""
        return time.monotonic() - self._begin

    def counts(self) -> str:
        """Tokens a second, accepted of sampled, and the note, as far as there are any."""
        parts = []
        if self.tokens:
            parts.append(f"{self.tokens / max(self.seconds, 1e-6):,.0f} tokens/s")
        if self.sampled:
            parts.append(f"accepted {self.accepted:,}/{self.sampled:,} ({100 * self.accepted / self.sampled:.0f}%)")
        if self.note:
            parts.append(self.note)
        return "  ".join(parts)

    def line(self, greedy: str = "") -> str:
        """The phase in one line."""
        amount = f"{self.done:,}" + (f"/{self.total:,}" if self.total is not None else "")
        parts = [f"{self.title}  {amount} {self.unit}".rstrip(), f"{self.seconds:.1f} s", self.counts(), greedy]
        return "  ".join(part for part in parts if part)


class Progress:
    """Shows phases, one at a time. `greedy`, once set, is shown with every later phase."""

    def __init__(self, console: Console | None = None, every: float = 10.0) -> None:
        """`every`: seconds between the plain lines of a phase when the output is no terminal."""
        self.console = console or Console(stderr=True)
        self.every = every
        self.greedy: Estimate | None = None

    @contextlib.contextmanager
    def phase(self, title: str, total: int | None = None, unit: str = "") -> Iterator[Phase]:
        """A phase of `total` units (None: not known). Its last line is shown however it ends."""
        with self._bar(title, total) if self.console.is_terminal else self._lines() as show:
            phase = Phase(title, total, unit, show)
            try:
                yield phase
            finally:
                self.say(phase.line(self._greedy()))

    def say(self, text: str) -> None:
        """One line above the bar, or by itself."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _greedy(self) -> str:
        return "" if self.greedy is None else f"greedy {100 * self.greedy.value:.1f}%"

    @contextlib.contextmanager
    def _bar(self, title: str, total: int | None) -> Iterator[Callable[[Phase], None]]:
        bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[live]}", style="dim", markup=False),
            console=self.console,
            transient=True,
        )
        with bar:
            task = bar.add_task(title, total=total, live=self._greedy())

            def show(phase: Phase) -> None:
                live = "  ".join(part for part in (phase.counts(), self._greedy()) if part)
                bar.update(task, completed=phase.done, live=live)

            yield show

    @contextlib.contextmanager
    def _lines(self) -> Iterator[Callable[[Phase], None]]:
        shown = time.monotonic()

        def show(phase: Phase) -> None:
            nonlocal shown
            if time.monotonic() - shown >= self.every:
                shown = time.monotonic()
                self.say(phase.line(self._greedy()))

        yield show
