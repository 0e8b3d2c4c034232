"""The rollout engine: problems in, finished groups out, in the order in which they finish."""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from mstar_engine.models.attention import hooked, language_configs
from mstar_engine.models.compatibility import forget_rope_deltas, probe, special_image_ids
from mstar_engine.models.prompts import EncodedPrompt, PromptEncoder
from mstar_engine.rollout.kv_cache import KVCache, memory_limit
from mstar_engine.rollout.runner import ModelRunner
from mstar_engine.types import Group, Problem, Response, SamplingParams
from mstar_kernels import _C
from mstar_kernels.sampling import sample_tokens

PREFILL, EXTEND = 1, 2
REASONS = ("stop", "length", "abort")
ADMIT_SHARE = 8
"""New groups start when this part of the row places is free: prefills are then batched, and few places idle."""
MAX_TABLE_TOKENS = 131_072
"""Bounds the width of the scheduler's block table."""


@dataclass(slots=True)
class RolloutStats:
    """Counted work of the last `generate` call. Tokens are counted by the scheduler, not estimated."""

    prompt_tokens: int = 0
    prefill_tokens: int = 0
    extend_tokens: int = 0
    sampled_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens per second of wall time."""
        return self.sampled_tokens / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class _Pending:
    problem: Problem
    prompt: EncodedPrompt
    params: SamplingParams
    temperatures: np.ndarray
    samples: np.ndarray
    handle: int = -1


class RolloutEngine:
    """Continuous batching over a prefix tree, for any Hugging Face image-text-to-text model.

    The engine holds the caller's `model` object and reads its parameters as they are at each call, so there is nothing
    to synchronise after an optimizer step. `processor` is the model's AutoProcessor (or a `PromptEncoder` sharing its
    cache with the trainer). `max_rows` responses run at once; `kv_cache_memory` is in bytes, None takes a quarter of
    the free memory (80% on CUDA). `policy` is "auto", "no_evict" or "watermark" (see csrc/rollout/scheduler.h).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin | PromptEncoder,
        *,
        max_rows: int = 256,
        max_prefill_tokens: int = 8192,
        block_size: int = 16,
        kv_cache_memory: int | None = None,
        policy: str = "auto",
        backend: str = "auto",
    ) -> None:
        self.model = model
        self.encoder = processor if isinstance(processor, PromptEncoder) else PromptEncoder(processor)
        self.processor = self.encoder.processor
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.max_rows = max_rows
        self.max_prefill_tokens = max_prefill_tokens
        self.block_size = block_size
        self.kv_cache_memory = kv_cache_memory
        self.policy = policy
        self.backend = backend
        for key, value in (
            ("block_size", block_size),
            ("max_rows", max_rows),
            ("max_prefill_tokens", max_prefill_tokens),
        ):
            if value < 1:
                raise ValueError(f"RolloutEngine: {key}={value}; allowed: 1 or more")
        if kv_cache_memory is not None and kv_cache_memory < 1:
            raise ValueError(f"RolloutEngine: kv_cache_memory={kv_cache_memory}; allowed: bytes, 1 or more, or None")
        self.configs = language_configs(model)
        self.shape = probe(model)
        if self.shape.device.type == "cpu":
            _C.set_num_threads(torch.get_num_threads())
        self.banned_ids = torch.tensor(special_image_ids(model.config, self.processor), dtype=torch.int32)
        self.stats = RolloutStats()
        self._cache: KVCache | None = None

    def generate(
        self,
        problems: Iterable[Problem],
        params: SamplingParams | Callable[[Problem], SamplingParams],
        *,
        temperatures: Callable[[Problem], np.ndarray] | None = None,
    ) -> Iterator[Group]:
        """Sample `params.n` responses to each problem; yields each group the moment its last response ends.

        `params` may be a function of the problem. `temperatures`, when given, returns one temperature per sample of the
        problem (float [n]) in place of `params.temperature`. What is drawn depends on (seed, problem id, sample,
        position) and the model alone, not on scheduling. Closing the iterator drops what is unfinished.

        Raises ValueError for an empty data set; naming the problem, when its turn comes, for a bad image or a prompt
        that cannot fit; naming problem, sample and position when the model's logits are NaN or infinite.
        """
        for groups in self.generate_batches(problems, params, temperatures=temperatures):
            yield from groups

    def generate_batches(
        self,
        problems: Iterable[Problem],
        params: SamplingParams | Callable[[Problem], SamplingParams],
        *,
        temperatures: Callable[[Problem], np.ndarray] | None = None,
    ) -> Iterator[list[Group]]:
        """As `generate`, with the groups that finished in the same step together (they can share one disk write)."""
        pending = self._encode(problems, params, temperatures)
        first = next(pending, None)
        if first is None:
            raise ValueError("rollout: the data set is empty; give at least one problem")
        was_training = self.model.training
        self.model.eval()
        self.stats = RolloutStats()
        try:
            item: _Pending | None = first
            while item is not None:
                call = _Call(self, item, pending, self.stats)
                yield from call.run()
                item, pending = call.left, call.pending
        finally:
            forget_rope_deltas(self.model)
            self.model.train(was_training)

    def _encode(
        self,
        problems: Iterable[Problem],
        params: SamplingParams | Callable[[Problem], SamplingParams],
        temperatures: Callable[[Problem], np.ndarray] | None,
    ) -> Iterator[_Pending]:
        for problem in problems:
            chosen = params(problem) if callable(params) else params
            degrees = np.full(chosen.n, chosen.temperature) if temperatures is None else temperatures(problem)
            if not (np.isfinite(degrees) & (np.asarray(degrees) >= 0)).all():
                raise ValueError(f"rollout: problem {problem.id}: temperatures {degrees}; allowed: 0 or more, finite")
            if chosen.n > self.max_rows:
                raise ValueError(
                    f"rollout: problem {problem.id}: n={chosen.n} responses a problem; allowed: at most "
                    f"max_rows={self.max_rows}"
                )
            if len(degrees) != chosen.n:
                raise ValueError(
                    f"rollout: problem {problem.id}: {len(degrees)} temperatures for n={chosen.n} responses"
                )
            yield _Pending(
                problem,
                self.encoder.encode(problem),
                chosen,
                np.ascontiguousarray(degrees, dtype=np.float32),
                np.arange(chosen.first_sample, chosen.first_sample + chosen.n, dtype=np.int32),
            )

    def stop_ids(self) -> list[int]:
        """Ids that end a response: the generation config's and the tokenizer's end tokens."""
        ids = {self.tokenizer.eos_token_id}
        for config in (getattr(self.model, "generation_config", None), self.model.config.get_text_config(decoder=True)):
            named = getattr(config, "eos_token_id", None)
            ids.update(named if isinstance(named, (list, tuple)) else [named])
        return sorted(token for token in ids if token is not None)

    def most_blocks(self) -> int:
        """Blocks that the allowed memory holds, at least one."""
        limit = self.kv_cache_memory or memory_limit(self.shape)
        return max(1, limit // (self.block_size * self.shape.bytes_per_token))

    def take_cache(self, blocks: int) -> KVCache:
        """A cache of at least `blocks`, the kept one when it is large enough. The taker owns it until `keep_cache`."""
        cache, self._cache = self._cache, None
        if cache is None or cache.num_blocks < blocks:
            del cache
            cache = KVCache(self.shape, blocks, self.block_size)
        return cache

    def keep_cache(self, cache: KVCache) -> None:
        """Keep a cache for the next call."""
        self._cache = cache

    def release(self) -> None:
        """Give the K/V cache's memory back (the improve phase needs it); the next call allocates anew."""
        self._cache = None


@dataclass
class _Call:
    """One `generate` call: the scheduler, the prompts in flight, and the loop over plans."""

    engine: RolloutEngine
    first: _Pending
    pending: Iterator[_Pending]
    stats: RolloutStats
    live: dict[int, _Pending] = field(default_factory=dict)
    left: _Pending | None = None
    """A problem that needs a larger cache or other stop tokens than this call's: the next call begins with it."""

    def run(self) -> Iterator[list[Group]]:
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

    def _run(self, cache: KVCache, ahead: deque[_Pending], groups: int, may_grow: bool) -> Iterator[list[Group]]:
        engine, base, begun = self.engine, replace(self.stats), time.perf_counter()
        longest = min(self._sequence_limit(), cache.num_blocks * engine.block_size, MAX_TABLE_TOKENS)
        scheduler = _C.Scheduler(
            num_blocks=cache.num_blocks,
            block_size=engine.block_size,
            max_rows=engine.max_rows,
            max_prefill_tokens=engine.max_prefill_tokens,
            max_sequence_length=longest,
            stop_ids=sorted({*engine.stop_ids(), *self.first.params.stop_token_ids}),
            policy=engine.policy,
            admit_rows=max(1, engine.max_rows // ADMIT_SHARE),
        )
        runner = ModelRunner(engine.model, cache, scheduler.plan, engine.backend)
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
            with hooked(engine.configs), torch.no_grad():
                self._step(scheduler, runner)
            counted = scheduler.stats()
            waiting = counted["waiting"]
            self.stats.steps += 1
            for name in ("prefill_tokens", "extend_tokens", "sampled_tokens", "preemptions"):
                setattr(self.stats, name, getattr(base, name) + counted[name])
            self.stats.seconds = base.seconds + time.perf_counter() - begun
            ended = scheduler.finished()
            if ended:
                yield [self._group(scheduler, handle) for handle in ended]

    def _belongs(self, item: _Pending, cache: KVCache, may_grow: bool) -> bool:
        """Whether a problem can run in this call; a group that memory cannot hold whole runs with preemption."""
        same_stops = set(item.params.stop_token_ids) == set(self.first.params.stop_token_ids)
        return same_stops and (not may_grow or self._blocks(item) <= cache.num_blocks)

    def _step(self, scheduler: _C.Scheduler, runner: ModelRunner) -> None:
        plan = scheduler.plan
        kind = scheduler.next_plan()
        try:
            if kind == PREFILL:
                handles = plan.group_ids[: plan.num_groups].tolist()
                logits = runner.prefill([self.live[handle].prompt for handle in handles])
            elif kind == EXTEND:
                runner.extend()
            else:
                logits = runner.decode()
            tokens, records = np.empty(0, np.int32), np.empty((0, 4), np.float32)
            if plan.num_draws:  # else what preempted rows had lost was computed again
                drawn = self._sample(logits, plan, plan.num_draws)
                tokens, records = drawn.tokens.cpu().numpy(), drawn.records.cpu().numpy()
        except BaseException:
            scheduler.rollback()
            raise
        scheduler.commit(tokens, records)

    def _sample(self, logits: torch.Tensor, plan: object, rows: int) -> object:
        names = ("logit_rows", "temperature", "top_k", "top_p", "min_p", "seed", "problem", "sample", "position")
        arrays = {name: torch.from_numpy(_signed(getattr(plan, name)[:rows])).to(logits.device) for name in names}
        try:
            return sample_tokens(
                logits, banned_ids=self.engine.banned_ids.to(logits.device), backend=self.engine.backend, **arrays
            )
        except ValueError as error:
            finite = torch.isfinite(logits).any(-1) & ~torch.isnan(logits).any(-1) & ~torch.isposinf(logits).any(-1)
            bad = [r for r in range(rows) if not finite[int(plan.logit_rows[r])]]
            if not bad:
                raise
            row = bad[0]
            where = self.live[int(plan.row_groups[row])].problem.id
            raise ValueError(
                f"rollout: logits are NaN or infinite for problem {where}, sample {int(plan.sample[row])}, at step "
                f"{int(plan.position[row])} of the response ({len(bad)} of {rows} rows): {error}"
            ) from error

    def _submit(self, scheduler: _C.Scheduler, item: _Pending) -> None:
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

    def _blocks(self, item: _Pending) -> int:
        """Blocks of the group's worst case: the prompt's full blocks once, then every row's own to the last token."""
        prompt, size = len(item.prompt.input_ids), self.engine.block_size
        own = math.ceil((prompt + item.params.max_tokens) / size) - prompt // size
        return prompt // size + item.params.n * own + 1

    def _sequence_limit(self) -> int:
        text = self.engine.model.config.get_text_config(decoder=True)
        return int(getattr(text, "max_position_embeddings", None) or 2**31 - 1)


def problem_key(problem_id: str) -> int:
    """The 63-bit key under which a problem's draws are addressed: a hash of its id, stable across runs and machines."""
    return int.from_bytes(hashlib.blake2b(problem_id.encode(), digest_size=8).digest(), "little") >> 1


def _signed(array: np.ndarray) -> np.ndarray:
    """torch has no arithmetic on uint64; the sampler reads the same 64 bits."""
    return array.view(np.int64) if array.dtype == np.uint64 else array


def greedy(params: SamplingParams) -> SamplingParams:
    """The same limits with one greedy response."""
    return replace(params, n=1, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)
