"""Supervised updates of a policy, with everything that must outlive an iteration in one place.

Self-evolving training refreshes the data, not the optimizer: AdamW is built once, its moments and the global step live
through every generate phase, and the learning rate is a function of that step alone. Saving and loading is exact, in
the middle of an epoch too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mstar_engine.models.memory import checkpoint_activations, give_back
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.train.collate import length_of
from mstar_engine.train.likelihood import Likelihood
from mstar_engine.train.master import MasterWeights
from mstar_engine.train.schedule import Schedule
from mstar_engine.types import TrainingExample


class Objective(Protocol):
    """What is minimised: a sum over the items of a batch (response tokens, steps), divided by their number."""

    def count(self, examples: Sequence[Any]) -> int:
        """Items of some examples."""
        ...

    def runs(
        self,
        model: nn.Module,
        examples: Sequence[Any],
        encoder: PromptEncoder,
        max_tokens: int | None,
        max_examples: int | None,
    ) -> Iterator[list[Any]]:
        """The examples in order, cut into what fits one forward pass."""
        ...

    def loss(self, model: nn.Module, examples: Sequence[Any], encoder: PromptEncoder, pad_id: int) -> Tensor:
        """The weighted sum over the items of what fits one forward pass; a scalar with a gradient."""
        ...


@dataclass(frozen=True, slots=True)
class StepStats:
    """One optimizer step: its number (from 0), mean weighted loss (nats an item), items (response tokens unless the
    objective counts others), gradient norm before clipping, learning rate."""

    step: int
    loss: float
    tokens: int
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class EpochStats:
    """Totals of an epoch (of its remainder, when resumed): optimizer steps, items, mean loss."""

    steps: int
    tokens: int
    loss: float


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch visits `count` examples: a function of the arguments alone."""
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


class Trainer:
    """Trains `model` on examples with one AdamW for the whole run.

    `max_grad_norm` clips the global gradient norm. `max_tokens` bounds one forward pass (padding counts); a batch that
    exceeds it is accumulated over several. `objective` is the likelihood of responses unless given. Only parameters
    with `requires_grad` at construction are trained; weight decay spares vectors (norms, biases). With `bf16` the
    parameters are bfloat16 and AdamW updates float32 copies of them, from gradients summed in float32 (see
    `MasterWeights`). `gradient_checkpointing` computes activations twice instead of keeping them.
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: PromptEncoder,
        schedule: Schedule,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        max_tokens: int | None = None,
        objective: Objective | None = None,
        bf16: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        if gradient_checkpointing:
            checkpoint_activations(model)
        self.masters = MasterWeights(trained) if bf16 else None
        updated = trained if self.masters is None else self.masters.tensors
        groups = [
            {"params": [p for p in updated if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in updated if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.model = model
        self.encoder = encoder
        self.schedule = schedule
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=schedule(0), betas=betas, eps=eps, fused=True
        )
        self.max_grad_norm = max_grad_norm
        self.max_tokens = max_tokens
        self.objective = objective or Likelihood()
        self.global_step = 0
        self.gradient_checkpointing = gradient_checkpointing
        self._trained = trained
        self._updated = updated
        self._cursor: tuple[int, int] | None = None

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        ids = {id(parameter) for parameter in self._trained}
        return {name: parameter for name, parameter in self.model.named_parameters() if id(parameter) in ids}

    def updated(self, parameter: nn.Parameter) -> Tensor:
        """What the optimizer updates for a parameter: itself, or its float32 copy."""
        return parameter if self.masters is None else self.masters.of(parameter)

    def step(self, examples: Sequence[TrainingExample], max_examples: int | None = None) -> StepStats:
        """One optimizer step on a batch. The loss is the objective's weighted sum, divided by the number of items.

        At most `max_examples` go through one forward pass. ValueError that names what to lower, out of memory.
        """
        total = self.objective.count(examples)
        learning_rate = self.schedule(self.global_step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        training = self.model.training
        self.model.train()
        try:
            loss, norm = self._gradients(examples, max_examples, total)
            if not norm < float("inf"):
                raise FloatingPointError(
                    f"step {self.global_step}: loss {loss}, gradient norm {norm}; weights unchanged"
                )
            self.optimizer.step()
        finally:  # whatever ends a step early leaves no gradient to the next
            self.optimizer.zero_grad(set_to_none=True)
            self.model.zero_grad(set_to_none=True)
            self.model.train(training)
        if self.masters is not None:
            self.masters.publish()
        self.global_step += 1
        return StepStats(self.global_step - 1, loss, total, norm, learning_rate)

    def _gradients(self, examples: Sequence[Any], max_examples: int | None, total: int) -> tuple[float, float]:
        """The mean loss of a batch, and the norm of its gradients before they were clipped."""
        pad_id = self.encoder.tokenizer.pad_token_id or 0
        parts = []
        gathering = nullcontext() if self.masters is None else self.masters.gathering()
        with gathering, self._own_draws():
            for run in self.objective.runs(self.model, examples, self.encoder, self.max_tokens, max_examples):
                with self._in_memory(run):
                    part = self.objective.loss(self.model, run, self.encoder, pad_id) / total
                    part.backward()
                parts.append(part.detach())
        loss = sum(part.item() for part in parts)
        return loss, torch.nn.utils.clip_grad_norm_(self._updated, self.max_grad_norm).item()

    def train_epoch(
        self,
        examples: Sequence[TrainingExample],
        *,
        batch_size: int,
        max_examples: int | None = None,
        seed: int = 0,
        epoch: int = 0,
        max_steps: int | None = None,
        progress: Callable[[StepStats], None] | None = None,
    ) -> EpochStats:
        """Visit every example once, in the order that (seed, epoch) gives; the last batch may be smaller.

        After `load_state_dict` of a state saved inside this epoch (from `progress`, say), it goes on behind the last
        batch done, given the same examples. `max_examples` go through one forward pass at most (None: a batch).
        `max_steps` ends it early, when the global step reaches it. `progress` is called after each step.
        """
        if batch_size < 1:
            raise ValueError(f"train_epoch: batch_size={batch_size}; allowed: 1 or more")
        order = epoch_order(len(examples), seed, epoch)
        start = self._cursor[1] if self._cursor is not None and self._cursor[0] == epoch else 0
        steps = tokens = 0
        loss = 0.0
        for first in range(start, len(order), batch_size):
            if max_steps is not None and self.global_step >= max_steps:
                break
            stats = self.step([examples[i] for i in order[first : first + batch_size]], max_examples)
            steps, tokens, loss = steps + 1, tokens + stats.tokens, loss + stats.loss * stats.tokens
            self._cursor = (epoch, first + batch_size)
            if progress is not None:
                progress(stats)
        self._cursor = None
        return EpochStats(steps, tokens, loss / max(tokens, 1))

    def reset_optimizer(self) -> None:
        """Forget the moments (methods that start every iteration afresh)."""
        self.optimizer.state.clear()

    def reset_clock(self) -> None:
        """Start the schedule again."""
        self.global_step = 0

    def release(self) -> None:
        """Give back what only a step needs: gradients and, on CUDA, what the allocator keeps of freed memory."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)
        give_back(self._trained[0].device)

    def state_dict(self) -> dict:
        """Optimizer moments, global step, position inside the epoch and master weights (None without); the weights are
        the model's own."""
        cursor = None if self._cursor is None else list(self._cursor)
        masters = None if self.masters is None else self.masters.tensors
        return {
            "optimizer": self.optimizer.state_dict(),
            "global_step": self.global_step,
            "cursor": cursor,
            "masters": masters,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a saved state, bit for bit."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.masters is not None:
            self.masters.restore(state["masters"] or [None] * len(self._trained))
        self.resume_at(state["global_step"], state["cursor"])

    def resume_at(self, global_step: int, cursor: Sequence[int] | None) -> None:
        """Set the step count and the (epoch, examples done) inside a started epoch."""
        self.global_step = global_step
        self._cursor = None if cursor is None else (cursor[0], cursor[1])

    @contextmanager
    def _own_draws(self) -> Iterator[None]:
        """Draw the dropout of a step by its number alone: a resumed run draws what an undisturbed one does."""
        device = self._trained[0].device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.global_step)
            yield

    @contextmanager
    def _in_memory(self, examples: Sequence[Any]) -> Iterator[None]:
        """Say what to lower when one forward and backward pass on some examples runs out of memory."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            lengths = [length_of(example, self.encoder.encode(example.problem)) for example in examples]
            ways = []
            if len(examples) > 1:
                ways.append(f"set train.max_tokens ({self.max_tokens or '0, no limit'}) below {sum(lengths)}")
            if not self.gradient_checkpointing:
                ways.append("set train.gradient_checkpointing=true")
            if self.masters is None:
                ways.append("set train.bf16=true with model.dtype=bfloat16")
            raise ValueError(
                f"train: out of memory in step {self.global_step}, in a pass over {len(examples)} examples of up to "
                f"{max(lengths)} tokens; {', or '.join(ways) or 'a smaller model or a larger device is needed'}"
            ) from error
