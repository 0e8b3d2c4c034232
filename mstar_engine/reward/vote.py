"""What the responses to a problem answer together: votes, for pseudo-labels and for verifiers.

Answers are compared in their normal form, or by their problem's type (`answers.answer_form`; LaTeX by spelling). A
response votes when it ended by itself and gives an answer: as in judging, the answer of one that was cut may be cut as
well. Ties go to the answer whose responses score more in sum, where there are scores, then to the one with the earliest
response.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mstar_engine.answer_type import AnswerType
from mstar_engine.reward.answers import answer_form, extract_answer
from mstar_engine.types import Group, Problem, Response


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """The winner of a vote.

    `answer` as its earliest response writes it; `share` its part of all weight, in [0, 1] (0 when no answer has any);
    `margin` by how much that is more than the share of the answer in second place; `support` the responses that give
    the answer.
    """

    answer: str
    share: float
    margin: float
    support: int


def majority_vote(group: Group, first: int | None = None) -> Vote | None:
    """The most frequent answer among the `first` responses (None: all). None when nobody votes. Needs no scores."""
    return _decide(group, first, len)


def weighted_vote(group: Group, first: int | None = None) -> Vote | None:
    """The answer whose responses score most in sum: argmax_a sum_i 1[a_i = a] R_p(y_i), the paper's pseudo-label."""
    _need_scores(group, first)
    return _decide(group, first, _summed)


def best_of_n(group: Group, first: int | None = None) -> Vote | None:
    """The answer of the response with the highest score; an answer weighs what its best response scores."""
    _need_scores(group, first)
    return _decide(group, first, lambda responses: max(response.score for response in responses))


RULES: dict[str, Callable[[Group, int | None], Vote | None]] = {
    "majority": majority_vote,
    "weighted": weighted_vote,
    "best_of_n": best_of_n,
}


def _answer(response: Response, answer_type: AnswerType | None = None) -> str | None:
    if response.finish_reason != "stop":
        return None
    return extract_answer(response.text, answer_type) if response.answer is None else response.answer


def _answer_to(problem: Problem, response: Response) -> str | None:
    return _answer(response) if problem.answer_type is None else _answer(response, problem.answer_type)


def _form(response: Response, problem: Problem) -> str:
    return answer_form(_answer_to(problem, response) or "", problem.answer_type)


def _voters(group: Group, first: int | None) -> list[Response]:
    """The voting responses among the first ones, in the group's order."""
    if first is not None and not 1 <= first <= len(group.responses):
        raise ValueError(f"first={first}; allowed: 1 to {len(group.responses)}, the responses of {_name(group)}")
    return [response for response in group.responses[:first] if _form(response, group.problem)]


def _ballots(group: Group, first: int | None) -> list[list[Response]]:
    """The responses of each answer, answers in order of their first response."""
    ballots: dict[str, list[Response]] = {}
    for response in _voters(group, first):
        ballots.setdefault(_form(response, group.problem), []).append(response)
    return list(ballots.values())


def _decide(group: Group, first: int | None, weight: Callable[[Sequence[Response]], float]) -> Vote | None:
    ballots = _ballots(group, first)
    if not ballots:
        return None
    # Sorting is stable: what ties in both keys stays in order of its first response.
    ranked = sorted(ballots, key=lambda responses: (-weight(responses), -_summed(responses)))
    weights = [weight(responses) for responses in ranked]
    total = math.fsum(weights) or 1.0
    return Vote(
        answer=_answer_to(group.problem, ranked[0][0]),
        share=weights[0] / total,
        margin=(weights[0] - (weights[1] if len(weights) > 1 else 0.0)) / total,
        support=len(ranked[0]),
    )


def _summed(responses: Sequence[Response]) -> float:
    """Sum of the scores that exist."""
    return math.fsum(r.score for r in responses if r.score is not None and not math.isnan(r.score))


def _need_scores(group: Group, first: int | None) -> None:
    for response in _voters(group, first):
        if response.score is None or not 0.0 <= response.score < math.inf:
            where = f"{_name(group)}, sample {response.sample}"
            raise ValueError(f"{where}: score={response.score}; a vote by scores needs one of 0 or more each")


def _name(group: Group) -> str:
    return f"problem {group.problem.id}"
