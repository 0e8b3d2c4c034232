"""The rules by which published numbers were made, for comparability only: they are lenient, and a policy that trains on
them learns to exploit that. Ours where they call another model or draw by chance: what they cannot find is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mstar_engine.reward import verdict
from mstar_engine.reward.answer_text import MAX_LENGTH
from mstar_engine.reward.extract import find_answer
from mstar_engine.reward.golds import Gold, answer_key
from mstar_engine.reward.verdict import Verdict

_BRACKETED = re.compile(r"\(([A-Za-z])\)")
_STOPS = str.maketrans(dict.fromkeys("\n.,!?", " "))
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_QUOTED = re.compile(r'The answer is "([^"\n]*)"\.')
MAX_SIMILAR = 512
"""Characters of an answer that edit distance is measured on: it takes the product of both lengths."""


def judge_mathvista(text: str, gold: Gold) -> Verdict:
    """MathVista: extract, bring to the row's type, compare as strings.

    The published script lets a model extract; here the type's rules do, and where they find nothing the whole response
    is taken, which is right when it is a bare answer. A choice is the first letter in parentheses or a bare letter,
    else the choice with the least edit distance, so that every answer is some choice. An integer drops its decimals
    ("3.7" is 3); a float is rounded by Python's `round`, halves as the binary number has them; lists and texts must
    be written alike.
    """
    said = _QUOTED.search(text)
    found = find_answer(text, (*gold.type.extract, "whole")) if said is None else None
    answer, where = (said[1].strip(), "heading") if said else (found.text, found.rule)
    if not answer:
        return Verdict(False, None, verdict.EMPTY, where)
    if len(answer) > MAX_LENGTH:
        return Verdict(False, answer, verdict.TOO_LONG, where)
    if gold.type.kind == "choice":
        letters = _letters(gold)
        bracketed = _BRACKETED.search(answer)
        letter = bracketed[1].upper() if bracketed else answer
        if letter not in letters:
            texts = gold.type.choices
            distances = [edit_distance(letter[:MAX_SIMILAR], choice[:MAX_SIMILAR]) for choice in texts]
            letter = letters[distances.index(min(distances))]
        return _same_choice(letter, answer, gold, where)
    form = {"integer": _integer, "float": _float}.get(gold.type.kind, lambda one, precision: one)
    given, wanted = form(answer, gold.type.precision), form(gold.value, gold.type.precision)
    if given is None:
        reason = verdict.NOT_AN_INTEGER if gold.type.kind == "integer" else verdict.NOT_A_NUMBER
        return Verdict(False, answer, reason, where)
    correct = given == (gold.value if wanted is None else wanted)
    return Verdict(correct, answer, verdict.MATCH if correct else verdict.MISMATCH, where)


def judge_m3cot(text: str, gold: Gold) -> Verdict:
    """M3CoT: the last letter in parentheses behind the last "[Answer]" (the whole response without one).

    Without a letter in parentheses: of the choices whose text occurs, the one that is last in the list; else of the
    letters that stand alone the last in the list, capitals first.
    """
    if "[Answer]" in text:
        text = text.rpartition("[Answer]")[2].partition("[Rationale]")[0].partition("[Context]")[0]
    letters, lowered = _letters(gold), text.lower()
    bracketed = _BRACKETED.findall(text)
    if bracketed:
        return _same_choice(bracketed[-1].upper(), f"({bracketed[-1]})", gold, "letter")
    mentioned = [letter for letter, choice in zip(letters, gold.type.choices) if choice.lower() in lowered]
    words = set(text.translate(_STOPS).split(" "))
    capitals, small = ([one for one in letters if form(one) in words] for form in (str, str.lower))
    for found in (mentioned, capitals, small):
        if found:
            return _same_choice(found[-1], found[-1], gold, "whole")
    return Verdict(False, None, verdict.NO_ANSWER)


def judge_vlmevalkit(text: str, gold: Gold) -> Verdict:
    """VLMEvalKit's exact matching: the one letter that stands alone among the last few words, punctuation aside.

    A letter that is not among the last four words, or several letters, decide nothing. Then the one choice whose text
    the response contains, unless the response is more than twice as long as all choices together.
    """
    letters, words = _letters(gold), text.translate(_PUNCTUATION).split()
    standing = [letter for letter in letters if letter in words]
    if len(standing) == 1 and words.index(standing[0]) > len(words) - 5:
        return _same_choice(standing[0], standing[0], gold, "letter")
    lowered, choices = text.lower(), [choice.lower() for choice in gold.type.choices]
    if len(lowered) <= 2 * sum(map(len, choices)):
        contained = [letter for letter, choice in zip(letters, choices) if choice in lowered]
        if len(contained) == 1:
            return _same_choice(contained[0], text.strip(), gold, "whole")
    return Verdict(False, None, verdict.NO_ANSWER)


JUDGES: dict[str, Callable[[str, Gold], Verdict]] = {
    "mathvista": judge_mathvista,
    "m3cot": judge_m3cot,
    "vlmevalkit": judge_vlmevalkit,
}


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and replacements of characters that turn one text into the other (Levenshtein)."""
    above = list(range(len(other) + 1))
    for row, character in enumerate(one, 1):
        here = [row]
        for column, wanted in enumerate(other, 1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (character != wanted)))
        above = here
    return above[-1]


def _letters(gold: Gold) -> list[str]:
    return [chr(ord("A") + place) for place in range(len(gold.type.choices))]


def _same_choice(letter: str, answer: str, gold: Gold, where: str) -> Verdict:
    """The verdict on a choice by letter; equal texts are one choice."""
    place = ord(letter) - ord("A")
    if place >= len(gold.type.choices):
        return Verdict(False, answer, verdict.NOT_A_CHOICE, where)
    correct = answer_key(f"({letter})", gold.type).value == gold.key
    return Verdict(correct, answer, verdict.MATCH if correct else verdict.MISMATCH, where)


def _integer(text: str, precision: int | None) -> str | None:
    try:
        return str(int(float(text)))
    except (ValueError, OverflowError):
        return None


def _float(text: str, precision: int | None) -> str | None:
    try:
        return str(round(float(text), 1 if precision is None else precision))
    except (ValueError, OverflowError):
        return None
