"""One optimizer step of the improve phase on a 3B model: tokens per second, and the memory that the loss takes.

The peer's loss is the model's own, on all logits of the batch, with everything else as in ours: the same trainer,
bfloat16 with float32 master weights, activations computed twice. Its rows are padded, which costs it nothing: they
are of one length. Ours are one packed row; the note says by which attention. Memory is the device's peak above what was
held before the step; on the CPU, which keeps no such count, the largest tensor that the loss makes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.gpu.bench import Bench, failed
from benchmarks.gpu.qwen import ImagePrompts, build_model, problems
from benchmarks.gpu.sizes import FIRST_TEXT_ID, QWEN_3B, TINY_MODEL
from benchmarks.gpu.suite_row import Skipped, SuiteRow
from benchmarks.harness import Side, median_seconds
from benchmarks.largest_tensor import largest_mib
from mstar_engine.models.backbone import hidden_states
from mstar_engine.models.packed_attention import packed_attention
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.train.collate import collate
from mstar_engine.train.likelihood import Likelihood
from mstar_engine.train.packing import pack, why_not_packed
from mstar_engine.train.schedule import Schedule
from mstar_engine.train.trainer import Trainer
from mstar_engine.types import TrainingExample


@dataclass(frozen=True, slots=True)
class Batch:
    """`examples` in one step, each a prompt and a response of so many tokens."""

    examples: int
    prompt: int
    response: int


FULL, TINY = Batch(8, 1500, 500), Batch(2, 24, 6)


class AllLogits(Likelihood):
    """The model's own loss: logits of every token of the batch, cross-entropy in float32."""

    def loss(self, model: nn.Module, examples: Sequence[Any], encoder: PromptEncoder, pad_id: int) -> Tensor:
        """The sum over response tokens of -log p(token)."""
        batch = collate(examples, encoder, pad_id, model).to(next(model.parameters()).device)
        mean = model(**batch.inputs, labels=batch.labels, use_cache=False).loss
        return mean * self.count(examples)


def rows(bench: Bench) -> Iterator[SuiteRow | Skipped]:
    """Speed, then memory, of the two losses."""
    sizes, batch = bench.sized((QWEN_3B, FULL), (TINY_MODEL, TINY))
    model = build_model(sizes, bench.device)
    encoder = ImagePrompts(sizes, batch.prompt)
    shape = (batch.examples, batch.response)
    responses = np.random.default_rng(0).integers(FIRST_TEXT_ID, sizes.image_id, shape).astype(np.int32)
    examples = [
        TrainingExample(problem=problem, response_ids=ids) for problem, ids in zip(problems(batch.examples), responses)
    ]
    trainer = Trainer(
        model,
        encoder,
        Schedule(peak=1e-6),
        bf16=bench.device.type == "cuda",
        gradient_checkpointing=True,
        objective=Likelihood(packing=True),
    )
    ours, peer = trainer.objective, AllLogits()

    def step(objective: Likelihood) -> None:
        trainer.objective = objective
        trainer.step(examples)

    what = f"improve step, {batch.examples} x {batch.prompt}+{batch.response}"
    missing = bench.missing(what, "liger_kernel")
    if missing is not None:
        yield missing
    name = "Trainer, logits by parts" if missing is not None else "Trainer, Liger's loss"
    tokens = batch.examples * (batch.prompt + batch.response)
    sides = [Side(name, lambda: step(ours)), Side("all logits", lambda: step(peer))]
    (alone,) = median_seconds(sides[:1], 1)
    note = f"ours: {_attention(trainer, examples)}; peer: a row each, {_own_attention(model)}"
    mib = [_memory(bench, sides[0])]
    try:
        rates = [tokens / seconds for seconds in median_seconds(sides, bench.sized(2, 1))]
        mib.append(_memory(bench, sides[1]))
    except torch.OutOfMemoryError as error:
        yield failed(what, "all logits", error, f"{tokens / alone:.0f} tokens/s, {mib[0]:.0f} MiB above what is held")
        return
    yield bench.values(what, name, "all logits", *rates, "tokens/s", more_is_better=True, note=note)
    kind = "peak of a step" if bench.device.type == "cuda" else "largest tensor of a step"
    yield bench.values(f"{what}: {kind}", name, "all logits", *mib, "MiB", note=note)


def _attention(trainer: Trainer, examples: Sequence[TrainingExample]) -> str:
    """How the trainer's examples attend, from a forward of two of them."""
    model, two = trainer.model, examples[:2]
    if why := why_not_packed(model, two, trainer.encoder):
        return f"padded ({why})"
    batch = pack(model, two, trainer.encoder).to(model.device)
    with torch.no_grad(), packed_attention(model, batch.lengths) as step:
        hidden_states(model, **batch.inputs)
    return f"one packed row, {_own_attention(model) if step is None else step.used}"


def _own_attention(model: PreTrainedModel) -> str:
    return model.config.get_text_config()._attn_implementation


def _memory(bench: Bench, side: Side) -> float:
    if bench.device.type != "cuda":
        return largest_mib(side.call)
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    side.call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
