"""The outcome of a run in one small record: what `summary.json` holds.

A run replaces it after every iteration, so it is whole at any moment; what has not been measured yet is None or absent.
Every accuracy is an Estimate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mstar_engine.types import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupSummary:
    """The warmed-up policy: where the evolution starts.

    `greedy` and `ood_greedy` on the test problems, like those at the end; `validation_greedy` and `pass_at_k` on the
    validation problems, like those of the iterations.
    """

    greedy: Estimate
    ood_greedy: Estimate | None = None
    validation_greedy: Estimate | None = None
    pass_at_k: Estimate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationSummary:
    """One iteration: accuracies on the validation problems, responses `sampled` and `kept`, wall-clock `seconds`."""

    iteration: int
    greedy: Estimate
    pass_at_k: Estimate | None = None
    kept: int
    sampled: int
    temperature: float
    tokens_per_second: float | None = None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalSummary:
    """The evolved policy on the test problems, and on those outside the training distribution."""

    greedy: Estimate
    ood_greedy: Estimate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A whole run; `seconds` by stage."""

    warmup: WarmupSummary | None = None
    evolve: tuple[IterationSummary, ...] = ()
    final: FinalSummary | None = None
    seconds: dict[str, float] = field(default_factory=dict)


_SUMMARY = TypeAdapter(Summary)


def read_summary(path: Path) -> Summary:
    """The summary in a JSON file, keys of later versions ignored. ValueError names the file and the first bad key."""
    try:
        return _SUMMARY.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{path}: {where}: {first['msg']}") from None
