"""Completions from inside given responses: one prefix tree for a problem, its responses and all that is drawn below.

A *stem* is a response whose tokens are known. The prompt is prefilled once and each stem once below it; then rows fork
from the stems wherever asked, and what is asked next may depend on what came back. The tree stays in the cache
meanwhile, so a fork costs nothing but its own tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from mstar_engine.models.attention import hooked
from mstar_engine.models.image_attention import packed_images
from mstar_engine.rollout.decode_buffers import FLAT, HELD
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.rollout.kv_cache import KVCache
from mstar_engine.rollout.runner import ModelRunner
from mstar_engine.rollout.stepper import Stepper
from mstar_engine.rollout.wave import Pending, Wave, problem_key
from mstar_engine.types import Problem, Response, SamplingParams
from mstar_kernels import _C


@dataclass(frozen=True, slots=True)
class Fork:
    """Completions to draw from the first `offset` tokens of stem `stem`, one for each of `samples` (numbers that
    address their draws: no two completions of a problem share one)."""

    stem: int
    offset: int
    samples: tuple[int, ...]


class ForkPlan(Protocol):
    """What one problem wants drawn below its stems; decides as completions come back.

    `stems` int32 token ids each, `offsets` the ascending places (tokens before the fork) at which each may be forked,
    `fork_rows` the most completions that are asked for at one time. Where rows or memory are fewer, forks wait their
    turn, and a fork of many samples may come back in parts.
    """

    problem: Problem
    stems: Sequence[np.ndarray]
    offsets: Sequence[Sequence[int]]
    fork_rows: int

    def begin(self) -> list[Fork]:
        """The first forks; none when nothing is wanted."""
        ...

    def ended(self, fork: Fork, completions: Sequence[Response]) -> list[Fork]:
        """The completions of a fork or of a part of it, in the order of its samples; the forks wanted next."""
        ...


@dataclass(slots=True)
class _Held:
    """A problem whose tree is in the cache or on its way there.

    `rows` are the most completions that it may draw at one time, `alive` those that it draws, `queue` what waits.
    """

    plan: ForkPlan
    item: Pending
    handle: int
    rows: int
    alive: int = 0
    queue: deque[Fork] = field(default_factory=deque)


@dataclass(slots=True)
class _Child:
    held: _Held
    fork: Fork


@dataclass
class ForkWave(Wave):
    """Runs fork plans on one scheduler and one cache."""

    held: dict[int, _Held] = field(default_factory=dict)
    children: dict[int, _Child] = field(default_factory=dict)
    most: int = 0
    """Blocks that the cache may have."""

    def run_plans(self, plans: list[tuple[ForkPlan, Pending]]) -> Iterator[list[ForkPlan]]:
        """Yields the plans that are over, those of one step together."""
        engine = self.engine
        self.most = engine.most_blocks()  # before the cache takes them
        worst = max(self._tree_blocks(plan, item) for plan, item in plans)
        least = min(self._rows(plan, item) for plan, item in plans)
        together = min(len(plans), max(1, engine.max_rows // least))
        cache = engine.take_cache(min(self.most, together * worst))
        nodes = 2 * together * max(1 + sum(1 + len(offsets) for offsets in plan.offsets) for plan, _ in plans)
        try:
            yield from self._run_plans(cache, plans, nodes)
        finally:
            engine.keep_cache(cache)

    def _run_plans(self, cache: KVCache, plans: list[tuple[ForkPlan, Pending]], nodes: int) -> Iterator[list[ForkPlan]]:
        engine = self.engine
        scheduler = self._scheduler(cache, policy="no_evict", max_held_nodes=nodes)
        forks = max(len(offsets) for plan, _ in plans for offsets in plan.offsets)
        stepper = Stepper(engine, scheduler, cache, self.live, depth=max(HELD, FLAT + forks))
        runner = stepper.runner
        base = replace(self.stats)
        for plan, item in plans:
            self._hold(scheduler, plan, item)
        wanted: list[tuple[_Held, int, list[Fork]]] = []  # of whom, how many rows ended, what forks are due
        while self.held:
            with hooked(engine.configs), packed_images(engine.image_configs), torch.no_grad():
                stepper.step(ahead=not wanted)
            self._count(scheduler, base)
            for handle in scheduler.ready():
                held = self.held[handle]
                wanted.append((held, 0, held.plan.begin()))
            for handle in scheduler.finished():
                child = self.children.pop(handle)
                group = self._group(scheduler, handle)
                forks = child.held.plan.ended(child.fork, group.responses)
                wanted.append((child.held, len(child.fork.samples), forks))
            if stepper.runs_ahead:  # forks wait for the step that was started before these rows were seen to end
                continue
            over: list[ForkPlan] = []
            for held, ended, forks in wanted:
                held.alive -= ended
                self._fork(scheduler, runner, held, forks, over)
            wanted.clear()
            if over:
                yield over

    def _hold(self, scheduler: _C.Scheduler, plan: ForkPlan, item: Pending) -> None:
        rows = self._rows(plan, item)
        try:
            item.handle = scheduler.hold(
                prompt_length=len(item.prompt.input_ids),
                stems=[np.ascontiguousarray(stem, np.int32) for stem in plan.stems],
                offsets=[np.asarray(offsets, np.int32) for offsets in plan.offsets],
                fork_rows=rows,
                max_tokens=max(1, item.params.max_tokens - min(min(offsets) for offsets in plan.offsets)),
            )
        except ValueError as error:
            raise ValueError(f"rollout: problem {plan.problem.id}: {error}") from error
        self.live[item.handle] = item
        self.held[item.handle] = _Held(plan, item, item.handle, rows)
        self.stats.prompt_tokens += len(item.prompt.input_ids)

    def _fork(
        self, scheduler: _C.Scheduler, runner: ModelRunner, held: _Held, forks: list[Fork], over: list[ForkPlan]
    ) -> None:
        """Start `forks` as far as there are rows; a problem that wants nothing more gives its tree back."""
        held.queue.extend(forks)
        while held.queue and held.alive < held.rows:
            fork = held.queue.popleft()
            room = held.rows - held.alive
            if len(fork.samples) > room:
                held.queue.appendleft(replace(fork, samples=fork.samples[room:]))
                fork = replace(fork, samples=fork.samples[:room])
            self._start(scheduler, runner, held, fork)
        if not held.alive:
            scheduler.release(held.handle)
            del self.held[held.handle], self.live[held.handle]
            over.append(held.plan)

    def _start(self, scheduler: _C.Scheduler, runner: ModelRunner, held: _Held, fork: Fork) -> None:
        params, n = held.item.params, len(fork.samples)
        samples, temperatures = np.asarray(fork.samples, np.int32), np.full(n, params.temperature, np.float32)
        handle = scheduler.fork(
            held.handle,
            stem=fork.stem,
            offset=fork.offset,
            max_tokens=max(1, params.max_tokens - fork.offset),
            seed=params.seed,
            problem=problem_key(held.plan.problem.id),
            samples=samples,
            temperature=temperatures,
            top_k=np.full(n, params.top_k, np.int32),
            top_p=np.full(n, params.top_p, np.float32),
            min_p=np.full(n, params.min_p, np.float32),
        )
        runner.share_rotary(held.handle, handle)
        self.live[handle] = replace(
            held.item, params=replace(params, n=n), temperatures=temperatures, samples=samples, handle=handle
        )
        self.children[handle] = _Child(held, fork)
        held.alive += n

    def _rows(self, plan: ForkPlan, item: Pending) -> int:
        """Completions of a problem that can be drawn at one time: as many as asked, places and memory allow."""
        trunk, row = self._blocks_of(plan, item)
        room = (self.most - trunk) // row
        return max(1, min(plan.fork_rows, self.engine.max_rows, room))

    def _tree_blocks(self, plan: ForkPlan, item: Pending) -> int:
        """Blocks of a problem's worst case, as the scheduler counts them."""
        trunk, row = self._blocks_of(plan, item)
        return trunk + self._rows(plan, item) * row

    def _blocks_of(self, plan: ForkPlan, item: Pending) -> tuple[int, int]:
        """Blocks of a problem's prompt and stems, and of one completion at its longest."""
        size, prompt = self.engine.block_size, len(item.prompt.input_ids)
        stems = sum(-(-(prompt % size + len(stem)) // size) for stem in plan.stems)
        return prompt // size + stems + 1, -(-(size - 1 + item.params.max_tokens) // size)


def complete(
    engine: RolloutEngine, plans: Sequence[ForkPlan], params: SamplingParams, *, together: int = 64
) -> Iterator[list[ForkPlan]]:
    """Run fork plans on `engine`, `together` problems in a wave; yields plans as they end.

    `params` gives temperature, filters, seed and `max_tokens`: the most tokens of a *whole* response, stem included.
    What is drawn depends on (seed, problem id, sample, position) and the model, not on scheduling. ValueError names the
    problem whose tree cannot fit the cache.
    """
    with engine.sampling():
        for first in range(0, len(plans), together):
            batch = []
            for plan in plans[first : first + together]:
                empty = np.empty(0, np.int32)
                prompt = engine.encoder.encode(plan.problem)
                batch.append((plan, Pending(plan.problem, prompt, params, empty.astype(np.float32), empty)))
            wave = ForkWave(engine, batch[0][1], iter(()), engine.stats)
            yield from wave.run_plans(batch)
