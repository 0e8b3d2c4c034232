"""A wave: the problems that share one scheduler and one K/V cache, and the loop over the scheduler's plans.

A wave takes problems as long as they fit its cache and end on the same tokens; the first that does not starts the next.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from mstar_engine.models.attention import hooked
from mstar_engine.models.image_attention import packed_images
from mstar_engine.models.prompts import EncodedPrompt
from mstar_engine.models.sequence_limit import sequence_limit
from mstar_engine.rollout.kv_cache import KVCache
from mstar_engine.rollout.stats import RolloutStats
from mstar_engine.rollout.stepper import Stepper
from mstar_engine.types import Group, Problem, Response, SamplingParams
from mstar_kernels import _C

if TYPE_CHECKING:
    from mstar_engine.rollout.engine import RolloutEngine

REASONS = ("stop", "length", "abort")
ADMIT_SHARE = 8
"""New groups start when this part of the row places is free: prefills are then batched, and few places idle."""
MAX_TABLE_TOKENS = 131_072
"""Bounds the width of the scheduler's block table."""


@dataclass(slots=True)
class Pending:
    """A problem on its way to the scheduler; `handle` is the scheduler's once submitted."""

    problem: Problem
    prompt: EncodedPrompt
    params: SamplingParams
    temperatures: np.ndarray
    samples: np.ndarray
    handle: int = -1


@dataclass
class Wave:
    """One wave of `engine`, from `first` on; `stats` goes on counting from what it holds."""

    engine: RolloutEngine
    first: Pending
    pending: Iterator[Pending]
    stats: RolloutStats
    live: dict[int, Pending] = field(default_factory=dict)
    begun: float = field(default_factory=time.perf_counter)
    left: Pending | None = None
    """The problem that needs a larger cache or other stop tokens: the next wave begins with it."""

    def run(self) -> Iterator[list[Group]]:
        """Sample until the problems are out or one is left; yields the groups that finish in a step together."""
        engine = self.engine
        groups = max(1, engine.max_rows // self.first.params.n)
        ahead = deque([self.first])
        ahead.extend(item for _, item in zip(range(2 * groups), self.pending))
        most = engine.most_blocks()
        worst = max(self._blocks(item) for item in ahead)
        cache = engine.take_cache(min(most, min(len(ahead), groups) * worst))
        try:
            yield from self._run(cache, ahead, groups, may_grow=cache.num_blocks < most)
        finally:
            engine.keep_cache(cache)
        if ahead:  # behind the one that is left
            self.pending = chain(ahead, self.pending)

    def _run(self, cache: KVCache, ahead: deque[Pending], groups: int, may_grow: bool) -> Iterator[list[Group]]:
        engine, base = self.engine, replace(self.stats)
        scheduler = self._scheduler(cache, policy=engine.policy)
        stepper = Stepper(engine, scheduler, cache, self.live)
        waiting = 0
        exhausted = False
        while True:
            while waiting < 2 * groups and not exhausted:
                item = ahead.popleft() if ahead else next(self.pending, None)
                if item is None:
                    exhausted = True
                elif item is not self.first and not self._belongs(item, cache, may_grow):
                    self.left, exhausted = item, True
                else:
                    self._submit(scheduler, item)
                    self.stats.prompt_tokens += len(item.prompt.input_ids)
                    waiting += 1
            if not scheduler.has_work():
                break
            with hooked(engine.configs), packed_images(engine.image_configs), torch.no_grad():
                stepper.step()
            waiting = self._count(scheduler, base)
            ended = scheduler.finished()
            if ended:
                yield [self._group(scheduler, handle) for handle in ended]

    def _scheduler(self, cache: KVCache, **options: object) -> _C.Scheduler:
        engine = self.engine
        limit = sequence_limit(engine.model.config) or MAX_TABLE_TOKENS
        return _C.Scheduler(
            num_blocks=cache.num_blocks,
            block_size=engine.block_size,
            max_rows=engine.max_rows,
            max_prefill_tokens=engine.max_prefill_tokens,
            max_sequence_length=min(limit, cache.num_blocks * engine.block_size, MAX_TABLE_TOKENS),
            stop_ids=sorted({*engine.stop_ids(), *self.first.params.stop_token_ids}),
            admit_rows=max(1, engine.max_rows // ADMIT_SHARE),
            **options,
        )

    def _count(self, scheduler: _C.Scheduler, base: RolloutStats) -> int:
        """Bring the totals up to date after a step, on top of `base`; returns the groups that wait."""
        counted = scheduler.stats()
        self.stats.steps += 1
        for name in ("prefill_tokens", "extend_tokens", "decode_tokens", "sampled_tokens", "preemptions"):
            setattr(self.stats, name, getattr(base, name) + counted[name])
        self.stats.seconds = base.seconds + time.perf_counter() - self.begun
        return counted["waiting"]

    def _belongs(self, item: Pending, cache: KVCache, may_grow: bool) -> bool:
        """Whether a problem can run in this wave; a group that memory cannot hold whole runs with preemption."""
        same_stops = set(item.params.stop_token_ids) == set(self.first.params.stop_token_ids)
        return same_stops and (not may_grow or self._blocks(item) <= cache.num_blocks)

    def _submit(self, scheduler: _C.Scheduler, item: Pending) -> None:
        params = item.params
        n = params.n
        try:
            handle = scheduler.submit(
                prompt_length=len(item.prompt.input_ids),
                max_tokens=params.max_tokens,
                seed=params.seed,
                problem=problem_key(item.problem.id),
                samples=item.samples,
                temperature=item.temperatures,
                top_k=np.full(n, params.top_k, np.int32),
                top_p=np.full(n, params.top_p, np.float32),
                min_p=np.full(n, params.min_p, np.float32),
            )
        except ValueError as error:
            raise ValueError(f"rollout: problem {item.problem.id}: {error}") from error
        item.handle = handle
        self.live[handle] = item

    def _group(self, scheduler: _C.Scheduler, handle: int) -> Group:
        item = self.live.pop(handle)
        taken = scheduler.take(handle)
        ends = np.cumsum(taken["lengths"])
        begins = ends - taken["lengths"]
        tokens = [taken["tokens"][b:e].copy() for b, e in zip(begins, ends)]
        texts = self.engine.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        responses = tuple(
            Response(
                sample=int(item.samples[i]),
                token_ids=tokens[i],
                text=texts[i],
                logprobs=taken["records"][begins[i] : ends[i], 0].copy(),
                scaled_logprobs=taken["records"][begins[i] : ends[i], 1].copy(),
                filtered_logprobs=taken["records"][begins[i] : ends[i], 2].copy(),
                entropy=taken["records"][begins[i] : ends[i], 3].copy(),
                finish_reason=REASONS[int(taken["reasons"][i])],
                temperature=float(item.temperatures[i]),
            )
            for i in range(item.params.n)
        )
        return Group(problem=item.problem, responses=responses, prompt_length=len(item.prompt.input_ids))

    def _blocks(self, item: Pending) -> int:
        """Blocks of the group's worst case: the prompt's full blocks once, then every row's own to the last token."""
        prompt, size = len(item.prompt.input_ids), self.engine.block_size
        own = math.ceil((prompt + item.params.max_tokens) / size) - prompt // size
        return prompt // size + item.params.n * own + 1


def problem_key(problem_id: str) -> int:
    """The 63-bit key under which a problem's draws are addressed: a hash of its id, stable across runs and machines."""
    return int.from_bytes(hashlib.blake2b(problem_id.encode(), digest_size=8).digest(), "little") >> 1
