"""A response cut into its scored steps, for showing.

Either every step has its score or the response is shown whole: a colour never stands on the wrong text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mstar_engine.reward.steps import step_spans

BANDS = 5


@dataclass(frozen=True, slots=True)
class ShownStep:
    """A step's text and score. `weakest` is true for one step of a response: the first with the lowest score."""

    text: str
    score: float
    weakest: bool

    @property
    def band(self) -> int:
        """Which of the `BANDS` equal parts of [0, 1] the score lies in, the lowest being 0."""
        return min(BANDS - 1, int(self.score * BANDS))


def shown_steps(text: str, scores: Sequence[float] | None, delimiter: str, max_steps: int) -> tuple[ShownStep, ...]:
    """The steps of `text` with their `scores`; () unless there is one score in [0, 1] a step."""
    if not scores or not all(score is not None and 0.0 <= score <= 1.0 for score in scores):
        return ()
    spans = step_spans(text, delimiter, max_steps)
    if len(spans) != len(scores):
        return ()
    weakest = scores.index(min(scores))
    # White space around a step is the delimiter's; the layout parts the steps instead.
    return tuple(
        ShownStep(text[begin:end].strip(), score, index == weakest)
        for index, ((begin, end), score) in enumerate(zip(spans, scores, strict=True))
    )
