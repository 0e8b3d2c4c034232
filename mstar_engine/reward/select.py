"""H: which of a problem's correct responses are learned from.

Correct responses only; with a threshold `alpha`, of these the ones that score above it; of responses with the same
text, one. Responses compete by score (higher first), then by length (fewer tokens), then by a draw that is a function
of (seed, problem, sample), so that the outcome never depends on the order in which samples finished.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

from mstar_engine.types import Group, Response

KINDS = ("all", "random", "top_k", "threshold")


def select(group: Group, kind: str, k: int = 2, seed: int = 0, alpha: float | None = None) -> Group:
    """The group with `selected` set; what was selected before is forgotten.

    `kind` "all" keeps every distinct correct response, "random" `k` drawn at random, "top_k" the `k` of the highest
    score. `alpha` goes first: only correct responses that score above it, strictly, take part; None sets no threshold.
    "threshold" is "all" with an `alpha`. The caller varies `seed` with the iteration. ValueError when "top_k" or
    `alpha` meets a correct response without a score.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}; allowed: {', '.join(KINDS)}")
    if k < 1:
        raise ValueError(f"k={k}; allowed: 1 or more")
    if (kind == "threshold" and alpha is None) or (alpha is not None and math.isnan(alpha)):
        raise ValueError(f"kind={kind!r}, alpha={alpha}; allowed: a number")
    correct = [response for response in group.responses if response.correct]
    if kind == "top_k" or alpha is not None:
        _need_scores(group, correct, f"kind={kind!r}, alpha={alpha}")
    if alpha is not None:
        correct = [response for response in correct if response.score > alpha]
    if kind == "random":
        # Responses are drawn, not texts: what the policy says often is kept often, a rare text that got lucky rarely.
        kept = _distinct(sorted(correct, key=lambda response: _draw(group, response, seed)))[:k]
    else:
        kept = _distinct(sorted(correct, key=lambda response: (*_rank(response), _draw(group, response, seed))))
        kept = kept[:k] if kind == "top_k" else kept
    samples = {response.sample for response in kept}
    return replace(group, responses=tuple(replace(r, selected=r.sample in samples) for r in group.responses))


def _rank(response: Response) -> tuple[float, int]:
    missing = response.score is None or math.isnan(response.score)
    return (math.inf if missing else -response.score, len(response.token_ids))


def _draw(group: Group, response: Response, seed: int) -> bytes:
    return hashlib.sha256(repr((seed, group.problem.id, response.sample)).encode()).digest()


def _distinct(responses: list[Response]) -> list[Response]:
    """The first response of each text, surrounding white space aside."""
    unique: dict[str, Response] = {}
    for response in responses:
        unique.setdefault(response.text.strip(), response)
    return list(unique.values())


def _need_scores(group: Group, responses: list[Response], why: str) -> None:
    for response in responses:
        if response.score is None or math.isnan(response.score):
            where = f"problem {group.problem.id}, sample {response.sample}"
            raise ValueError(f"{where}: score={response.score}; {why} needs a score for every correct response")
