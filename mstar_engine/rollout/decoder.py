"""Decode steps on buffers of fixed shape: on CUDA captured in graphs, and run without waiting for the host.

A graph is captured when a bucket is first met and replayed while the model's parameters and the cache stay where they
are; a step reads the parameters' present values, so an optimizer step in place makes nothing stale. What a step draws
stays on the device for the step behind it (`token_rows`); the host's copy arrives while that one runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mstar_engine.models.attention import attention_step
from mstar_engine.models.fused import FusedLayers
from mstar_engine.models.joined_projections import JoinedProjections
from mstar_engine.rollout.decode_buffers import SIDES, Bucket, DecodeBuffers
from mstar_engine.rollout.kv_cache import KVCache
from mstar_engine.rollout.steps import DecodeStep
from mstar_kernels.attention_work import Tiling, workspace_size
from mstar_kernels.dispatch import resolve
from mstar_kernels.sampling import Samples, sample_tokens
from mstar_kernels.tree_attention import AVAILABLE
from mstar_kernels.tree_attention_tiles import refusal, tiling_of

RECORDS = 4
WARM_UPS = 2
"""Runs before a capture: libraries allocate their workspaces, Triton compiles."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A step on its way. `rows` are the plan's row arrays, for naming a row in an error."""

    count: int
    rows: dict[str, np.ndarray]
    tokens: Tensor
    records: Tensor
    event: torch.cuda.Event | None

    def wait(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [rows] (negative: the row's logits were unfit) and records float32 [rows, 4]."""
        if self.event is not None:
            self.event.synchronize()
        return self.tokens[: self.count].numpy().copy(), self.records[: self.count].numpy().copy()


class Decoder:
    """Runs decode plans of up to `max_rows` rows on `model`, whose K and V lie in `cache`.

    `fused`: the model's small operations that run as kernels of ours meanwhile, its projections joined too; None: all
    as the model has them.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        cache: KVCache,
        buffers: DecodeBuffers,
        banned_ids: Tensor,
        backend: str,
        torch_compile: bool = False,
        fused: FusedLayers | None = None,
    ) -> None:
        self.model = model
        self.forward = torch.compile(model) if torch_compile else model
        self.fused = fused
        self.joined = None if fused is None else JoinedProjections(model)
        self.inputs = inputs
        self.cache = cache
        self.buffers = buffers
        self.backend = backend
        device = cache.shape.device
        self.workspace: Tensor | None = None
        if buffers.work is not None:
            size = workspace_size(buffers.work, query_heads(model), cache.shape.head_dim)
            self.workspace = torch.empty(size, device=device)
        self.banned_ids = banned_ids.to(device)
        self.logit_rows = torch.arange(buffers.max_rows, dtype=torch.int32, device=device)
        self.drawn = torch.zeros(buffers.max_rows, dtype=torch.int32, device=device)
        self.records = torch.zeros(buffers.max_rows, RECORDS, device=device)
        self.on_cuda = device.type == "cuda"
        self._host = [self._host_side() for _ in range(SIDES)]
        self._side = 0
        self._places = places_of(model, cache)
        self._graphs: dict[Bucket, torch.cuda.CUDAGraph | None] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.on_cuda else None

    def fits(
        self, model: torch.nn.Module, cache: KVCache, max_rows: int, max_nodes: int, table_width: int, depth: int
    ) -> bool:
        """Whether this decoder can go on with the model and cache: neither has moved, and its buffers suffice."""
        sizes = (self.buffers.max_rows, self.buffers.max_nodes, self.buffers.table_width)
        suffice = sizes == (max_rows, max_nodes, table_width) and self.buffers.depth >= depth
        return suffice and self._places == places_of(model, cache)

    def refresh(self) -> None:
        """Take over what is copied of the model's parameters, as they are now."""
        if self.joined is not None:
            self.joined.refresh()

    def launch(self, plan: Any, rotary: np.ndarray) -> Drawn:
        """Start a decode plan; `rotary` int [rows] are the positions the model is given. At most two are under way."""
        side, self._side = self._side, (self._side + 1) % SIDES
        bucket = self.buffers.send(plan, side, rotary)
        if bucket not in self._graphs:
            self._graphs[bucket] = self._capture(bucket)
        graph = self._graphs[bucket]
        if graph is None:
            self._run(bucket)
        else:
            graph.replay()
        tokens, records, event = self._host[side]
        tokens.copy_(self.drawn, non_blocking=True)
        records.copy_(self.records, non_blocking=True)
        if event is not None:
            event.record()
        return Drawn(plan.num_rows, self.buffers.host_rows(side), tokens, records, event)

    @contextmanager
    def _as_kernels(self) -> Iterator[None]:
        if self.fused is None:
            yield
            return
        with self.fused.active(), self.joined.active():
            yield

    def _run(self, bucket: Bucket) -> None:
        rows = self.buffers.rows(bucket)
        given = rows["token_rows"] < 0
        drawn = self.drawn[rows["token_rows"]].clamp(min=0)  # -1 reads a row not used; unfit rows end with their step
        fed = torch.where(given, rows["token_ids"], drawn)
        tree, work = self.buffers.tree(bucket), self.buffers.work
        step = DecodeStep(
            self.cache, tree, rows["slots"], rows["positions"], self.backend, work=work, workspace=self.workspace
        )
        with attention_step(step), self._as_kernels():
            output = self.forward(
                input_ids=fed[:, None], position_ids=rows["rotary"][:, None], use_cache=False, **self.inputs
            )
        names = ("temperature", "top_k", "top_p", "min_p", "seed", "problem", "sample", "position")
        sample_tokens(
            output.logits[:, -1],
            logit_rows=self.logit_rows[: bucket.rows],
            banned_ids=self.banned_ids,
            backend=self.backend,
            checked=True,
            filtered=bucket.filtered,
            deferred=True,
            out=Samples(self.drawn[: bucket.rows], self.records[: bucket.rows]),
            **{name: rows[name] for name in names},
        )

    def _capture(self, bucket: Bucket) -> torch.cuda.CUDAGraph | None:
        """The step as a graph; None where there are no graphs."""
        if not self.on_cuda:
            return None
        drawn = self.drawn.clone()  # what this step feeds; running it overwrites that
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._run(bucket)
                self.drawn.copy_(drawn)
        torch.cuda.current_stream().wait_stream(stream)
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                self._run(bucket)
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a failed capture leaves its own
            reason = str(error).splitlines()[0]
            if isinstance(error, torch.OutOfMemoryError):
                reason = "out of memory for them; lower rollout.kv_cache_memory or rollout.max_rows"
            warnings.warn(f"rollout: {type(self.model).__name__} decodes without CUDA graphs: {reason}", stacklevel=2)
            torch.cuda.synchronize()
            return None
        return graph

    def _host_side(self) -> tuple[Tensor, Tensor, torch.cuda.Event | None]:
        rows = self.buffers.max_rows
        return (
            torch.zeros(rows, dtype=torch.int32, pin_memory=self.on_cuda),
            torch.zeros(rows, RECORDS, pin_memory=self.on_cuda),
            torch.cuda.Event() if self.on_cuda else None,
        )


def query_heads(model: torch.nn.Module) -> int:
    """Query heads of a layer of the language model."""
    return int(model.config.get_text_config(decoder=True).num_attention_heads)


def tiling_for(model: torch.nn.Module, cache: KVCache, backend: str) -> Tiling | None:
    """How the Triton form of tree attention cuts this model's steps; None where another form runs."""
    shape, heads = cache.shape, query_heads(model)
    if resolve(backend, shape.device, AVAILABLE) != "triton" or refusal(heads // shape.kv_heads, shape.head_dim):
        return None
    return tiling_of(
        heads=heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        q_dtype=shape.dtype,
        kv_dtype=shape.dtype,
        device=shape.device,
    )


def places_of(model: torch.nn.Module, cache: KVCache) -> tuple[int, ...]:
    """Where the parameters, buffers and cache lie: a captured graph is stale when one of them has moved."""
    tensors = [*model.parameters(), *model.buffers(), cache.storage]
    return tuple(tensor.data_ptr() for tensor in tensors)
