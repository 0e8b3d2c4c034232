"""H: which of a problem's correct responses are learned from.

Correct responses only; of responses with the same text, one. Responses compete by score (higher first), then by length
(fewer tokens), then by sample number, so that the outcome never depends on the order in which samples finished.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

from mstar_engine.types import Group, Response

KINDS = ("all", "random", "top_k")


def _rank(response: Response) -> tuple[float, int, int]:
    score = -math.inf if response.score is None else response.score
    return (-score, len(response.token_ids), response.sample)


def candidates(group: Group) -> list[Response]:
    """The correct responses, best first, one for each text (surrounding white space aside)."""
    unique: dict[str, Response] = {}
    for response in sorted((r for r in group.responses if r.correct), key=_rank):
        unique.setdefault(response.text.strip(), response)
    return list(unique.values())


def _mark(group: Group, kept: list[Response]) -> Group:
    samples = {response.sample for response in kept}
    return replace(group, responses=tuple(replace(r, selected=r.sample in samples) for r in group.responses))


def select_all(group: Group) -> Group:
    """Every distinct correct response."""
    return _mark(group, candidates(group))


def select_random(group: Group, k: int, seed: int) -> Group:
    """Correct responses drawn at random until `k` distinct ones are found; the caller varies `seed` with the iteration.

    Responses are drawn, not texts: what the policy says often is kept often, and a rare text that got lucky rarely. The
    draw is a function of (seed, problem, sample): the same whenever and wherever it is asked.
    """

    def draw(response: Response) -> bytes:
        return hashlib.sha256(repr((seed, group.problem.id, response.sample)).encode()).digest()

    drawn: dict[str, Response] = {}
    for response in sorted((r for r in group.responses if r.correct), key=draw):
        drawn.setdefault(response.text.strip(), response)
    return _mark(group, list(drawn.values())[:k])


def select_top_k(group: Group, k: int) -> Group:
    """The `k` distinct correct responses of the highest score. ValueError when one of them has no score."""
    ranked = candidates(group)
    for response in ranked:
        if response.score is None or math.isnan(response.score):
            where = f"problem {group.problem.id}, sample {response.sample}"
            raise ValueError(f"{where}: score={response.score}; top_k needs a score for every correct response")
    return _mark(group, ranked[:k])


def select(group: Group, kind: str, k: int = 2, seed: int = 0) -> Group:
    """The group with `selected` set by `kind` ("all", "random", "top_k"); what was selected before is forgotten."""
    if k < 1:
        raise ValueError(f"k={k}; allowed: 1 or more")
    if kind == "all":
        return select_all(group)
    if kind == "random":
        return select_random(group, k, seed)
    if kind == "top_k":
        return select_top_k(group, k)
    raise ValueError(f"kind={kind!r}; allowed: {', '.join(KINDS)}")
