"""Training examples to padded model inputs.

Padding goes to the right of the response: under causal attention no real position can see it, so no attention mask is
needed and every family's fast path stays open. The one that is given is all ones, as in a rollout: some families count
positions only where there is one. Labels are -100 on the prompt and on padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mstar_engine.models.prompts import EncodedPrompt, PromptEncoder, joined_inputs
from mstar_engine.models.text_types import text_types
from mstar_engine.types import Problem, TrainingExample

IGNORE = -100


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Model inputs of some examples.

    `inputs`: input_ids and attention_mask int64 [rows, length], token inputs [rows, length], and the processor's other
    outputs, concatenated. `labels` int64 [rows, length]: labels[b, t] is the token that position t holds, -100 where it
    is no response token. `weights` float32 [examples]. `tokens` counts the labelled positions. A row is an example,
    unless examples are packed: then there is one row of examples of `lengths` tokens, and `owner` int64 [1, length]
    says whose each position is.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    weights: Tensor
    tokens: int
    owner: Tensor | None = None
    lengths: tuple[int, ...] | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        moved = {name: value.to(device) for name, value in self.inputs.items()}
        owner = None if self.owner is None else self.owner.to(device)
        return Batch(moved, self.labels.to(device), self.weights.to(device), self.tokens, owner, self.lengths)

    def weights_at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The weights of the examples that hold positions (row, column), float32."""
        return self.weights[rows if self.owner is None else self.owner[rows, columns]]


def imitate(problem: Problem, encoder: PromptEncoder, end_id: int | None = None) -> TrainingExample:
    """The example that teaches a demonstration: `problem.response`, then the end-of-turn token.

    `end_id` defaults to the tokenizer's end-of-sequence token.
    """
    if problem.response is None:
        raise ValueError(f"problem {problem.id!r} has no response to imitate")
    end = encoder.tokenizer.eos_token_id if end_id is None else end_id
    ids = encoder.tokenizer(problem.response, add_special_tokens=False)["input_ids"]
    return TrainingExample(problem=problem, response_ids=np.asarray([*ids, end], dtype=np.int32))


def length_of(example: TrainingExample, prompt: EncodedPrompt) -> int:
    """Tokens of an example, prompt and response."""
    return len(prompt.input_ids) + len(example.response_ids)


def _clash(seen: dict[str, tuple[str, torch.Size]], problem: Problem, prompt: EncodedPrompt) -> str | None:
    """Note the shapes of a prompt's other inputs in `seen`; say which cannot be concatenated with those before."""
    for name, value in prompt.inputs.items():
        first, shape = seen.setdefault(name, (problem.id, value.shape[1:]))
        if shape != value.shape[1:]:
            return (
                f"problems {first!r} and {problem.id!r} cannot share a batch: {name} of {tuple(shape)} and "
                f"{tuple(value.shape[1:])} behind the first dimension"
            )
    return None


def micro_batches(
    examples: Sequence[TrainingExample],
    encoder: PromptEncoder,
    max_tokens: int | None = None,
    max_examples: int | None = None,
    *,
    packed: bool = False,
    joins: Callable[[Sequence[EncodedPrompt]], bool] | None = None,
) -> Iterator[list[TrainingExample]]:
    """Cut examples into runs that fit one forward pass: at most `max_tokens` tokens, padding included unless they are
    `packed` (None: no limit; a single longer example is a run of its own), at most `max_examples`, image inputs of one
    shape, and prompts that may share a forward by `joins`."""
    run: list[TrainingExample] = []
    prompts: list[EncodedPrompt] = []
    longest = tokens = 0
    seen: dict[str, tuple[str, torch.Size]] = {}
    for example in examples:
        prompt = encoder.encode(example.problem)
        length = length_of(example, prompt)
        grown = tokens + length if packed else max(longest, length) * (len(run) + 1)
        full = (max_tokens is not None and grown > max_tokens) or len(run) == max_examples
        apart = joins is not None and not full and not joins([*prompts, prompt])
        if run and (full or apart or _clash(seen, example.problem, prompt)):
            yield run
            run, prompts, longest, tokens, seen = [], [], 0, 0, {}
        _clash(seen, example.problem, prompt)
        run.append(example)
        prompts.append(prompt)
        longest, tokens = max(longest, length), tokens + length
    if run:
        yield run


def collate(
    examples: Sequence[TrainingExample],
    encoder: PromptEncoder,
    pad_id: int = 0,
    model: PreTrainedModel | None = None,
) -> Batch:
    """Pad and stack examples. `pad_id` must not be an image token. Token inputs go on behind a prompt as `model` marks
    text (None: with 0, as most families do), and so does a prompt without them.

    Raises ValueError for an empty response and for image inputs whose shapes disagree.
    """
    prompts = [encoder.encode(example.problem) for example in examples]
    others = image_inputs(examples, prompts)
    length = max(length_of(e, p) for e, p in zip(examples, prompts))
    ids = torch.full((len(examples), length), pad_id, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORE)
    dtypes = {name: value.dtype for prompt in prompts for name, value in prompt.token_inputs.items()}
    types = {} if model is None else text_types(model, dtypes)
    token_inputs = {name: torch.full(ids.shape, types.get(name, 0), dtype=dtype) for name, dtype in dtypes.items()}
    for row, (example, prompt) in enumerate(zip(examples, prompts)):
        start, end = len(prompt.input_ids), length_of(example, prompt)
        ids[row, :start] = prompt.input_ids
        ids[row, start:end] = torch.as_tensor(example.response_ids)
        labels[row, start:end] = ids[row, start:end]
        for name, value in prompt.token_inputs.items():
            token_inputs[name][row, :start] = value
    return Batch(
        inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids), **token_inputs, **others},
        labels=labels,
        weights=torch.tensor([example.weight for example in examples], dtype=torch.float32),
        tokens=int((labels != IGNORE).sum()),
    )


def image_inputs(examples: Sequence[TrainingExample], prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """The inputs of prompts that do not count tokens, concatenated along their first dimension.

    Raises ValueError where their shapes disagree, and for an empty response.
    """
    seen: dict[str, tuple[str, torch.Size]] = {}
    for example, prompt in zip(examples, prompts):
        if len(example.response_ids) == 0:
            raise ValueError(f"problem {example.problem.id!r}: the response to imitate is empty")
        if clash := _clash(seen, example.problem, prompt):
            raise ValueError(clash)
    return joined_inputs(prompts)
