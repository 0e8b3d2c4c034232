"""Templates of prompts: text with named places, filled without reading what goes into them.

`{question}` is a place; `{{` and `}}` stand for braces. A template is checked once, when the configuration is built;
what is put into its places (LaTeX, code, anything that a data set holds) is never searched for places of its own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

PLAIN = "{question}"
"""The question and nothing else."""
HINTED = (
    "{question}\n\nThe correct answer is: {answer}\n\nWrite a solution that arrives at it. Reason step by step, one "
    "step a paragraph, with a blank line between steps, from what the images and the question say. Never mention that "
    "the answer was known beforehand. End with the heading `# Answer`, followed by the answer alone."
)
"""The question beside its reference answer: what a model is told that is to write a solution to learn from."""
_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_IMAGE = "<image>"


def check_template(template: str, places: Sequence[str]) -> None:
    """Refuse a template that lacks one of `places`, has others, or a brace that belongs to none.

    ValueError says what is wrong and what is allowed; the caller names the key.
    """
    allowed = " and ".join(f"{{{name}}}" for name in places)
    found = []
    for part in _PART.finditer(template):
        name = part[1]
        if name is None and len(part[0]) == 1:
            raise ValueError(f"{{{{ or }}}} for a brace (one alone at character {part.start() + 1}), beside {allowed}")
        if name is not None and name not in places:
            near = difflib.get_close_matches(name, places, n=1)
            meant = f"; did you mean {{{near[0]}}}?" if near else ""
            raise ValueError(f"{allowed}, and not {{{name}}}{meant} ({{{{ and }}}} for braces)")
        found.append(name)
    if missing := [f"{{{name}}}" for name in places if name not in found]:
        raise ValueError(f"a text with {allowed}; {' and '.join(missing)} missing")
    refuse_images(template)


def refuse_images(text: str) -> None:
    """ValueError, as that of `check_template`, for a text that claims an image beside those of the problem."""
    if _IMAGE in text:
        raise ValueError(f"no {_IMAGE}: images are placed by the model's chat template, in front of the question")


def fill(template: str, **values: str) -> str:
    """The template with each place replaced by the value of its name, braces in the values as they are.

    KeyError for a place without a value: `check_template` has refused it.
    """
    return _PART.sub(lambda part: part[0][0] if part[1] is None else values[part[1]], template)
