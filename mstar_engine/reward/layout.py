"""Steps as a process reward model reads them: token ids of a branch, and where in it each step is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mstar_engine.models.foreign_prompts import refuse_nested
from mstar_engine.models.prompt_cache import Messages
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.prompt_template import PLAIN
from mstar_engine.reward.forms import TURN, PrmForm
from mstar_engine.types import Problem

_STEP, _NEXT = "\ue000", "\ue001"  # private-use characters: no template holds them


@dataclass(frozen=True, slots=True, eq=False)
class LaidOut:
    """A response below its prompt: int32 `ids`, and int32 `positions` [steps] of the tokens that are scored."""

    ids: np.ndarray
    positions: np.ndarray


class Layout:
    """Lays responses out in a form, with a tokenizer (that of the policy: ids of steps are taken as they are).

    `system` goes before the form's own system message; `template` is what the form's question is put in first.
    """

    def __init__(self, form: PrmForm, processor, system: str | None = None, template: str = PLAIN) -> None:
        self.form = form
        self.template = template
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.system = system if system is not None else form.system
        before, after = form.before, form.after
        if before == TURN:
            before, after = self._turns(processor, after)
        self.before = self._ids(before)
        if before and not len(self.before):
            raise ValueError(f"the tokenizer writes {before!r}, which this form puts behind each step, with no token")
        self.after = self._ids(after)

    def encoder(self, processor) -> PromptEncoder:
        """What encodes problems for this form."""
        return FormEncoder(self.form, processor, self.system, self.template)

    def lay_out(self, token_ids: np.ndarray, step_ends: Sequence[int]) -> LaidOut:
        """A response whose steps end (exclusively) at `step_ends`; nothing behind the last step is read."""
        if not len(self.before):
            ends = np.asarray(step_ends, np.int32)
            return LaidOut(np.asarray(token_ids[: ends[-1]], np.int32), ends - 1)
        parts: list[np.ndarray] = []
        positions, length, begin = [], 0, 0
        for end in step_ends:
            step = np.asarray(token_ids[begin : self._trimmed(token_ids, begin, end)], np.int32)
            last = self.after if end != step_ends[-1] else self.after[:0]
            parts += [step, self.before, last]
            positions.append(length + len(step) + len(self.before) - 1)
            length += len(step) + len(self.before) + len(last)
            begin = end
        return LaidOut(np.concatenate(parts), np.asarray(positions, np.int32))

    def _trimmed(self, token_ids: np.ndarray, begin: int, end: int) -> int:
        while end - 1 > begin and not self.tokenizer.decode([int(token_ids[end - 1])]).strip():
            end -= 1
        return end

    def _ids(self, text: str) -> np.ndarray:
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else [], np.int32)

    def _turns(self, processor, label: str) -> tuple[str, str]:
        """What the chat template puts between a user's turn and its label, and between that and the next turn."""
        conversation = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in (("user", _STEP), ("assistant", label), ("user", _NEXT))
        ]
        text = processor.apply_chat_template(conversation, tokenize=False)
        between = text[text.index(_STEP) + 1 : text.index(_NEXT)]
        at = between.rindex(label)
        return between[:at], between[at:]


class FormEncoder(PromptEncoder):
    """Encodes problems as a form puts the question. With turns, steps go on in the user's turn.

    A tokenizer is a text model's: a problem with images is refused, by name.
    """

    def __init__(self, form: PrmForm, processor, system: str | None = None, template: str = PLAIN) -> None:
        super().__init__(processor, system, template=template)
        self.form = form
        self.reads_images = not isinstance(processor, PreTrainedTokenizerBase)

    def text(self, problem: Problem) -> str:
        """What the user says beside the images."""
        text = self.form.question.format(question=super().text(problem))
        return text + _STEP if self.form.before == TURN else text

    def messages(self, problem: Problem) -> Messages:
        """The conversation that the chat template renders."""
        if self.reads_images:
            return super().messages(problem)
        if problem.images:
            raise ValueError(f"problem {problem.id!r} has images; this process reward model reads text alone")
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": self.text(problem)}]

    def _outputs_of(self, messages: Messages) -> Mapping[str, Tensor]:
        return self.outputs(_cut_at_step, messages) if self.form.before == TURN else super()._outputs_of(messages)


def _cut_at_step(processor, messages: Messages) -> Mapping[str, Tensor]:
    """A processor's outputs for a conversation up to where the first step goes on in the user's turn."""
    text = processor.apply_chat_template(messages, tokenize=False)
    text = text[: text.index(_STEP)]
    images = [part["image"] for part in messages[-1]["content"] if part["type"] == "image"]
    bos = getattr(processor, "tokenizer", processor).bos_token
    # One list a text, as chat templates do it: the image processor is called as for the policy.
    arguments = {"images": [images]} if images else {}
    outputs = processor(
        text=[text], **arguments, return_tensors="pt", add_special_tokens=not (bos and text.startswith(bos))
    )
    refuse_nested(outputs)
    return outputs


def token_id(tokenizer, text: str) -> int | None:
    """The id of a text that is one token; None when it is not."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = ids.tolist() if isinstance(ids, Tensor) else ids
    if len(ids) > 1 and not tokenizer.decode(ids[:1]).strip():
        ids = ids[1:]  # SentencePiece puts a token of its own for the space before
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None
