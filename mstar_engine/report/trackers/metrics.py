"""What is logged, and under which names: an iteration's entry, an optimizer step, accuracies before and after.

Names are "family/metric". Every number is logged as it is; an accuracy as `name`, with its 95% interval as `name_low`
and `name_high`. What is no finite number is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from mstar_engine.types import Estimate

if TYPE_CHECKING:
    from mstar_engine.train.trainer import StepStats

VALIDATION = ("greedy", "pass_at_1", "pass_at_k", "k", "reward_pass_at_2", "verifier")
ROLLOUT = (
    "problems",
    "sampled",
    "correct",
    "kept",
    "temperature",
    "entropy",
    "length",
    "tokens_per_second",
    "sample_seconds",
)
FAMILIES = ("dynamics", "sweep", "pseudo")  # families of their own
OTHER = "iteration"  # of an iteration as a whole
ITERATION_FAMILIES = ("validation", "rollout", *FAMILIES, OTHER, "test", "ood")
WARMUP = {
    "greedy": "test/greedy",
    "ood_greedy": "ood/greedy",
    "validation_greedy": "validation/greedy",
    "sift": "rollout/warmup",
}


def entry_metrics(entry: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an iteration's entry (summary.IterationSummary and whatever else the loop put into it)."""
    found: dict[str, float] = {}
    for key, value in entry.items():
        if key == "iteration":
            continue
        if key in FAMILIES:
            name = key
        elif key in VALIDATION:
            name = f"validation/{key}"
        else:
            name = f"{'rollout' if key in ROLLOUT else OTHER}/{key}"
        found |= flat(name, value)
    return found


def step_metrics(family: str, step: StepStats) -> dict[str, float]:
    """The metrics of one optimizer step of "train" or "warmup"."""
    found: dict[str, float] = {}
    for key in ("loss", "learning_rate", "grad_norm"):
        found |= flat(f"{family}/{key}", getattr(step, key))
    return found


def place_metrics(place: Mapping[str, Any]) -> dict[str, float]:
    """The accuracies of a warmed-up policy (summary.WarmupSummary) or a final one, as points of the same curves."""
    found: dict[str, float] = {}
    for key, value in place.items():
        found |= flat(WARMUP.get(key) or (key if key in FAMILIES else f"validation/{key}"), value)
    return found


def flat(name: str, value: Any) -> dict[str, float]:
    """The finite numbers in `value`, by name.

    Mappings extend the name by "/key". Of a sweep (a mapping with `temperatures`) the lists that go with these are
    named by temperature, "/at_0.7"; other lists are no metrics.
    """
    if isinstance(value, Estimate):
        value = {"value": value.value, "low": value.low, "high": value.high}
    if not isinstance(value, Mapping):
        number = finite(value)
        return {} if number is None else {name: number}
    if value.keys() >= {"value", "low", "high"}:
        parts = {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
        return {part: number for part, one in parts.items() if (number := finite(one)) is not None}
    found: dict[str, float] = {}
    temperatures = value.get("temperatures") or ()
    for key, one in value.items():
        if isinstance(one, (list, tuple)):
            if key != "temperatures" and len(one) == len(temperatures):
                for temperature, item in zip(temperatures, one):
                    found |= flat(f"{name}/{key}/at_{temperature:g}", item)
        else:
            found |= flat(f"{name}/{key}", one)
    return found


def finite(value: Any) -> float | None:
    """A number as a float; None for what is none (truth values included), and for NaN and infinities."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
