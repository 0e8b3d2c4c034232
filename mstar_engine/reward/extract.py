"""Where a response's answer stands: named rules, tried in order, the last occurrence of each.

`section`  what follows the last `# Answer` heading, to the end of the response (the digits task's rule)
`heading`  what follows the last "Final Answer:", "Answer:" or "the answer is", to the end of its line; the next line
           that says something where that one says nothing
`boxed`    what is in the last \\boxed{} or \\fbox{} whose braces close
`letter`   the last choice letter that stands as one: "(B)", "B.", "B:", "B)", "B" at the end of a line
`whole`    the whole response

Nothing is guessed: a rule that finds nothing leaves the word to the next. All take time linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mstar_engine.answer_type import EXTRACTION_RULES, STRICT_EXTRACTION

_SECTION = re.compile(r"^[ \t]{0,8}#{1,6}[ \t]{0,8}answer\b[ \t]{0,8}:?", re.IGNORECASE | re.MULTILINE)
_HEADING = re.compile(
    # At the beginning of a line, with a colon or alone on its line; or as a phrase.
    r"^[ \t]{0,8}(?:#{1,6}[ \t]{0,8}|>[ \t]?|[-*][ \t])?[*_]{0,3}(?:the[ \t])?(?:final[ \t]|correct[ \t])?"
    r"answer[*_]{0,3}[ \t]{0,8}(?:[:\uff1a][*_]{0,3}|$)"
    r"|\b(?:the|my)[ \t](?:final[ \t]|correct[ \t])?answer[ \t]is(?!\w)[ \t]?:?",
    re.IGNORECASE | re.MULTILINE,
)
_BRACE = re.compile(r"\\(?:boxed|fbox)[ \t]{0,8}\{|\\[^\n]|[{}]")
_LETTER = re.compile(
    r"\(([A-Z])\)|\[([A-Z])\]"
    r"|(?<![\w'\u2019-])([A-Z])(?=[.:)](?:\s|$|[*_])|[*_]{1,3}(?:\W|$)|[ \t]{0,8}$)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Found:
    """An answer in a response: `text`, stripped, may be empty; `rule` found it at characters `begin` to `end`."""

    text: str
    rule: str
    begin: int
    end: int


def _found(text: str, rule: str, begin: int, end: int) -> Found:
    inner = text[begin:end]
    begin += len(inner) - len(inner.lstrip())
    inner = inner.strip()
    return Found(inner, rule, begin, begin + len(inner))


def _last(matches: Iterator[re.Match]) -> re.Match | None:
    last = None
    for last in matches:  # noqa: B007  (the last of an iterator)
        pass
    return last


def _section(text: str, choices: int) -> Found | None:
    last = _last(_SECTION.finditer(text))
    return None if last is None else _found(text, "section", last.end(), len(text))


def _heading(text: str, choices: int) -> Found | None:
    last = _last(_HEADING.finditer(text))
    if last is None:
        return None
    begin, end = last.end(), _line_end(text, last.end())
    # Emphasis that was opened before the heading and closes behind the answer belongs to neither.
    while not text[begin:end].strip(" \t*_") and end < len(text):
        begin, end = end + 1, _line_end(text, end + 1)
    found = _found(text, "heading", begin, end)
    opened = re.match(r"\W*?([*_]{1,3})\w", last[0])
    if opened and found.text.endswith(opened[1]) and opened[1] not in found.text[: -len(opened[1])]:
        found = _found(text, "heading", found.begin, found.end - len(opened[1]))
    return found


def _line_end(text: str, begin: int) -> int:
    end = text.find("\n", begin)
    return len(text) if end < 0 else end


def _boxed(text: str, choices: int) -> Found | None:
    open_boxes: list[int | None] = []
    last = None
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            open_boxes.append(None)
        elif brace[0] == "}":
            begin = open_boxes.pop() if open_boxes else None
            if begin is not None:
                last = (begin, brace.start())
        elif brace[0].endswith("{") and len(brace[0]) > 2:
            open_boxes.append(brace.end())
    return None if last is None else _found(text, "boxed", *last)


def _letter(text: str, choices: int) -> Found | None:
    last = None
    for match in _LETTER.finditer(text):
        if ord(match[match.lastindex]) - ord("A") < choices:
            last = match
    return None if last is None else _found(text, "letter", *last.span(last.lastindex))


def _whole(text: str, choices: int) -> Found | None:
    return _found(text, "whole", 0, len(text))


RULES: dict[str, Callable[[str, int], Found | None]] = {
    "section": _section,
    "heading": _heading,
    "boxed": _boxed,
    "letter": _letter,
    "whole": _whole,
}
assert tuple(RULES) == EXTRACTION_RULES


def find_answer(text: str, rules: tuple[str, ...] = STRICT_EXTRACTION, choices: int = 0) -> Found | None:
    """The answer of the first rule that finds one; an empty one where the rules find nothing else; None for nothing.

    `choices` is how many letters there are; 0: all. KeyError for an unknown rule.
    """
    empty = None
    for rule in rules:
        found = RULES[rule](text, choices or 26)
        if found is not None and found.text:
            return found
        empty = empty or found
    return empty
