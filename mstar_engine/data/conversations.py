"""Rows that are a conversation: LLaVA's and ShareGPT's turns, chat messages, and MathV360K, which comes as such.

The first message to the model is the question, with one `<image>` for each image; the answer to it is the gold.
"""

from __future__ import annotations

import re
from typing import Any

from mstar_engine.data.flaw import Flaw, shown
from mstar_engine.data.record import Record

_ROLES = {"human": "user", "user": "user", "gpt": "model", "assistant": "model", "model": "model", "system": "system"}
_ANSWER_IS = re.compile(r"(?:the\s+)?(?:final\s+|correct\s+)?answer\s+is\s*:?\s*", re.IGNORECASE)
_CHOICE_LINE = re.compile(r"^\s*\(([A-Z])\)[ \t]*(.*?)\s*$", re.MULTILINE)
_LEADING_IMAGES = re.compile(r"((?:\s*<image>\s*)*)(.*)", re.DOTALL)
_HINT = re.compile(r"Hint:(.*?)(?:\n|$)", re.IGNORECASE)
_DECIMALS = {"one": 1, "two": 2, "three": 3, "four": 4}


def conversation(row: dict[str, Any], record: Record) -> Record:
    """The record of a row of one exchange: `question`, and `gold` and `response` from the answer to it."""
    column = record.names["question"]
    question, answer = _exchange(record.question, column)
    record.question, record.gold, record.response = question, answer, answer
    record.placed = True
    record.names |= {"gold": column, "response": column}
    return record


def mathv360k(row: dict[str, Any], record: Record) -> Record:
    """As `conversation`; the answer without "The answer is", typed by the hint in front of the question."""
    record = conversation(row, record)
    question, answer = record.question, record.gold
    if isinstance(answer, str):
        found = list(_ANSWER_IS.finditer(answer))
        record.gold = answer[found[-1].end() :].strip().removesuffix(".") if found else answer
    choices = _CHOICE_LINE.findall(question.partition("Choices:")[2])
    hint = _HINT.search(question)
    said = hint[1].casefold() if hint else ""
    if choices or "option letter" in said:
        letters = [letter for letter, _ in choices]
        if letters != sorted(set(letters)) or (letters and letters != [chr(65 + i) for i in range(len(letters))]):
            raise Flaw("bad choices", record.names["question"], f"choices {', '.join(letters)}; allowed: A, B, C, ...")
        # A choice that a picture shows has no text of its own.
        record.choices = [text for _, text in choices] if all(text for _, text in choices) else None
        record.answer_type = "choice"
    elif "integer" in said:
        record.answer_type = "integer"
    elif "floating-point" in said or "decimal place" in said:
        record.answer_type = "float"
        places = re.search(r"(one|two|three|four|\d+) decimal", said)
        if places:
            record.precision = _DECIMALS.get(places[1]) or int(places[1])
    elif "python list" in said:
        record.answer_type = "list"
    return record


def _exchange(turns: Any, column: str) -> tuple[str, Any]:
    """(question, answer) of a conversation of one exchange; what a system message says goes in front."""
    if not isinstance(turns, list) or not turns:
        raise Flaw("bad question", column, f"{shown(turns)} is no list of turns")
    told, texts = "", {"user": [], "model": []}
    for place, turn in enumerate(turns):
        role, text = _turn(turn, column)
        if role == "system":
            if place:
                raise Flaw("bad question", column, "a system message behind another")
            told = text
        else:
            texts[role].append(text)
            if role != ("user", "model")[(place - bool(told)) % 2]:
                raise Flaw("bad question", column, f"turn {place + 1} is the {role}'s; allowed: user and model in turn")
    if len(texts["user"]) > 1:
        raise Flaw("several questions", column, f"{len(texts['user'])} questions; allowed: one a problem")
    if not texts["user"]:
        raise Flaw("bad question", column, "no question")
    images, said = _LEADING_IMAGES.match(texts["user"][0]).groups()
    return images + "\n".join(filter(None, (told, said))), texts["model"][0] if texts["model"] else None


def _turn(turn: Any, column: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise Flaw("bad question", column, f"{shown(turn)} is no turn")
    said = turn.get("from", turn.get("role"))
    role = _ROLES.get(said.casefold()) if isinstance(said, str) else None
    if role is None:
        raise Flaw("bad question", column, f"a turn of {shown(said)}; allowed: {', '.join(_ROLES)}")
    text = turn.get("value", turn.get("content"))
    if isinstance(text, list):  # parts, as chat templates take them
        text = "".join(_part(part, column) for part in text)
    if not isinstance(text, str):
        raise Flaw("bad gold" if role == "model" else "bad question", column, f"{shown(text)} is no text")
    return role, text


def _part(part: Any, column: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image":
        return "<image>\n"
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise Flaw("bad question", column, f"{shown(part)} is neither text nor an image")
