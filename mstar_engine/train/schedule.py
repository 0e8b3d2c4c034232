"""Learning rates as a pure function of the global step: nothing to save, nothing to restore, nothing to drift."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("constant", "cosine", "linear", "wsd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A learning-rate schedule.

    `peak` is reached after `warmup` linear steps. Then "constant" stays there; "cosine" and "linear" fall to
    `floor * peak` at step `horizon`; "wsd" (warm-up, stable, decay) stays, and falls linearly over the last `decay`
    share of the horizon. All but "constant" need a horizon; past it the rate stays at the floor.
    """

    peak: float
    kind: str = "constant"
    warmup: int = 0
    horizon: int | None = None
    floor: float = 0.0
    decay: float = 0.2

    def __post_init__(self) -> None:
        """Refuse schedules that are not defined at every step."""
        if self.kind not in KINDS:
            raise ValueError(f"Schedule: no kind {self.kind!r}; allowed: {', '.join(KINDS)}")
        if self.kind != "constant" and self.horizon is None:
            raise ValueError(f"Schedule: kind {self.kind!r} needs a horizon (total number of optimizer steps)")
        for key, allowed, ok in (
            ("peak", "above 0, finite", 0.0 < self.peak < math.inf),
            ("warmup", "0 or more", self.warmup >= 0),
            ("horizon", "more than warmup", self.horizon is None or self.horizon > self.warmup),
            ("floor", "0 to 1", 0.0 <= self.floor <= 1.0),
            ("decay", "above 0 and at most 1", 0.0 < self.decay <= 1.0),
        ):
            if not ok:
                raise ValueError(f"Schedule: {key}={getattr(self, key)}; allowed: {allowed}")

    def __call__(self, step: int) -> float:
        """The learning rate of optimizer step `step` (0 is the first)."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if self.kind == "constant":
            return self.peak
        start = self.warmup
        if self.kind == "wsd":
            start = max(start, round(self.horizon * (1 - self.decay)))
        share = min(max(step - start, 0) / max(self.horizon - start, 1), 1.0)
        falling = 0.5 * (1 + math.cos(math.pi * share)) if self.kind == "cosine" else 1 - share
        return self.peak * (self.floor + (1 - self.floor) * falling)


def schedule_of(
    learning_rate: float,
    kind: str,
    warmup_steps: int,
    max_steps: int,
    *,
    decay: float = 0.2,
    floor: float = 0.0,
) -> Schedule:
    """A schedule from Hugging Face's words for it; `max_steps` is the horizon where one is needed."""
    falls = kind in ("linear", "cosine", "wsd")
    return Schedule(
        peak=learning_rate,
        kind="constant" if kind == "constant_with_warmup" else kind,
        warmup=min(warmup_steps, max(0, max_steps - 1)) if falls else warmup_steps,
        horizon=max(1, max_steps) if falls else None,
        floor=floor,
        decay=decay,
    )
