"""Which reference answers no verdict can rest on: found before a run starts, so that none is found in the middle of it.

LaTeX costs some milliseconds a formula (math-verify parses it in a worker process), so each formula is read once, and
one that is a plain number not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from mstar_engine.reward import latex, verdict
from mstar_engine.reward.answers import normalise
from mstar_engine.reward.golds import Gold
from mstar_engine.types import Problem

_NUMBER = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?")


def refuse_unreadable(problems: Iterable[Problem], what: str) -> None:
    """ValueError with the count and the first of the problems whose reference answer their type cannot read, or whose
    answers cannot be compared for want of math-verify."""
    problems = [problem for problem in problems if problem.answer_type is not None]
    kinds = {problem.answer_type.kind for problem in problems}
    if "latex" in kinds and not latex.installed():
        wrong = [problem for problem in problems if problem.answer_type.kind == "latex"]
        raise ValueError(f"{what}: {len(wrong)} reference answers cannot be used: {wrong[0].id} ({latex.MISSING})")
    wrong = [(problem, said) for problem, said in zip(problems, unusable(problems)) if said is not None]
    if wrong:
        first, said = wrong[0]
        raise ValueError(f"{what}: {len(wrong)} reference answers cannot be used: {first.id} ({said})")


def unusable(problems: Sequence[Problem]) -> list[str | None]:
    """What is wrong with the reference answer of each problem; None where nothing is, or where there is none.

    ValueError for LaTeX without math-verify, which no row can help.
    """
    found, formulas = [], []
    for problem in problems:
        said = None
        if problem.answer_type is None and problem.gold is not None and not normalise(problem.gold):
            said = f"reference answer {problem.gold!r}: {verdict.EMPTY}; needed: something that an answer can match"
        elif problem.answer_type is not None and problem.gold is not None:
            try:
                gold = Gold(problem.gold, problem.answer_type)
            except ValueError as error:
                if problem.answer_type.kind == "latex":
                    latex.require()
                said = str(error)
            else:
                if problem.answer_type.kind == "latex" and not _NUMBER.fullmatch(gold.key):
                    formulas.append((len(found), gold.key))
        found.append(said)
    for (place, _), said in zip(formulas, latex.side_by_side(_read, [key for _, key in formulas])):
        if said != verdict.MATCH:
            found[place] = f"reference answer {problems[place].gold[:60]!r}: {said}; needed: a formula"
    return found


@lru_cache(maxsize=1 << 20)
def _read(formula: str) -> str:
    return latex.workers().read(formula)
