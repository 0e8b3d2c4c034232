"""What is watched while a policy evolves: accuracy, Pass@K, Reward-Pass@K, votes, lengths, entropy, diversity.

Pure functions on judged groups. Every accuracy is an Estimate with a 95% interval over problems: Wilson's for shares of
right-or-wrong outcomes, the percentile bootstrap (seeded) for means of other quantities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mstar_engine.reward.answers import normalise
from mstar_engine.reward.vote import RULES
from mstar_engine.types import Estimate, Group

_Z = 1.959963984540054


def wilson(successes: int, items: int) -> Estimate:
    """A share of 0/1 outcomes with Wilson's 95% interval (JASA 22, 1927)."""
    if items < 1 or not 0 <= successes <= items:
        raise ValueError(f"successes={successes} of items={items}; allowed: 1 item or more, and successes among them")
    share, z2 = successes / items, _Z * _Z
    middle = (share + z2 / (2 * items)) / (1 + z2 / items)
    half = _Z / (1 + z2 / items) * math.sqrt(share * (1 - share) / items + z2 / (4 * items * items))
    # Rounding must not push the interval off the share at 0 and 1.
    low, high = max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
    return Estimate(value=share, items=items, low=low, high=high)


def bootstrap(values: Sequence[float], seed: int = 0, resamples: int = 2000) -> Estimate:
    """The mean of `values` in [0, 1], one a problem, with the 95% percentile bootstrap interval over problems.

    When every value is 0, or every one 1, resampling sees no spread at all; Wilson's interval stands in.
    """
    items = len(values)
    if items < 1:
        raise ValueError("no values to average")
    distinct, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    mean = float(distinct @ counts / items)
    if len(distinct) == 1 and distinct[0] in (0.0, 1.0):
        return wilson(int(distinct[0]) * items, items)
    # Drawing problems with replacement is a multinomial draw over their distinct values.
    draws = np.random.default_rng(seed).multinomial(items, counts / items, size=resamples)
    low, high = np.quantile(draws @ distinct / items, [0.025, 0.975])
    return Estimate(value=mean, items=items, low=min(float(low), mean), high=max(float(high), mean))


def correct_counts(groups: Sequence[Group]) -> list[tuple[int, int]]:
    """(responses, correct ones) of each group. ValueError names a problem without responses or without verdicts."""
    if not groups:
        raise ValueError("no groups to measure")
    counts = []
    for group in groups:
        if not group.responses:
            raise ValueError(f"problem {group.problem.id}: no responses")
        for response in group.responses:
            if response.correct is None:
                raise ValueError(f"problem {group.problem.id}, sample {response.sample}: not judged")
        counts.append((len(group.responses), sum(bool(r.correct) for r in group.responses)))
    return counts


def greedy_accuracy(groups: Sequence[Group]) -> Estimate:
    """Share of problems whose first response is correct; for groups sampled at temperature 0."""
    correct_counts(groups)
    return wilson(sum(bool(group.responses[0].correct) for group in groups), len(groups))


def sample_accuracy(groups: Sequence[Group], seed: int = 0) -> Estimate:
    """Mean share of correct responses a problem (unbiased Pass@1)."""
    return bootstrap([correct / n for n, correct in correct_counts(groups)], seed)


def pass_at_k(groups: Sequence[Group], k: int) -> Estimate:
    """Share of problems with a correct response among their first `k`. ValueError when a problem has fewer."""
    _enough(groups, k)
    return wilson(sum(any(r.correct for r in group.responses[:k]) for group in groups), len(groups))


def unbiased_pass_at_k(groups: Sequence[Group], k: int, seed: int = 0) -> Estimate:
    """Mean over problems of 1 - C(n - c, k) / C(n, k), from all n responses (Chen et al. 2021, arXiv 2107.03374)."""
    _enough(groups, k)
    return bootstrap([_unbiased(n, correct, k) for n, correct in correct_counts(groups)], seed)


def _unbiased(n: int, correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k) as a product of shares: no large number arises."""
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod((n - correct - i) / (n - i) for i in range(k))


def _enough(groups: Sequence[Group], k: int) -> None:
    for group, (n, _) in zip(groups, correct_counts(groups), strict=True):
        if not 1 <= k <= n:
            raise ValueError(f"k={k}; allowed: 1 to {n}, the responses of problem {group.problem.id}")


def reward_pass_at_k(groups: Sequence[Group], k: int) -> Estimate:
    """Share of problems with a correct response among the `k` of the highest score of all their responses.

    Correctness does not filter what is ranked: with it, this would be Pass@n. Ties go to fewer tokens, then to the
    earlier sample. ValueError names a problem with fewer responses than `k`, or a response without a score.
    """
    _enough(groups, k)
    hits = 0
    for group in groups:
        for response in group.responses:
            if response.score is None or math.isnan(response.score):
                where = f"problem {group.problem.id}, sample {response.sample}"
                raise ValueError(f"{where}: score={response.score}; Reward-Pass@K needs a score for every response")
        ranked = sorted(group.responses, key=lambda r: (-r.score, len(r.token_ids), r.sample))
        hits += any(r.correct for r in ranked[:k])
    return wilson(hits, len(groups))


def vote_accuracy(groups: Sequence[Group], rule: str, k: int) -> Estimate:
    """Share of problems whose first `k` responses vote for the reference answer; no vote at all is wrong.

    `rule` is one of `vote.RULES`. ValueError names a problem with fewer responses, without a reference answer, or with
    a voting response that lacks the score that the rule needs.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r}; allowed: {', '.join(RULES)}")
    _enough(groups, k)
    hits = 0
    for group in groups:
        if group.problem.gold is None:
            raise ValueError(f"problem {group.problem.id}: no reference answer")
        vote = RULES[rule](group, k)
        hits += vote is not None and normalise(vote.answer) == normalise(group.problem.gold)
    return wilson(hits, len(groups))


def verifier_table(groups: Sequence[Group], ks: Sequence[int]) -> dict[int, dict[str, Estimate]]:
    """The accuracy of every voting rule over the first k responses, by k, then by rule."""
    return {k: {rule: vote_accuracy(groups, rule, k) for rule in RULES} for k in ks}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamics:
    """A set of groups in numbers.

    `mean_length` in tokens a response; `mean_entropy` in nats a token; `distinct` the different texts over the
    responses of a problem, on average; `solved_none`, `solved_some`, `solved_all` the shares of problems with that many
    responses correct; `finished` the share of responses that ended by themselves; `selected` the selected responses a
    problem.
    """

    problems: int
    responses: int
    accuracy: Estimate
    mean_length: float
    mean_entropy: float
    distinct: float
    solved_none: float
    solved_some: float
    solved_all: float
    finished: float
    selected: float


def measure(groups: Sequence[Group], seed: int = 0) -> Dynamics:
    """The dynamics of judged `groups`; `seed` is the bootstrap's."""
    counts = correct_counts(groups)
    responses = [response for group in groups for response in group.responses]
    tokens = sum(len(r.token_ids) for r in responses)
    none = sum(c == 0 for _, c in counts) / len(groups)
    every = sum(c == n for n, c in counts) / len(groups)
    return Dynamics(
        problems=len(groups),
        responses=len(responses),
        accuracy=sample_accuracy(groups, seed),
        mean_length=tokens / len(responses),
        mean_entropy=float(sum(np.sum(r.entropy, dtype=np.float64) for r in responses)) / max(tokens, 1),
        distinct=float(np.mean([len({r.text for r in g.responses}) / len(g.responses) for g in groups])),
        solved_none=none,
        solved_some=sum(0 < c < n for n, c in counts) / len(groups),
        solved_all=every,
        finished=sum(r.finish_reason == "stop" for r in responses) / len(responses),
        selected=sum(r.selected for r in responses) / len(groups),
    )
