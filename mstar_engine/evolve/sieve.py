"""What of the responses to hinted prompts is fit to learn from, and what became of the others: each has one fate.

A right answer is not enough where the answer was known: a response must also read as if it had not been, and reason.
Fates are a function of the group alone, so an interrupted warm-up keeps what an undisturbed one would have kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mstar_engine.answer_type import AnswerType
from mstar_engine.config import RunConfig
from mstar_engine.reward.extract import find_answer
from mstar_engine.reward.steps import step_spans
from mstar_engine.reward.typed import find_typed
from mstar_engine.types import Group, Response

UNFINISHED = "unfinished"
NO_ANSWER = "no answer"
WRONG = "wrong answer"
GIVEN_AWAY = "given away"
TOO_SHORT = "too few steps"
REPEATED = "repeated"
SURPLUS = "surplus"
KEPT = "kept"
FATES = (UNFINISHED, NO_ANSWER, WRONG, GIVEN_AWAY, TOO_SHORT, REPEATED, SURPLUS, KEPT)
"""In the order in which they are tried; from GIVEN_AWAY on the answer is right."""
RIGHT = FATES[FATES.index(GIVEN_AWAY) :]
# A line that only announces the answer, or gives a part its title.
_TITLE = re.compile(r"\s*(?:#.*|\W*(?:the )?(?:final |correct )?answer\W*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sieve:
    """`refuse`: phrases that give the hint away, whatever their case and white space. `min_steps`: steps before the
    answer, at `delimiter`. `keep`: responses of a problem, at most."""

    refuse: tuple[str, ...]
    min_steps: int
    keep: int
    delimiter: str

    @classmethod
    def of(cls, config: RunConfig) -> Sieve:
        """That of a run's warm-up."""
        warmup = config.warmup
        phrases = tuple(_plain(phrase) for phrase in warmup.refuse)
        return cls(refuse=phrases, min_steps=warmup.min_steps, keep=warmup.keep, delimiter=config.steps.delimiter)

    def sift(self, group: Group) -> tuple[Group, list[str]]:
        """A judged group with `selected` on what is kept, and the fate of each response in order.

        Of equal texts (white space around them aside) and of more than `keep` the first samples are kept: samples are
        alike before they are drawn.
        """
        seen: set[str] = set()
        fates: list[str] = []
        for response in group.responses:
            fate = self._fate(response, group.problem.answer_type)
            if fate == KEPT:
                text = response.text.strip()
                fate = REPEATED if text in seen else SURPLUS if len(seen) >= self.keep else KEPT
                seen |= {text} if fate == KEPT else set()
            fates.append(fate)
        kept = (replace(response, selected=fate == KEPT) for response, fate in zip(group.responses, fates))
        return replace(group, responses=tuple(kept)), fates

    def _fate(self, response: Response, kind: AnswerType | None) -> str:
        """What becomes of a response by itself."""
        if response.finish_reason != "stop":
            return UNFINISHED
        if not response.correct:
            return NO_ANSWER if response.answer is None else WRONG
        if gives_away(response.text, self.refuse):
            return GIVEN_AWAY
        return KEPT if steps_before_answer(response.text, kind, self.delimiter) >= self.min_steps else TOO_SHORT


def gives_away(text: str, phrases: Iterable[str]) -> bool:
    """Whether a text has one of the phrases, which are in lower case with single spaces."""
    plain = _plain(text)
    return any(phrase in plain for phrase in phrases)


def steps_before_answer(text: str, kind: AnswerType | None, delimiter: str) -> int:
    """Steps above the line on which the answer begins; titles, "# Answer" among them, are none.

    Where no rule of the type finds the answer (those of a variant may), it is taken to be on the last line.
    """
    found = find_answer(text, ("section",)) if kind is None else find_typed(text, kind)
    text = text.rstrip()
    begin = len(text) if found is None or found.rule == "whole" else found.begin
    above = text[:begin].rpartition("\n")[0]
    pieces = (above[first:last].strip() for first, last in step_spans(above, delimiter))
    return sum(not all(_TITLE.fullmatch(line) for line in piece.splitlines()) for piece in pieces)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
