"""The rollouts' filters: which there are, and how many problems each leaves. The page applies them without a script.

Radio inputs stand before the problems, and CSS hides what the checked ones exclude; every pair of filters has its own
count, and CSS shows the one that holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from mstar_engine.report.choose import ALL, NONE, SOME
from mstar_engine.report.samples import ShownIteration

ANY = "any"
_WORDS = {ANY: "All", ALL: "Solved by all", SOME: "Solved by some", NONE: "Unsolved"}


@dataclass(frozen=True, slots=True)
class Filter:
    """A choice: its `key`, what its label says, and its count under each choice of the other filter, by key."""

    key: str
    words: str
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Browser:
    """The problems to show and the filters over them.

    `iterations` are filters by place in `shown`, "0" the newest; there are none where there is no choice.
    """

    shown: list[ShownIteration]
    outcomes: list[Filter]
    iterations: list[Filter]


def browser(shown: list[ShownIteration]) -> Browser | None:
    """The browser over iterations, newest first; None when no rollouts are there."""
    if not shown:
        return None
    places = {ANY: "All iterations"} | {str(place): f"Iteration {one.iteration}" for place, one in enumerate(shown)}

    def count(outcome: str, place: str) -> int:
        chosen = shown if place == ANY else [shown[int(place)]]
        return sum(outcome in (ANY, problem.outcome) for one in chosen for problem in one.shown)

    outcomes = [Filter(key, words, {place: count(key, place) for place in places}) for key, words in _WORDS.items()]
    iterations = [Filter(key, words, {o: count(o, key) for o in _WORDS}) for key, words in places.items()]
    return Browser(shown, outcomes, iterations if len(shown) > 1 else [])
