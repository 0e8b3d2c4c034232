"""Whether a response's answer is the reference answer.

The answer is what follows the last `# Answer` heading, to the end of the response. The comparison is exact after
normalisation: containment would reward a policy for naming every number. What normalisation does, and nothing more:
surrounding white space and one trailing dot go, inner white space collapses, case is ignored ("12." == " 12 ",
"b" == "B"); a whole number loses its plus sign, leading zeros and well-formed thousands commas ("+1,024" == "1024",
"-0" == "0"). "12.0", "12 apples" and "12 13" are not "12". An empty answer is wrong, whatever the reference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from mstar_engine.types import Group, Response

# The heading may be of any level, may end with a colon, and the answer may begin on its line.
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]*answer\b[ \t]*:?", re.IGNORECASE | re.MULTILINE)
_INTEGER = re.compile(r"([+-]?)([0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge found: `answer` as the response gives it, None when it gives none; `reason` says why."""

    correct: bool
    answer: str | None
    reason: str


def extract_answer(text: str) -> str | None:
    """The text after the last `# Answer` heading, stripped; None without a heading or with nothing after it."""
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


def bare_answer(gold: str) -> str:
    """A response that gives the reference answer and nothing else."""
    return f"# Answer {gold}"


def judge_text(text: str, gold: str) -> Verdict:
    """The verdict on a response's text, given the reference answer."""
    answer = extract_answer(text)
    if answer is None:
        return Verdict(False, None, "no answer")
    given = normalise(answer)
    if not given:
        return Verdict(False, answer, "empty answer")
    correct = given == normalise(gold)
    return Verdict(correct, answer, "match" if correct else "mismatch")


def judge_response(response: Response, gold: str) -> Verdict:
    """The verdict on a response. One that did not end by itself is wrong: its answer may be cut ("1" of "12")."""
    verdict = judge_text(response.text, gold)
    if response.finish_reason != "stop":
        return Verdict(False, verdict.answer, f"unfinished ({response.finish_reason})")
    return verdict


def judge(group: Group) -> Group:
    """The group with `answer` and `correct` filled; without a reference answer `correct` stays None."""
    gold, judged = group.problem.gold, []
    for response in group.responses:
        if gold is None:
            judged.append(replace(response, answer=extract_answer(response.text), correct=None))
        else:
            verdict = judge_response(response, gold)
            judged.append(replace(response, answer=verdict.answer, correct=verdict.correct))
    return replace(group, responses=tuple(judged))
