"""The rollout engine: problems in, finished groups out, in the order in which they finish."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from mstar_engine.models.attention import language_configs
from mstar_engine.models.compatibility import forget_rope_deltas, probe, unwritten_ids
from mstar_engine.models.fused import FusedLayers, fuses
from mstar_engine.models.generation_settings import end_ids, left_out
from mstar_engine.models.image_attention import image_configs
from mstar_engine.models.image_batches import ImageBatches
from mstar_engine.models.lora import LoraMerge, has_lora
from mstar_engine.models.memory import give_back
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.rollout.decode_buffers import DecodeBuffers
from mstar_engine.rollout.decoder import Decoder, tiling_for
from mstar_engine.rollout.generate_proof import GenerateProof
from mstar_engine.rollout.image_features import ImageFeatureCache
from mstar_engine.rollout.kv_cache import KVCache, memory_limit
from mstar_engine.rollout.packed_prefill import PackedPrefill
from mstar_engine.rollout.stats import RolloutStats
from mstar_engine.rollout.wave import Pending, Wave
from mstar_engine.types import Group, Problem, SamplingParams
from mstar_kernels import _C

log = logging.getLogger(__name__)
DECODE_FORMS = ("auto", "eager", "fixed")


class RolloutEngine:
    """Continuous batching over a prefix tree, for any Hugging Face image-text-to-text model.

    The engine holds the caller's `model` object and reads its parameters as they are at each call, so there is nothing
    to synchronise after an optimizer step. `processor` is the model's AutoProcessor (or a `PromptEncoder` sharing its
    cache with the trainer). `max_rows` responses run at once; `kv_cache_memory` is in bytes, None takes a quarter of
    the free memory (80% on CUDA). `policy` is "auto", "no_evict" or "watermark" (see csrc/rollout/scheduler.h).
    `decode` "fixed" pads decode steps to a few shapes, which on CUDA are captured in graphs and run ahead of the host;
    "eager" takes them as they come; "auto" is "fixed" on CUDA. What is drawn is the same. `torch_compile` compiles the
    model around its attention for steps of fixed shape (minutes once; rounding differs). `fused_decode` runs those
    steps' norms, rotary embedding and gated MLPs as kernels of ours where they are proven to compute what the family's
    code does (see `models/fused.py`; `engine.fused` names them once it decodes), and the query, key and value
    projections of a layer as one product (of a copy of their weights); None: on CUDA with Triton, unless compiled.
    `image_cache_memory` bytes of image features are kept while the weights that made them stay; None is 1 GiB on CUDA
    and nothing on the CPU, where a resumed run is to equal an undisturbed one in every bit. `packed_prefill` runs a
    step's prompts of different lengths behind one another in one row where the family is proven to keep them apart
    (else by shape, and the log says why); None: on CUDA. `merge_lora`: a model with adapters samples as the plain model
    with them merged into its weights, and has its own bits back after each call; without, it samples as it is.
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
        decode: str = "auto",
        torch_compile: bool = False,
        fused_decode: bool | None = None,
        image_cache_memory: int | None = None,
        packed_prefill: bool | None = None,
        merge_lora: bool = False,
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
        if decode not in DECODE_FORMS:
            raise ValueError(f"RolloutEngine: decode={decode!r}; allowed: {', '.join(DECODE_FORMS)}")
        for key, value in (
            ("block_size", block_size),
            ("max_rows", max_rows),
            ("max_prefill_tokens", max_prefill_tokens),
        ):
            if value < 1:
                raise ValueError(f"RolloutEngine: {key}={value}; allowed: 1 or more")
        if kv_cache_memory is not None and kv_cache_memory < 1:
            raise ValueError(f"RolloutEngine: kv_cache_memory={kv_cache_memory}; allowed: bytes, 1 or more, or None")
        if image_cache_memory is not None and image_cache_memory < 0:
            raise ValueError(
                f"RolloutEngine: image_cache_memory={image_cache_memory}; allowed: bytes, 0 or more, or None"
            )
        if merge_lora and not has_lora(model):
            raise ValueError("RolloutEngine: merge_lora=True: the model has no adapters; allowed: False")
        self._merge = LoraMerge(model) if merge_lora else None
        self.configs = language_configs(model)
        self.image_configs = image_configs(model)
        self.shape = probe(model)
        if self.shape.device.type == "cpu":
            _C.set_num_threads(torch.get_num_threads())
        self.banned_ids = torch.tensor(unwritten_ids(model.config, self.processor), dtype=torch.int32)
        if ignored := left_out(model):
            said = ", ".join(f"{name}={value}" for name, value in ignored.items())
            log.warning("rollout: the checkpoint's generation config has no effect on what is drawn: %s", said)
        self.stats = RolloutStats()
        if image_cache_memory is None:
            image_cache_memory = 2**30 if self.shape.device.type == "cuda" else 0
        self.features = ImageFeatureCache(model, image_cache_memory)
        self.batches = ImageBatches(model)
        self.proof = GenerateProof(model, self.shape)
        packs = self.shape.device.type == "cuda" if packed_prefill is None else packed_prefill
        self.packed_prefill = PackedPrefill(model) if packs else None
        self._cache: KVCache | None = None
        self._decodes_fixed = decode == "fixed" or (decode == "auto" and self.shape.device.type == "cuda")
        if torch_compile and not self._decodes_fixed:
            raise ValueError(
                f"RolloutEngine: torch_compile=True with decode={decode!r} on {self.shape.device.type}; "
                "allowed: False, or decode='fixed': what is compiled is a step of fixed shape"
            )
        self._decoder: Decoder | None = None
        self._torch_compile = torch_compile
        if fused_decode and (torch_compile or not self._decodes_fixed):
            reason = "torch_compile=True" if torch_compile else "decode steps are eager"
            raise ValueError(
                f"RolloutEngine: fused_decode=True while {reason}; allowed: steps of fixed shape, uncompiled"
            )
        by_default = self._decodes_fixed and not torch_compile and fuses(self.shape.device)
        self.fused: FusedLayers | None = None
        self._fused_decode = by_default if fused_decode is None else fused_decode

    def generate(
        self,
        problems: Iterable[Problem],
        params: SamplingParams | Callable[[Problem], SamplingParams],
        *,
        temperatures: Callable[[Problem], np.ndarray] | None = None,
        samples: Callable[[Problem], np.ndarray] | None = None,
    ) -> Iterator[Group]:
        """Sample `params.n` responses to each problem; yields each group the moment its last response ends.

        `params` may be a function of the problem. `temperatures`, when given, returns one temperature per sample of the
        problem (float [n]) in place of `params.temperature`; `samples` the sample numbers of the rows (int [n], need
        not be distinct) in place of those from `params.first_sample` on. What is drawn depends on (seed, problem id,
        sample, position), the temperature and the model alone, not on scheduling: rows of one sample number share
        their random numbers at whatever temperatures. Closing the iterator drops what is unfinished.

        Raises ValueError for an empty data set; naming the problem, when its turn comes, for a bad image or a prompt
        that cannot fit; naming problem, sample and position when the model's logits are NaN or infinite.
        """
        for groups in self.generate_batches(problems, params, temperatures=temperatures, samples=samples):
            yield from groups

    def generate_batches(
        self,
        problems: Iterable[Problem],
        params: SamplingParams | Callable[[Problem], SamplingParams],
        *,
        temperatures: Callable[[Problem], np.ndarray] | None = None,
        samples: Callable[[Problem], np.ndarray] | None = None,
        encoder: PromptEncoder | None = None,
    ) -> Iterator[list[Group]]:
        """As `generate`, with the groups that finished in the same step together (they can share one disk write).

        `encoder`: what puts the problems to the model, in place of the engine's own (of the same processor).
        """
        pending = self._encode(problems, params, temperatures, samples, encoder or self.encoder)
        first = next(pending, None)
        if first is None:
            raise ValueError("rollout: the data set is empty; give at least one problem")
        with self.sampling():
            item: Pending | None = first
            while item is not None:
                wave = Wave(self, item, pending, self.stats)
                yield from wave.run()
                item, pending = wave.left, wave.pending

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Around what is sampled together: the model as rollouts run it, its images known, the statistics new."""
        was_training = self.model.training
        self.model.eval()
        self.stats = RolloutStats()
        try:
            with nullcontext() if self._merge is None else self._merge.active():
                self.features.refresh()
                yield
        finally:
            forget_rope_deltas(self.model)
            self.model.train(was_training)

    def _encode(
        self,
        problems: Iterable[Problem],
        params: SamplingParams | Callable[[Problem], SamplingParams],
        temperatures: Callable[[Problem], np.ndarray] | None,
        samples: Callable[[Problem], np.ndarray] | None,
        encoder: PromptEncoder,
    ) -> Iterator[Pending]:
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
            yield Pending(
                problem,
                encoder.encode(problem),
                chosen,
                np.ascontiguousarray(degrees, dtype=np.float32),
                _sample_numbers(problem, chosen, None if samples is None else samples(problem)),
            )

    def stop_ids(self) -> list[int]:
        """Ids that end a response: those at which `model.generate` ends one, and the tokenizer's end token."""
        return sorted(end_ids(self.model) | {self.tokenizer.eos_token_id} - {None})

    def most_blocks(self) -> int:
        """Blocks that the allowed memory holds, at least one."""
        kept = 0 if self._cache is None else self._cache.storage.nbytes
        limit = self.kv_cache_memory or memory_limit(self.shape, kept)
        return max(1, limit // (self.block_size * self.shape.bytes_per_token))

    def take_cache(self, blocks: int) -> KVCache:
        """A cache of at least `blocks`, the kept one when it is large enough. The taker owns it until `keep_cache`."""
        cache, self._cache = self._cache, None
        if cache is None or cache.num_blocks < blocks:
            del cache
            self._decoder = None  # it holds the cache that it ran on
            cache = KVCache(self.shape, blocks, self.block_size)
        return cache

    def keep_cache(self, cache: KVCache) -> None:
        """Keep a cache for the next call."""
        self._cache = cache

    def release(self) -> None:
        """Give back the memory of K/V cache, captured graphs and image features that training makes stale (the improve
        phase needs it); the next call allocates anew."""
        self._cache = self._decoder = None
        self.features.release()
        give_back(self.shape.device)

    def decoder_for(self, plan: Any, cache: KVCache, inputs: dict[str, Any], depth: int) -> Decoder | None:
        """The decoder of a wave's plans: the kept one where it fits. None: decode steps have the shapes they have.

        `depth`: nodes above a row, at most. ValueError that says what to lower, where there is no memory for it.
        """
        if not self._decodes_fixed:
            return None
        sizes = (len(plan.row_ids), *plan.block_table.shape)
        if self._decoder is None or not self._decoder.fits(self.model, cache, *sizes, depth):
            self._decoder = None  # its graphs' memory, before there is a second one
            try:
                self._decoder = self._new_decoder(sizes, cache, inputs, depth)
            except torch.OutOfMemoryError as error:
                gib = cache.storage.nbytes / 2**30
                raise ValueError(
                    f"rollout: no memory for decode steps of {self.max_rows} rows beside a K/V cache of {gib:.1f} GiB; "
                    "lower rollout.kv_cache_memory or rollout.max_rows"
                ) from error
        self._decoder.refresh()
        return self._decoder

    def _new_decoder(self, sizes: tuple[int, ...], cache: KVCache, inputs: dict[str, Any], depth: int) -> Decoder:
        tiling = tiling_for(self.model, cache, self.backend)
        form = "auto" if self.backend == "cpu" else self.backend  # these kernels have no C++ form
        self.fused = FusedLayers(self.model, self.shape, backend=form) if self._fused_decode else None
        buffers = DecodeBuffers(*sizes, self.block_size, self.shape.device, tiling, depth)
        return Decoder(
            self.model, inputs, cache, buffers, self.banned_ids, self.backend, self._torch_compile, self.fused
        )


def _sample_numbers(problem: Problem, params: SamplingParams, given: np.ndarray | None) -> np.ndarray:
    """The sample numbers of a problem's rows, int32 [n]."""
    if given is None:
        return np.arange(params.first_sample, params.first_sample + params.n, dtype=np.int32)
    numbers = np.asarray(given)
    if numbers.shape != (params.n,):
        raise ValueError(
            f"rollout: problem {problem.id}: sample numbers of shape {numbers.shape} for n={params.n} responses"
        )
    if not np.issubdtype(numbers.dtype, np.integer) or numbers.min() < 0 or numbers.max() > np.iinfo(np.int32).max:
        raise ValueError(f"rollout: problem {problem.id}: sample numbers {numbers}; allowed: int32, 0 or more")
    return np.ascontiguousarray(numbers, dtype=np.int32)
