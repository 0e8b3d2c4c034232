"""What the report says about a configuration, in words; values that no version knows are said plainly."""

from __future__ import annotations

from typing import Any

_STAGES = {"warmup": "warm-up", "annotate": "annotate steps", "prm": "train the PRM"}
_LESSONS = {
    "hard": "The policy finished each partial solution several times: a step after which some attempt still came out "
    "right is a good one.",
    "soft": "The policy finished each partial solution several times: the more of the attempts after a step came out "
    "right, the better the step.",
    "binary": "The policy finished partial solutions several times, to search for the first step after which no "
    "attempt came out right any more; the steps before it are good ones.",
}


def kept_responses(select: dict[str, Any]) -> str:
    """Which responses the selection keeps, as the object of "keeps"."""
    kind, k, alpha = select.get("kind"), select.get("k"), select.get("alpha")
    strong = "" if alpha is None else f" that score above {alpha}"
    if kind in ("all", "threshold"):
        return f"every distinct correct response{strong}"
    if kind == "random":
        return f"{k} of the correct responses{strong} at random"
    if kind == "top_k":
        return f"the {k} best-scored correct responses{strong}"
    return "some of the correct responses"


def stage_name(stage: str) -> str:
    """A stage's name, longer where the configuration's is terse."""
    return _STAGES.get(stage, stage)


def lesson(mode: str) -> str:
    """How steps were labelled in annotation `mode`, for a newcomer."""
    return _LESSONS.get(mode, "The labels come from the policy's own attempts to finish partial solutions.")
