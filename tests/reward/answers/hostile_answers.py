"""Judges very long and very repetitive responses under every kind and variant; `test_hostile_answers` runs it."""

from __future__ import annotations

from mstar_engine.answer_type import EXTRACTION_RULES, VARIANTS, AnswerType
from mstar_engine.reward.answers import judge_text
from mstar_engine.reward.extract import find_answer
from mstar_engine.reward.golds import Gold
from mstar_engine.reward.typed import judge_typed
from mstar_engine.reward.verdict import REASONS

LENGTH = 100_000
PIECES = [
    *'aA \n\t(){}\\#*_$`.-+½１٣é𝟙🅱%°[,;"\x00\u200b\u202e\u0301\ud800',
    *("(A) ", "A. ", "\\boxed{", "\\boxed{}", "\\boxed", "# ", "# Answer\n", "Answer:", "Answer:\n", "answer is "),
    *("the answer is ", "**", "**Answer", "> ", "1", "1,", "1,000", "1/", "1e", "..", "\\frac{", "\\frac{1}{2}"),
    *("e\u0301", "[1, ", 'The answer is "', "[Answer]", "option ", "\\text{", "\\("),
]
CHOICES = ("a cat", "a dog", "1", "12")
TYPES = [
    AnswerType(kind="choice"),
    AnswerType(kind="integer", units=("cm", "$")),
    AnswerType(kind="float", percent=True, precision=2),
    AnswerType(kind="text"),
    AnswerType(kind="list"),
    AnswerType(kind="list", items="float", ordered=False),
    *(AnswerType(kind="choice", choices=CHOICES, variant=variant, extract=EXTRACTION_RULES) for variant in VARIANTS),
]


def main() -> None:
    """Judge them all."""
    golds = [Gold("A" if kind.kind == "choice" else "12", kind) for kind in TYPES]
    for piece in PIECES:
        long = piece * (LENGTH // len(piece))
        short = piece * (4096 // len(piece))
        for rule in EXTRACTION_RULES:
            find_answer(long, (rule,))
        judge_text(long, "12")
        for gold in golds:
            for text in (long, *(f"{before}{short}}}" for before in ("# Answer\n", "Answer: ", "\\boxed{"))):
                verdict = judge_typed(text, gold)
                assert verdict.reason in REASONS, (piece, gold, verdict)


if __name__ == "__main__":
    main()
