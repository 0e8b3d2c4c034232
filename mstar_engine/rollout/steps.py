"""The three kinds of engine step, as the attention that each runs in place of the model's.

Prefill stores the K and V of whole prompts and lets the model attend as usual, or, packed, each prompt of a row among
itself. Extend recomputes the K and V of tokens that a preempted row had already drawn. Decode feeds one token a row
and runs the tree attention op. `backend` is the form of the ops that each runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mstar_engine.models.attention import LayerCall, causal_tail, masked_attention, plain_attention
from mstar_engine.models.packed_attention import PackedAttention
from mstar_engine.rollout.kv_cache import KVCache
from mstar_kernels.attention_work import AttentionWork
from mstar_kernels.paged_kv import store_kv
from mstar_kernels.tree_attention import Tree, tree_attention


class PrefillStep:
    """Keeps the K and V of every prompt token; `slots` int32 [batch * length] in row-major order."""

    needs_mask = True

    def __init__(self, cache: KVCache, slots: torch.Tensor, backend: str) -> None:
        self.cache = cache
        self.slots = slots
        self.backend = backend

    def attend(self, call: LayerCall) -> torch.Tensor:
        """Store, then the model's usual attention."""
        _store(self.cache, call, self.slots, self.backend)
        return call.usual()


class PackedPrefillStep:
    """As `PrefillStep`, of prompts of `lengths` tokens in one row, each attending to itself alone; `slots` int32
    [tokens]."""

    needs_mask = False

    def __init__(self, cache: KVCache, slots: torch.Tensor, backend: str, lengths: Sequence[int]) -> None:
        self.cache = cache
        self.slots = slots
        self.backend = backend
        self.attention = PackedAttention(lengths)

    def attend(self, call: LayerCall) -> torch.Tensor:
        """[1, H, tokens, D] queries in, [1, tokens, H, D] out."""
        _store(self.cache, call, self.slots, self.backend)
        return self.attention.attend(call)


class DecodeStep:
    """One token a row: store its K and V, then attend over the tree. `positions` int32 [R] are sequence indices.

    `work` and `workspace`: of the Triton form, where the caller has planned the tree's work list.
    """

    needs_mask = False

    def __init__(
        self,
        cache: KVCache,
        tree: Tree,
        slots: torch.Tensor,
        positions: torch.Tensor,
        backend: str,
        work: AttentionWork | None = None,
        workspace: torch.Tensor | None = None,
    ) -> None:
        self.cache = cache
        self.tree = tree
        self.slots = slots
        self.positions = positions
        self.backend = backend
        self.work = work
        self.workspace = workspace

    def attend(self, call: LayerCall) -> torch.Tensor:
        """[R, H, 1, D] queries in, [R, 1, H, D] out."""
        _store(self.cache, call, self.slots, self.backend)
        output = tree_attention(
            call.query.squeeze(2),
            self.cache.keys[call.layer],
            self.cache.values[call.layer],
            self.tree,
            self.positions,
            scale=call.scale,
            sliding_window=call.sliding_window,
            softcap=call.softcap,
            backend=self.backend,
            checked=True,
            work=self.work,
            workspace=self.workspace,
        )
        return output.unsqueeze(1)


class ExtendStep:
    """Runs of tokens appended to rows: `segments` lists (token begin, token end, slots of the row's whole context).

    The context slots int64 [context] end with the run itself, so token i of a run of m sees context - m + i + 1 keys.
    """

    needs_mask = False

    def __init__(
        self, cache: KVCache, slots: torch.Tensor, segments: list[tuple[int, int, torch.Tensor]], backend: str
    ) -> None:
        self.cache = cache
        self.slots = slots
        self.segments = segments
        self.backend = backend

    def attend(self, call: LayerCall) -> torch.Tensor:
        """[1, H, T, D] queries in, [1, T, H, D] out."""
        _store(self.cache, call, self.slots, self.backend)
        output = torch.empty_like(call.query.transpose(1, 2))
        size = self.cache.block_size
        for begin, end, context in self.segments:
            block, offset = context // size, context % size
            key = self.cache.keys[call.layer][block, :, offset].transpose(0, 1).unsqueeze(0)
            value = self.cache.values[call.layer][block, :, offset].transpose(0, 1).unsqueeze(0)
            mask = causal_tail(end - begin, len(context), call.sliding_window, key.device)
            query = call.query[:, :, begin:end]
            if call.softcap is not None:
                output[:, begin:end] = plain_attention(query, key, value, mask, call.scale, call.softcap)
            else:
                output[:, begin:end] = masked_attention(query, key, value, mask, call.scale).transpose(1, 2)
        return output


def _store(cache: KVCache, call: LayerCall, slots: torch.Tensor, backend: str) -> None:
    key = call.key.transpose(1, 2).flatten(0, 1)
    value = call.value.transpose(1, 2).flatten(0, 1)
    store_kv(key, value, cache.keys[call.layer], cache.values[call.layer], slots, backend=backend, checked=True)
