"""The data sets that the engine knows by name: a table of what their columns mean.

Column names as the published files have them. The subsets kept by default are those of the paper's evaluation.
"""

from __future__ import annotations

import re
from typing import Any

from mstar_engine.data.conversations import conversation, mathv360k
from mstar_engine.data.flaw import Flaw
from mstar_engine.data.gold import LETTERS, is_absent
from mstar_engine.data.record import Format, Record


def _ask(question: Any, choices: Any, context: Any = None) -> Any:
    """The question with what it is about in front and its choices behind."""
    if not isinstance(question, str):
        return question
    lines = [f"Context: {context.strip()}"] if isinstance(context, str) and context.strip() else []
    lines.append(question)
    if isinstance(choices, list) and choices:
        lines += ["Choices:", *(f"({letter}) {text}" for letter, text in zip(LETTERS, choices))]
    return "\n".join(lines)


def _mathvista(row: dict[str, Any], record: Record) -> Record:
    # "answer_type" is that of the answer's text; whether it is a choice stands elsewhere.
    if row.get("question_type") == "multi_choice":
        record.answer_type, record.names["answer_type"] = "choice", "question_type"
    else:
        record.choices = None
    return record


def _m3cot(row: dict[str, Any], record: Record) -> Record:
    record.question = _ask(record.question, record.choices, row.get("context"))
    return record


_LISTED = re.compile(r"(?:^|,|\n)\s*([A-Z]):\s")


def _listed(question: Any) -> list[str] | None:
    """The choices behind the last "Options:", as in "Options: A: a cat, B: a dog"; None where they are not so listed:
    every letter once, in order, with a text. Then only letters are known."""
    _, options, said = question.rpartition("Options:") if isinstance(question, str) else ("", "", "")
    marks = list(_LISTED.finditer(said))
    letters = "".join(mark[1] for mark in marks)
    if not options or len(marks) < 2 or letters != LETTERS[: len(marks)] or said[: marks[0].start()].strip():
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(said)]
    texts = [said[mark.end() : end].strip() for mark, end in zip(marks, ends)]
    return texts if all(texts) else None


def _mmstar(row: dict[str, Any], record: Record) -> Record:
    """The choices stand in the question."""
    record.answer_type, record.choices = "choice", _listed(record.question)
    return record


def _mmbench(row: dict[str, Any], record: Record) -> Record:
    columns = [letter for letter in LETTERS if not is_absent(row.get(letter))]
    if columns != list(LETTERS[: len(columns)]):
        raise Flaw("bad choices", "".join(columns), "choices with a gap between their letters")
    record.choices = [row[letter] for letter in columns]
    record.question = _ask(record.question, record.choices, row.get("hint"))
    record.base64 = True
    return record


def _ai2d(row: dict[str, Any], record: Record) -> Record:
    """The gold is a choice's place, counted from 0."""
    place, count = record.gold, len(record.choices) if isinstance(record.choices, list) else 0
    if isinstance(place, str) and place.isdecimal():
        place = int(place)
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < count:
        raise Flaw("bad gold", record.names["gold"], f"{record.gold!r}; allowed: 0 to {count - 1}")
    record.gold, record.answer_type = LETTERS[place], "choice"
    record.question = _ask(record.question, record.choices)
    return record


_TYPED = {"choices": "choices|options", "answer_type": "answer_type", "precision": "precision", "unit": "unit"}
_TURNS = {"id": "id", "question": "conversations|messages", "images": "image|images"}

FORMATS: dict[str, Format] = {
    "rows": Format(
        about="one problem a row, by the field map",
        columns={
            "id": "id",
            "question": "question",
            "images": "images|image",
            "gold": "answer",
            **_TYPED,
            "category": "category|source",
            "response": "response",
        },
    ),
    "llava": Format(about="LLaVA or ShareGPT conversations, or chat messages", columns=_TURNS, interpret=conversation),
    "mathv360k": Format(about="MathV360K: conversations with typed golds", columns=_TURNS, interpret=mathv360k),
    "mathvista": Format(
        about="MathVista (testmini)",
        columns={
            "id": "pid",
            "question": "query|question",
            "images": "decoded_image|image",
            "gold": "answer",
            **_TYPED,
            "category": "metadata.task",
        },
        interpret=_mathvista,
        category_names={
            "figure question answering": "FQA",
            "geometry problem solving": "GPS",
            "math word problem": "MWP",
            "textbook question answering": "TQA",
            "visual question answering": "VQA",
        },
        categories=(
            "figure question answering",
            "geometry problem solving",
            "math word problem",
            "textbook question answering",
            "visual question answering",
        ),
        published="mathvista",
    ),
    "m3cot": Format(
        about="M3CoT",
        columns={
            "id": "id",
            "question": "question",
            "images": "image",
            "gold": "answer",
            "choices": "choices",
            "category": "domain",
        },
        interpret=_m3cot,
        categories=("science", "commonsense", "mathematics"),
        published="m3cot",
    ),
    "mmstar": Format(
        about="MMStar, its reasoning subsets",
        columns={"id": "index", "question": "question", "images": "image", "gold": "answer", "category": "category"},
        interpret=_mmstar,
        categories=(
            "coarse perception",
            "fine-grained perception",
            "instance reasoning",
            "logical reasoning",
            "math",
            "science & technology",
        ),
        kept=("instance reasoning", "logical reasoning", "math", "science & technology"),
        published="vlmevalkit",
    ),
    "mmbench": Format(
        about="MMBench (dev), its reasoning subsets",
        columns={
            "id": "index",
            "question": "question",
            "images": "image",
            "gold": "answer",
            "category": "l2-category|l2_category",
        },
        interpret=_mmbench,
        categories=(
            "attribute_reasoning",
            "logic_reasoning",
            "relation_reasoning",
            "coarse_perception",
            "finegrained_perception (instance-level)",
            "finegrained_perception (cross-instance)",
        ),
        kept=("attribute_reasoning", "logic_reasoning", "relation_reasoning"),
        published="vlmevalkit",
    ),
    "ai2d": Format(
        about="AI2D",
        columns={"id": "id", "question": "question", "images": "image", "gold": "answer", "choices": "options|choices"},
        interpret=_ai2d,
        published="vlmevalkit",
    ),
}
FORMATS["sharegpt"] = FORMATS["llava"]
