"""Whether a response's answer is the reference answer.

The answer is what follows the last `# Answer` heading, to the end of the response. The comparison is exact after
normalisation: containment would reward a policy for naming every number. What normalisation does, and nothing more:
surrounding white space and one trailing dot go, inner white space collapses, case is ignored ("12." == " 12 ",
"b" == "B"); a whole number loses its plus sign, leading zeros and well-formed thousands commas ("+1,024" == "1024",
"-0" == "0"). "12.0", "12 apples" and "12 13" are not "12". An empty answer is wrong, whatever the reference.

That is for problems that do not say what kind of answer they have. Those that do (`Problem.answer_type`) are judged by
it, in `typed.py`; every function here that is given a type, or a problem that has one, hands over.
"""

from __future__ import annotations

import re
from dataclasses import replace

from mstar_engine.answer_type import AnswerType
from mstar_engine.reward import latex
from mstar_engine.reward import verdict as reasons
from mstar_engine.reward.golds import answer_key, gold_of, same_answer
from mstar_engine.reward.typed import find_typed, judge_typed
from mstar_engine.reward.verdict import Verdict
from mstar_engine.types import Group, Response

# The heading may be of any level, may end with a colon, and the answer may begin on its line.
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]*answer\b[ \t]*:?", re.IGNORECASE | re.MULTILINE)
_INTEGER = re.compile(r"([+-]?)([0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)")


def extract_answer(text: str, answer_type: AnswerType | None = None) -> str | None:
    """The text after the last `# Answer` heading, stripped; None without a heading or with nothing after it."""
    if answer_type is not None:
        found = find_typed(text, answer_type)
        return None if found is None else found.text or None
    headings = list(_HEADING.finditer(text))
    return (text[headings[-1].end() :].strip() or None) if headings else None


def normalise(answer: str) -> str:
    """The form in which two answers are compared; see the module's docstring."""
    text = " ".join(answer.split()).removesuffix(".").rstrip().casefold()
    number = _INTEGER.fullmatch(text)
    if number is None:
        return text
    # As text, not int(): a response may hold more digits than int() takes.
    digits = number[2].replace(",", "").lstrip("0") or "0"
    return f"-{digits}" if number[1] == "-" and digits != "0" else digits


def answer_form(answer: str, answer_type: AnswerType | None = None) -> str:
    """What two answers that are the same share, by exact match or by their type; empty when it says nothing."""
    return normalise(answer) if answer_type is None else answer_key(answer, answer_type).value or ""


def same(one: str, other: str, answer_type: AnswerType | None = None) -> bool:
    """Whether two reference answers, or an answer that was voted for and one, are the same."""
    return normalise(one) == normalise(other) if answer_type is None else same_answer(one, other, answer_type)


def bare_answer(gold: str, answer_type: AnswerType | None = None) -> str:
    """A response that gives the reference answer and nothing else, where its type's rules look for it first."""
    if answer_type is None:
        return f"# Answer {gold}"
    if answer_type.kind == "choice" and answer_type.variant != "strict":
        # To these rules a choice is a letter in parentheses before it is anything else.
        return f"Answer: ({answer_key(gold, answer_type).value or gold})"
    forms = {"heading": "Answer: {}", "boxed": "\\boxed{{{}}}", "letter": "({})", "whole": "{}"}
    return forms.get(answer_type.extract[0], "# Answer {}").format(gold)


def judge_text(text: str, gold: str, answer_type: AnswerType | None = None) -> Verdict:
    """The verdict on a response's text, given the reference answer. ValueError when its type cannot read that."""
    if answer_type is not None:
        return judge_typed(text, gold_of(gold, answer_type))
    answer = extract_answer(text)
    if answer is None:
        return Verdict(False, None, reasons.NO_ANSWER)
    given = normalise(answer)
    if not given:
        return Verdict(False, answer, reasons.EMPTY)
    correct = given == normalise(gold)
    return Verdict(correct, answer, reasons.MATCH if correct else reasons.MISMATCH)


def judge_response(response: Response, gold: str, answer_type: AnswerType | None = None) -> Verdict:
    """The verdict on a response. One that did not end by itself is wrong: its answer may be cut ("1" of "12")."""
    verdict = judge_text(response.text, gold, answer_type)
    if response.finish_reason != "stop":
        return Verdict(False, verdict.answer, f"unfinished ({response.finish_reason})", verdict.where)
    return verdict


def judge(group: Group) -> Group:
    """The group with `answer`, `correct` and `reason` filled; the last two stay None without a reference answer."""
    gold, kind = group.problem.gold, group.problem.answer_type

    def judged(response: Response) -> Response:
        if gold is None:
            return replace(response, answer=extract_answer(response.text, kind), correct=None, reason=None)
        verdict = judge_response(response, gold) if kind is None else judge_response(response, gold, kind)
        return replace(response, answer=verdict.answer, correct=verdict.correct, reason=verdict.reason)

    # What waits for other processes waits for several at a time.
    each = latex.side_by_side if kind is not None and kind.kind == "latex" else map
    return replace(group, responses=tuple(each(judged, group.responses)))
