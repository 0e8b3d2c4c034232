"""Verdicts on answers, beside math-verify on the same responses.

Responses end in "The answer is ..." behind some 300 characters of steps, as a policy writes them; half of them are
right. Ours reads each response whole, finds the answer and compares it by its type; the peer parses the response with
the extraction that fits and verifies, in this process, without its time limits, which are signals. Every turn judges
the same responses, so what either side keeps of earlier ones (parsed expressions, keys of choices) helps it. Without
math-verify, exact match stands in for the peer. LaTeX by ours goes through a worker process, one comparison at a time.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.harness import Row, Side, compare, main
from mstar_engine.answer_type import AnswerType
from mstar_engine.reward import latex
from mstar_engine.reward.answers import judge_text
from mstar_engine.reward.golds import Gold
from mstar_engine.reward.typed import judge_typed

CHOICES = ("a red square", "a blue circle", "a green triangle", "none of these")
STEPS = "Step 1: The first tile shows 3 and the second {}.\nStep 2: Together they are {}, as x + y = {}.\n" * 3
Pair = tuple[str, Gold]


def choices(count: int, random: random.Random) -> list[Pair]:
    kind = AnswerType(kind="choice", choices=CHOICES)
    forms = ("({0})", "{0}", "{0}.", "**{0}**", "({0}) {1}", "{1}")
    pairs = []
    for _ in range(count):
        place, right = random.randrange(4), random.random() < 0.5
        said = place if right else (place + 1) % 4
        pairs.append((random.choice(forms).format("ABCD"[said], CHOICES[said]), Gold("ABCD"[place], kind)))
    return pairs


def integers(count: int, random: random.Random) -> list[Pair]:
    kind, pairs = AnswerType(kind="integer", units=("cm",)), []
    for _ in range(count):
        value = random.randrange(10**6)
        said = value + (random.random() < 0.5)
        pairs.append((random.choice(("{}", "{:,}", "{}.0", "${}$", "{} cm")).format(said), Gold(str(value), kind)))
    return pairs


def floats(count: int, random: random.Random) -> list[Pair]:
    kind, pairs = AnswerType(kind="float", precision=2, percent=True), []
    for _ in range(count):
        value = random.randrange(10**5)
        said = value + (random.random() < 0.5)
        forms = (f"{said / 100:.2f}", f"{said / 100:.4f}", f"\\frac{{{said}}}{{100}}", f"{said}%", f"{said}/100")
        pairs.append((random.choice(forms), Gold(f"{value / 100:.2f}", kind)))
    return pairs


def formulas(count: int, random: random.Random) -> list[Pair]:
    kind, pairs = AnswerType(kind="latex"), []
    for _ in range(count):
        a, b = random.randrange(1, 999), random.randrange(1, 999)
        said = a + (random.random() < 0.5)
        pairs.append((f"$x^2 + {said + b}x + {said * b}$", Gold(f"(x+{a})(x+{b})", kind)))
    return pairs


def responses(pairs: list[Pair], random: random.Random) -> list[Pair]:
    return [(f"{STEPS.format(*random.choices(range(99), k=9))}The answer is {said}.", gold) for said, gold in pairs]


def ours(cases: list[Pair]) -> int:
    return sum(judge_typed(text, gold).correct for text, gold in cases)


def exact(cases: list[Pair]) -> int:
    return sum(judge_text(text, gold.value).correct for text, gold in cases)


def math_verify(cases: list[Pair], letters: bool) -> int:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    found = (StringExtractionConfig(),) if letters else (LatexExtractionConfig(), ExprExtractionConfig())
    right = 0
    for text, gold in cases:
        value = gold.value if letters or gold.type.kind != "latex" else f"${gold.value}$"
        wanted = parse(value, extraction_config=found, parsing_timeout=None)
        right += verify(wanted, parse(text, extraction_config=found, parsing_timeout=None), timeout_seconds=None)
    return right


def rows(quick: bool) -> Iterator[Row]:
    subjects: list[tuple[str, int, Callable[[int, random.Random], list[Pair]]]] = [
        ("choices", 500, choices),
        ("integers with a unit", 500, integers),
        ("floats, precision 2, percent", 500, floats),
        ("LaTeX, one worker", 50, formulas),
    ]
    for subject, count, make in subjects:
        if make is formulas and not latex.installed():
            continue
        draws = random.Random(subject)
        cases = responses(make(count // (10 if quick else 1), draws), draws)
        peer = Side("exact match", partial(exact, cases))
        if latex.installed():
            peer = Side("math-verify", partial(math_verify, cases, make is choices))
        work = len(cases)
        yield compare(
            subject, Side("mstar_engine", partial(ours, cases)), peer, unit="verdicts/s",
            per_second=lambda seconds, work=work: work / seconds, repeats=1 if quick else 5, higher_is_better=True,
        )  # fmt: skip


if __name__ == "__main__":
    main("answers", rows)
