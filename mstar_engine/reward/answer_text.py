"""Answers as characters: what is invisible or a mere variant of a character goes, and so does markup around the whole.

Nothing here drops a visible word. Compatibility normalisation (NFKC) is not used: it turns "3½" into "31⁄2" and "10²"
into "102". Every function takes time linear in the text.
"""

from __future__ import annotations

import re
import unicodedata

MAX_LENGTH = 4096
"""Characters of an answer that is still read; a longer one is wrong, whatever it says."""
# Full-width forms of ASCII, the dashes that stand for a minus sign, other slashes and Arabic separators.
_TABLE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_TABLE |= str.maketrans("\u2212\u2013\ufe63\u2010\u2011\u2044\u2215\u066b\u066c", "-----//.,")
_WRAPPERS = ("**", "__", "$$", "$", "*", "`")
_BRACKETS = (("\\(", "\\)"), ("\\[", "\\]"), ("\\boxed{", "}"), ("\\fbox{", "}"), ("\\text{", "}"), ("\\mathrm{", "}"),
             ("\\textbf{", "}"), ("\\mathbf{", "}"))  # fmt: skip


def clean(text: str) -> str:
    """The text with plain characters: NFC, ASCII for full-width forms, digits of any script and dashes; no invisible
    characters (format and control); white space collapsed and stripped."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", "".join(map(_plain, text.translate(_TABLE))))
    return " ".join(text.split())


def _plain(character: str) -> str:
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    # Format characters: zero-width spaces and joiners, directional marks, soft hyphens, byte order marks.
    return "" if unicodedata.category(character) == "Cf" else character


def strip_markup(text: str) -> str:
    """A cleaned text without emphasis, math delimiters, a box or a font command around all of it, and without one
    trailing dot."""
    for _ in range(8):  # Nesting deeper than this is no answer's.
        before = text
        text = _unwrap(text.removesuffix(".").rstrip() if not text.endswith("..") else text)
        if text == before:
            break
    return text


def _unwrap(text: str) -> str:
    for mark in _WRAPPERS:
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            inner = text[len(mark) : -len(mark)]
            if mark not in inner.replace("\\$", "") and not inner.endswith("\\"):
                return inner.strip()
    for begin, end in _BRACKETS:
        if text.startswith(begin) and text.endswith(end):
            inner = text[len(begin) : -len(end)]
            if end == "}" and not balanced(inner):
                continue
            if end != "}" and begin in inner:
                continue
            return inner.strip()
    return text


def balanced(text: str) -> bool:
    """Whether every brace closes one that is open, escaped braces aside."""
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth < 0:
            return False
    return depth == 0
