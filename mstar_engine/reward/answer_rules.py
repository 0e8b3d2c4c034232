"""The configured rules laid over what problems say of their answers, once, when they have been read.

A problem whose answer a variant has no rule for, or whose reference answer is wrong by the variant's own rule ("1,024"
is no integer to MathVista), stays strict: a policy could not answer it. Such problems are counted and said, and a
setting that changes nothing at all is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mstar_engine.answer_type import AnswerType
from mstar_engine.config import AnswersConfig
from mstar_engine.reward.answers import bare_answer, judge_text
from mstar_engine.types import Problem


def use_answers(
    sets: Mapping[str, Sequence[Problem]], answers: AnswersConfig
) -> tuple[dict[str, Sequence[Problem]], list[str]]:
    """The problem sets, by a title, judged as `answers` says, and a line for each set of which some stay strict.

    ValueError when there is no problem that `answers.extract` or `answers.variant` could be used on.
    """
    if not answers.extract and answers.variant == "strict":
        return dict(sets), []
    if not any(problem.answer_type is not None for problems in sets.values() for problem in problems):
        key = "extract" if answers.extract else "variant"
        said = f"[{', '.join(answers.extract)}]" if answers.extract else answers.variant
        raise ValueError(
            f"answers.{key}={said}: no problem says what kind of answer it has, so all are judged by exact match; "
            f"allowed: {'[]' if answers.extract else 'strict'}, or data whose rows have a type (answer_type, choices)"
        )
    found, lines, judged = {}, [], 0
    for title, problems in sets.items():
        found[title], strict = with_rules(problems, answers)
        judged += sum(problem.answer_type is not None for problem in found[title]) - strict.total()
        if strict:
            counts = ", ".join(f"{what} {count:,}" for what, count in strict.most_common())
            lines.append(
                f"answers.variant={answers.variant}, {title}: {strict.total():,} of {len(found[title]):,} problems "
                f"stay strict ({counts})"
            )
    if not judged:
        raise ValueError(f"answers.variant={answers.variant}: it can judge no problem; allowed: strict. {lines[0]}")
    return found, lines


def with_rules(problems: Sequence[Problem], answers: AnswersConfig) -> tuple[list[Problem], Counter[str]]:
    """The problems judged as `answers` says; how many of those that have a type the variant cannot judge, by what
    stands in its way."""
    types: dict[AnswerType, tuple[AnswerType, AnswerType | None]] = {}
    found, strict = [], Counter()
    for problem in problems:
        if problem.answer_type is not None:
            if problem.answer_type not in types:
                types[problem.answer_type] = _types(problem.answer_type, answers)
            plain, chosen = types[problem.answer_type]
            said = _in_the_way(problem, chosen)
            if said is not None:
                chosen = plain
                strict[said] += 1
            problem = replace(problem, answer_type=chosen)
        found.append(problem)
    return found, strict


def _types(answer_type: AnswerType, answers: AnswersConfig) -> tuple[AnswerType, AnswerType | None]:
    """The type with the configured extraction, and with the variant as well: None where the variant has no rule."""
    # What is no choice has no letters to find.
    rules = [rule for rule in answers.extract if rule != "letter" or answer_type.kind == "choice"]
    plain = replace(answer_type, extract=tuple(rules) or answer_type.extract)
    try:
        return plain, plain if answers.variant == "strict" else replace(plain, variant=answers.variant)
    except ValueError:
        return plain, None


def _in_the_way(problem: Problem, chosen: AnswerType | None) -> str | None:
    kind = problem.answer_type.kind
    if chosen is None:
        return "choice without its texts" if kind == "choice" else kind
    if chosen.variant == "strict" or problem.gold is None:
        return None
    right = judge_text(bare_answer(problem.gold, chosen), problem.gold, chosen).correct
    return None if right else f"{kind} that its own rule refuses"
