"""Verdicts on responses to problems that say what kind of answer they have."""

from __future__ import annotations

from mstar_engine.answer_type import AnswerType
from mstar_engine.reward import verdict
from mstar_engine.reward.extract import Found, find_answer
from mstar_engine.reward.golds import Gold, compare
from mstar_engine.reward.variants import JUDGES
from mstar_engine.reward.verdict import Verdict


def find_typed(text: str, answer_type: AnswerType) -> Found | None:
    """The answer of a response where its type's rules find it; None where they find nothing. It may be empty."""
    return find_answer(text, answer_type.extract, len(answer_type.choices))


def judge_typed(text: str, gold: Gold) -> Verdict:
    """The verdict on a response's text, by the rules of its type's variant."""
    if gold.type.variant != "strict":
        return JUDGES[gold.type.variant](text, gold)
    found = find_typed(text, gold.type)
    if found is None:
        return Verdict(False, None, verdict.NO_ANSWER)
    if not found.text:
        return Verdict(False, None, verdict.EMPTY, found.rule)
    reason = compare(found.text, gold)
    return Verdict(reason == verdict.MATCH, found.text, reason, found.rule)
