"""What is watched while a policy evolves (paper section 6): accuracy, Pass@K, Reward-Pass@K, votes, entropy, lengths.

Pure functions on judged groups; `measure` gives all of it by name. Every metric is an Estimate with a 95% interval over
problems (`intervals`): Wilson's for shares of right-or-wrong outcomes, the percentile bootstrap (seeded) for means. Bad
input is refused with the problem's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mstar_engine.evolve.intervals import bootstrap, bootstrap_ratio, wilson
from mstar_engine.reward.answers import same
from mstar_engine.reward.steps import step_spans
from mstar_engine.reward.vote import RULES
from mstar_engine.types import Estimate, Group, Response

SHARE = (0.0, 1.0)


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
    return bootstrap([correct / n for n, correct in correct_counts(groups)], seed, bounds=SHARE)


def pass_at_k(groups: Sequence[Group], k: int) -> Estimate:
    """Share of problems with a correct response among their first `k`. ValueError when a problem has fewer."""
    _enough(groups, k)
    return wilson(sum(_any_correct(group, k) for group in groups), len(groups))


def unbiased_pass_at_k(groups: Sequence[Group], k: int, seed: int = 0) -> Estimate:
    """Mean over problems of 1 - C(n - c, k) / C(n, k), from all n responses (Chen et al. 2021, arXiv 2107.03374)."""
    _enough(groups, k)
    return bootstrap([_unbiased(n, correct, k) for n, correct in correct_counts(groups)], seed, bounds=SHARE)


def pass_at_k_minus_greedy(sampled: Sequence[Group], greedy: Sequence[Group], k: int, seed: int = 0) -> Estimate:
    """Pass@K minus greedy accuracy, from -1 to 1: what exploration still finds beyond the greedy response.

    Paired: the two groups of a problem stand at the same place, and the interval is that of the mean of their
    differences. Samples and greedy response share the problem's difficulty, which the difference leaves out.
    """
    _enough(sampled, k)
    correct_counts(greedy)
    for one, other in zip(sampled, greedy, strict=True):
        if one.problem.id != other.problem.id:
            raise ValueError(f"problem {one.problem.id} is paired with {other.problem.id}; allowed: with itself")
    differences = [
        _any_correct(one, k) - bool(other.responses[0].correct) for one, other in zip(sampled, greedy, strict=True)
    ]
    return bootstrap(differences, seed, bounds=(-1.0, 1.0))


def _any_correct(group: Group, k: int) -> bool:
    return any(response.correct for response in group.responses[:k])


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


def vote_accuracy(groups: Sequence[Group], rule: str, k: int | None = None) -> Estimate:
    """Share of problems whose first `k` responses (None: all) vote for the reference answer; no vote at all is wrong.

    `rule` is one of `vote.RULES`. ValueError names a problem with fewer responses, without a reference answer, or with
    a voting response that lacks the score that the rule needs.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r}; allowed: {', '.join(RULES)}")
    _enough(groups, 1 if k is None else k)
    hits = 0
    for group in groups:
        if group.problem.gold is None:
            raise ValueError(f"problem {group.problem.id}: no reference answer")
        vote = RULES[rule](group, k)
        hits += vote is not None and same(vote.answer, group.problem.gold, group.problem.answer_type)
    return wilson(hits, len(groups))


def verifier_table(groups: Sequence[Group], ks: Sequence[int]) -> dict[int, dict[str, Estimate]]:
    """The accuracy of every voting rule over the first k responses, by k, then by rule."""
    return {k: {rule: vote_accuracy(groups, rule, k) for rule in RULES} for k in ks}


def entropy(groups: Sequence[Group], seed: int = 0) -> Estimate:
    """Nats a token at temperature 1: the entropy of all tokens over their number (ratio estimator: tokens weigh alike).

    ValueError names a response whose entropy isn't finite, or that has no tokens.
    """
    for group in groups:
        for response in group.responses:
            where = f"problem {group.problem.id}, sample {response.sample}"
            if not len(response.token_ids):
                raise ValueError(f"{where}: no tokens")
            if not np.isfinite(response.entropy).all():
                raise ValueError(f"{where}: the entropy of a token is NaN or infinite")
    return _ratio(groups, lambda r: float(np.sum(r.entropy, dtype=np.float64)), lambda r: float(len(r.token_ids)), seed)


def length(groups: Sequence[Group], seed: int = 0) -> Estimate:
    """Tokens a response, the end token included (ratio estimator: responses weigh alike)."""
    return _ratio(groups, lambda r: float(len(r.token_ids)), lambda r: 1.0, seed)


def steps(groups: Sequence[Group], seed: int = 0, delimiter: str = "\n\n", max_steps: int = 0) -> Estimate:
    """Steps a response (ratio estimator: responses weigh alike), by its text: see `reward.steps.step_spans`."""
    return _ratio(groups, lambda r: float(len(step_spans(r.text, delimiter, max_steps))), lambda r: 1.0, seed)


def _ratio(
    groups: Sequence[Group], total: Callable[[Response], float], size: Callable[[Response], float], seed: int
) -> Estimate:
    """Sum of `total` over sum of `size`. By problem id: the interval doesn't depend on the order of the groups."""
    correct_counts(groups)
    ordered = sorted(groups, key=lambda group: group.problem.id)
    totals = [math.fsum(map(total, group.responses)) for group in ordered]
    return bootstrap_ratio(totals, [math.fsum(map(size, group.responses)) for group in ordered], seed)


def solved(groups: Sequence[Group]) -> dict[str, Estimate]:
    """Shares of problems of which no response is correct, some are, all are; they sum to 1."""
    counts = correct_counts(groups)
    found = {
        "solved_none": sum(correct == 0 for _, correct in counts),
        "solved_some": sum(0 < correct < n for n, correct in counts),
        "solved_all": sum(correct == n for n, correct in counts),
    }
    return {name: wilson(number, len(groups)) for name, number in found.items()}


def distinct(groups: Sequence[Group], seed: int = 0) -> Estimate:
    """Share of different texts among a problem's responses.

    As in selection, white space around a text is no difference.
    """
    correct_counts(groups)
    shares = [len({response.text.strip() for response in group.responses}) / len(group.responses) for group in groups]
    return bootstrap(shares, seed, bounds=SHARE)


def measure(
    groups: Sequence[Group],
    *,
    k: int = 1,
    reward_k: int = 2,
    scored: bool = False,
    seed: int = 0,
    delimiter: str = "\n\n",
    max_steps: int = 0,
) -> dict[str, Estimate]:
    """Every metric of judged `groups` by name, in this order; a group's first response is the greedy one, the rest are
    its samples.

    greedy; pass_at_1, pass_at_k, unbiased_pass_at_k, pass_at_k_minus_greedy; reward_pass_at_k (at `reward_k`);
    majority, weighted, best_of_n (over all samples); entropy (nats a token), length (tokens a response), steps (a
    response); solved_none, solved_some, solved_all; distinct. All but `greedy` describe the samples and are absent when
    there are none; reward_pass_at_k, weighted and best_of_n ask `scored` groups, in which every response has a score.
    """
    correct_counts(groups)
    greedy = [replace(group, responses=group.responses[:1]) for group in groups]
    found = {"greedy": greedy_accuracy(greedy)}
    if all(len(group.responses) == 1 for group in groups):
        return found
    sampled = [replace(group, responses=group.responses[1:]) for group in groups]
    found["pass_at_1"] = sample_accuracy(sampled, seed)
    found["pass_at_k"] = pass_at_k(sampled, k)
    found["unbiased_pass_at_k"] = unbiased_pass_at_k(sampled, k, seed)
    found["pass_at_k_minus_greedy"] = pass_at_k_minus_greedy(sampled, greedy, k, seed)
    if scored:
        found["reward_pass_at_k"] = reward_pass_at_k(sampled, reward_k)
    found |= {rule: vote_accuracy(sampled, rule) for rule in (RULES if scored else ("majority",))}
    found["entropy"] = entropy(sampled, seed)
    found["length"] = length(sampled, seed)
    found["steps"] = steps(sampled, seed, delimiter, max_steps)
    return found | solved(sampled) | {"distinct": distinct(sampled, seed)}
