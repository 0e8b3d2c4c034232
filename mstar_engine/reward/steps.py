"""A response's steps: the units that a process reward model scores.

A delimiter ends a step: a blank line, a newline, or a marker such as "<step>". Steps tile the text. Every step has
content, that is, something beside delimiters and white space: a piece without content belongs to the step before it,
at the beginning to the first step. Steps are found in the text and given as ends of generated tokens; nothing is
tokenised again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from mstar_engine.reward.offsets import decode, token_spans


def step_spans(text: str, delimiter: str = "\n\n", max_steps: int = 0) -> list[tuple[int, int]]:
    """The characters [begin, end) of each step; [] for a text without content.

    A step reaches over the delimiter that follows it to the first character of the next step that isn't white space.
    `max_steps` above 0 merges n steps to at most that many: merged step j takes steps j*n//m to (j+1)*n//m - 1, so that
    their numbers differ by one at most.
    """
    if not delimiter:
        raise ValueError("delimiter=''; allowed: any text that is not empty")
    if max_steps < 0:
        raise ValueError(f"max_steps={max_steps}; allowed: 0 (no limit) or more")
    begins, at = [], 0
    for piece in text.split(delimiter):
        if content := piece.lstrip():
            begins.append(at + len(piece) - len(content))
        at += len(piece) + len(delimiter)
    if not begins:
        return []
    begins[0] = 0
    if 0 < max_steps < len(begins):
        begins = [begins[j * len(begins) // max_steps] for j in range(max_steps)]
    return list(zip(begins, [*begins[1:], len(text)], strict=True))


def step_ends(
    token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, delimiter: str = "\n\n", max_steps: int = 0
) -> tuple[int, ...]:
    """The token at which each step ends (exclusive), strictly ascending; () for a response without content.

    A token belongs to the step in which its first character lies that isn't white space: white space before a step
    belongs to the step before, but tokenizers write it in front of the step's first word. A token of white space alone
    belongs where it begins. A step that is left without tokens with content of its own merges with the step before it.
    Special tokens at the very end (end of turn, padding) belong to no step, unless the delimiter contains them; special
    tokens elsewhere are text.
    """
    ids = _content(token_ids, tokenizer, delimiter)
    text, spans = token_spans(ids, tokenizer)
    begins = [_first_visible(text, *span) for span in spans]
    ends: list[int] = []
    begin = 0
    for _, boundary in step_spans(text, delimiter, max_steps):
        end = bisect_left(begins, boundary) if boundary < len(text) else len(ids)
        if end > begin and step_spans(text[spans[begin][0] : spans[end - 1][1]], delimiter):
            ends.append(end)
        elif ends:
            ends[-1] = end
        begin = ends[-1] if ends else 0
    return tuple(ends)


def step_texts(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> list[str]:
    """The text of each step's tokens. Joined, they are the text of the tokens up to the last end."""
    text, spans = token_spans(token_ids[: ends[-1]] if len(ends) else [], tokenizer)
    begins = [begin for begin, _ in spans] + [len(text)]
    return [text[begins[a] : begins[b]] for a, b in zip([0, *ends[:-1]], ends, strict=True)] if len(ends) else []


def check_steps(step_ends: Sequence[int], num_tokens: int, where: str) -> None:
    """ValueError, beginning with `where`, unless the ends strictly ascend from 1 at least to `num_tokens` at most."""
    if len(step_ends) == 0:
        raise ValueError(f"{where}: no step; allowed: 1 step or more")
    before = 0
    for step, end in enumerate(step_ends):
        if not before < end <= num_tokens:
            raise ValueError(f"{where}: step {step} ends at token {end}; allowed: {before + 1} to {num_tokens}")
        before = end


def check_labels(labels: Sequence[float], step_ends: Sequence[int], where: str) -> None:
    """ValueError, beginning with `where`, unless there is one label in [0, 1] a step."""
    if len(labels) != len(step_ends):
        raise ValueError(f"{where}: {len(labels)} labels for {len(step_ends)} steps; allowed: one a step")
    for step, label in enumerate(labels):
        if label is None or not 0.0 <= label <= 1.0:
            raise ValueError(f"{where}: step {step} has label {label}; allowed: 0 to 1")


def check_texts(texts: Sequence[str], where: str) -> None:
    """ValueError, beginning with `where`, when a step's text is all white space."""
    for step, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"{where}: step {step} is {text!r}; allowed: a step with more than white space")


def _content(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, delimiter: str) -> list[int]:
    """The ids without the special tokens at the very end; special is what decoding may skip."""
    ids, named = [int(token) for token in token_ids], set(tokenizer.all_special_ids)
    while ids:
        text = decode(ids[-1:], tokenizer)
        special = ids[-1] in named or (text and not tokenizer.decode(ids[-1:], skip_special_tokens=True))
        if not special or (text and text in delimiter):
            break
        ids.pop()
    return ids


def _first_visible(text: str, begin: int, end: int) -> int:
    """Where the first character of text[begin:end] is that isn't white space; `begin` when there is none."""
    content = text[begin:end].lstrip()
    return end - len(content) if content else begin
