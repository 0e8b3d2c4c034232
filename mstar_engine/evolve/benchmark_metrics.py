"""What an evaluation reports of one problem set: every accuracy, category by category and over all problems.

Pure functions on judged groups whose first response is the greedy one. The definitions are those of `dynamics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mstar_engine.answer_type import AnswerType
from mstar_engine.evolve.dynamics import (
    greedy_accuracy,
    pass_at_k,
    reward_pass_at_k,
    sample_accuracy,
    unbiased_pass_at_k,
    vote_accuracy,
)
from mstar_engine.evolve.intervals import mean_of, wilson
from mstar_engine.reward.answers import judge_text
from mstar_engine.summary import ALL, BenchmarkSummary
from mstar_engine.types import Estimate, Group, Problem

BY_SCORE = ("weighted", "best_of_n")


def powers_of_two(n: int) -> list[int]:
    """2, 4, 8 .. up to `n`."""
    return [2**power for power in range(1, n.bit_length())]


def published_type(problem: Problem, variant: str) -> AnswerType | None:
    """The problem's answer type with the rules of `variant`; None where these do not apply to such an answer."""
    if problem.answer_type is None:
        return None
    try:
        return replace(problem.answer_type, variant=variant)
    except ValueError:
        return None


def published_verdicts(groups: Sequence[Group], variant: str) -> dict[str, bool] | None:
    """By problem id, whether the greedy response is right by the rules of `variant`. They judge what there is of a
    response that did not end by itself. A problem that they cannot judge keeps the verdict it has; None where they can
    judge none."""
    types = [published_type(group.problem, variant) for group in groups]
    if not any(types):
        return None
    return {
        group.problem.id: bool(group.responses[0].correct)
        if kind is None
        else judge_text(group.responses[0].text, group.problem.gold, kind).correct
        for group, kind in zip(groups, types, strict=True)
    }


def accuracies(
    groups: Sequence[Group], *, published: Mapping[str, bool] | None = None, scored: bool = False, seed: int = 0
) -> dict[str, Estimate]:
    """Every metric of `summary.BenchmarkSummary` by name, in the order of tables.

    `published`: verdicts by problem id; `scored`: every sample has a score. All groups have as many responses.
    """
    found = {"greedy": greedy_accuracy(groups)}
    if published is not None:
        found["greedy_published"] = wilson(sum(published[group.problem.id] for group in groups), len(groups))
    n = len(groups[0].responses) - 1
    if not n:
        return found
    sampled = [replace(group, responses=group.responses[1:]) for group in groups]
    found["pass_at_1"] = sample_accuracy(sampled, seed)
    if n > 1:
        found |= {rule: vote_accuracy(sampled, rule) for rule in ("majority", *(BY_SCORE if scored else ()))}
    if n > 1 and scored:
        found["reward_pass_at_2"] = reward_pass_at_k(sampled, 2)
    for k in powers_of_two(n):
        found[f"pass_at_{k}"] = pass_at_k(sampled, k)
        found[f"unbiased_pass_at_{k}"] = unbiased_pass_at_k(sampled, k, seed)
    return found


def benchmark_summary(
    groups: Sequence[Group],
    *,
    order: Sequence[str] = (),
    published: str = "",
    scored: bool = False,
    seed: int = 0,
) -> BenchmarkSummary:
    """The accuracies of a problem set by category and over all of it.

    Categories are the sources of the problems: first those of `order`, then others by name. A set whose only category
    is not among `order` has none.
    """
    verdicts = published_verdicts(groups, published) if published else None
    members: dict[str, list[Group]] = {}
    for group in groups:
        members.setdefault(group.problem.source, []).append(group)
    names = [one for one in order if one in members]
    others = sorted(members.keys() - set(order))
    names += others if names or len(others) > 1 else []
    tables = {_told_apart(one): members[one] for one in names} | {ALL: list(groups)}
    return BenchmarkSummary(
        problems=len(groups),
        published=published,
        unpublished=sum(published_type(group.problem, published) is None for group in groups) if published else 0,
        metrics={
            category: accuracies(some, published=verdicts, scored=scored, seed=seed)
            for category, some in tables.items()
        },
    )


def _told_apart(category: str) -> str:
    """A category that a data set calls as we call all of it must not be taken for that."""
    return f"{category} (category)" if category == ALL else category


def mean_accuracies(benchmarks: Mapping[str, BenchmarkSummary]) -> dict[str, Estimate]:
    """By metric, the mean over the benchmarks of what they reach on all problems; those that all of them have."""
    whole = [one.metrics[ALL] for one in benchmarks.values()]
    shared = [name for name in whole[0] if all(name in one for one in whole)] if len(whole) > 1 else []
    return {name: mean_of([one[name] for one in whole]) for name in shared}
