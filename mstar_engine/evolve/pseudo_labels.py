"""Pseudo-labels: what the responses to an unlabelled problem vote for, taken as its reference answer (paper section 5).

A confidence gate decides which votes count. Pure functions of a group: what is resumed is labelled alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mstar_engine.config import PromptsConfig
from mstar_engine.evolve.dynamics import wilson
from mstar_engine.reward.answers import same
from mstar_engine.reward.vote import RULES, Vote
from mstar_engine.summary import PseudoSummary
from mstar_engine.types import PSEUDO, Group


def passes(vote: Vote | None, config: PromptsConfig) -> bool:
    """The confidence gate: whether a vote reaches `min_share` and `min_margin`."""
    return vote is not None and vote.share >= config.min_share and vote.margin >= config.min_margin


def pseudo_label(group: Group, config: PromptsConfig) -> Group:
    """The group with the winner of its responses' vote as gold, None where the gate refuses it; others as they are.

    Only a problem that is to be pseudo-labelled is touched. ValueError when a weighted vote meets a voting response
    without a score.
    """
    if group.problem.label != PSEUDO:
        return group
    vote = RULES[config.vote](group, None)
    gold = vote.answer if vote is not None and passes(vote, config) else None
    return replace(group, problem=replace(group.problem, gold=gold))


def pseudo_summary(groups: Sequence[Group], config: PromptsConfig) -> PseudoSummary | None:
    """How the pseudo-labels of an iteration did; None when it met no problem to be pseudo-labelled.

    `accuracy` is over labels that passed the gate and whose true answer is known; None when there is none.
    """
    met = [group for group in groups if group.problem.label == PSEUDO]
    if not met:
        return None
    passed = [group.problem for group in met if group.problem.gold is not None]
    known = [problem for problem in passed if problem.truth is not None]
    right = sum(same(problem.gold, problem.truth, problem.answer_type) for problem in known)
    return PseudoSummary(
        problems=len(met),
        voted=sum(RULES[config.vote](group, None) is not None for group in met),
        passed=len(passed),
        accuracy=wilson(right, len(known)) if known else None,
    )
