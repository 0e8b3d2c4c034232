"""Runs the scheduler's plans on the model object that is being trained: no second copy, no cache but ours."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from mstar_engine.models.attention import attention_step
from mstar_engine.models.compatibility import forget_rope_deltas
from mstar_engine.models.image_batches import ImageBatches, stack_inputs
from mstar_engine.models.positions import PositionWatch
from mstar_engine.models.prompts import EncodedPrompt
from mstar_engine.rollout.generate_proof import GenerateProof
from mstar_engine.rollout.image_features import ImageFeatureCache
from mstar_engine.rollout.kv_cache import KVCache
from mstar_engine.rollout.packed_prefill import PackedPrefill, Prefilled
from mstar_engine.rollout.steps import DecodeStep, ExtendStep, PrefillStep
from mstar_kernels.paged_kv import copy_blocks
from mstar_kernels.tree_attention import Tree


class ModelRunner:
    """Executes prefill, extend and decode plans; keeps one rotary offset per group."""

    def __init__(
        self,
        model: PreTrainedModel,
        cache: KVCache,
        plan: Any,
        backend: str,
        features: ImageFeatureCache,
        batches: ImageBatches,
        proof: GenerateProof,
        packed_prefill: PackedPrefill | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.plan = plan
        self.backend = backend
        self.features = features
        self.batches = batches
        self.proof = proof
        self.packed_prefill = packed_prefill
        self.device = cache.shape.device
        accepted = inspect.signature(model.forward).parameters
        self.last_row_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.positions = PositionWatch(model)
        self.rope_deltas = np.zeros(1024, dtype=np.int64)  # by group handle
        self.arrays = {
            name: torch.from_numpy(getattr(plan, name))
            for name in (
                "token_ids",
                "positions",
                "slots",
                "copy_src",
                "copy_dst",
                "block_table",
                "node_row_begin",
                "node_row_end",
                "node_table",
                "node_length",
                "node_start",
            )
        }

    def prefill(self, prompts: Sequence[EncodedPrompt]) -> torch.Tensor:
        """Run the plan's prompts (in plan order) and return the last row of logits of each, [G, V]."""
        self.proof.check(prompts, self.backend)
        plan = self.plan
        begins = plan.token_begin[: plan.num_groups + 1].tolist()
        groups = plan.group_ids[: plan.num_groups]
        self._grow(int(groups.max()))
        slots = [self.arrays["slots"][begin:end] for begin, end in pairwise(begins)]
        if self.packed_prefill is None:
            found = self._by_shape(prompts, slots)
        else:
            found = self.packed_prefill.run(prompts, slots, self.cache, self.backend, self.features, self._by_shape)
        self.rope_deltas[groups] = found.rope_deltas
        return found.logits

    def _by_shape(self, prompts: Sequence[EncodedPrompt], slots: Sequence[torch.Tensor]) -> Prefilled:
        """One forward for the prompts of each shape, where they may share one."""
        rows: list[torch.Tensor | None] = [None] * len(prompts)
        deltas = [0] * len(prompts)
        for batch in self.batches.split(prompts):
            where = torch.cat([slots[i] for i in batch]).to(self.device)
            alike = [prompts[i] for i in batch]
            inputs = stack_inputs(alike, self.device)
            forget_rope_deltas(self.model)
            step = PrefillStep(self.cache, where, self.backend)
            with attention_step(step), self.features.prompts(alike), self.positions.watching():
                output = self.model(use_cache=False, **inputs, **self.last_row_only)
            offsets = self.positions.offsets(*inputs["input_ids"].shape)
            for place, index in enumerate(batch):
                rows[index] = output.logits[place, -1]
                deltas[index] = offsets[place]
        return Prefilled(torch.stack(rows), deltas)  # type: ignore[arg-type]

    def decode(self) -> torch.Tensor:
        """Feed every running row its last token; returns the logits of the rows, [R, V]."""
        plan = self.plan
        count = plan.num_rows
        self.copy_blocks()
        positions = self.arrays["positions"][:count]
        rotary = torch.from_numpy(self.rotary()).long()
        step = DecodeStep(
            self.cache,
            self._tree(),
            self.arrays["slots"][:count].to(self.device),
            positions.to(self.device),
            self.backend,
        )
        with attention_step(step):
            output = self.model(
                input_ids=self.arrays["token_ids"][:count].long()[:, None].to(self.device),
                position_ids=rotary[:, None].to(self.device),
                use_cache=False,
                **self.last_row_only,
            )
        return output.logits[:, -1]

    def rotary(self) -> np.ndarray:
        """The positions that the model is given for a decode plan's rows, int [R]."""
        plan = self.plan
        return plan.positions[: plan.num_rows] + self.rope_deltas[plan.row_groups[: plan.num_rows]]

    def extend(self) -> None:
        """Recompute the K and V of tokens that resumed rows had drawn before they were preempted."""
        plan = self.plan
        self.copy_blocks()
        count = plan.num_tokens
        if count == 0:
            return
        begins = plan.token_begin[: plan.num_groups + 1]
        rotary = plan.positions[:count].astype(np.int64)
        segments = []
        for row in range(plan.num_groups):
            begin, end = int(begins[row]), int(begins[row + 1])
            rotary[begin:end] += self.rope_deltas[plan.row_groups[row]]
            if end > begin:
                context = self._context_slots(row, int(plan.positions[end - 1]) + 1)
                segments.append((begin, end, context.to(self.device)))
        slots = self.arrays["slots"][:count].to(self.device)
        with attention_step(ExtendStep(self.cache, slots, segments, self.backend)):
            self.model(
                input_ids=self.arrays["token_ids"][:count].long()[None].to(self.device),
                position_ids=torch.from_numpy(rotary)[None].to(self.device),
                use_cache=False,
                **self.last_row_only,
            )

    def share_rotary(self, parent: int, child: int) -> None:
        """Group `child` continues the prompt of `parent`: the same rotary offset."""
        self._grow(child)
        self.rope_deltas[child] = self.rope_deltas[parent]

    def _grow(self, handle: int) -> None:
        if handle >= len(self.rope_deltas):
            self.rope_deltas = np.resize(self.rope_deltas, 2 * handle + 2)

    def _tree(self) -> Tree:
        nodes = self.plan.num_nodes
        names = ("node_row_begin", "node_row_end", "node_table", "node_length", "node_start")
        arrays = {name: self.arrays[name][:nodes].to(self.device) for name in names}
        return Tree(block_table=self.arrays["block_table"].to(self.device), **arrays)

    def copy_blocks(self) -> None:
        """The plan's copies on write, which come before the step."""
        count = self.plan.num_copies
        if count:
            src, dst = (self.arrays[name][:count].to(self.device) for name in ("copy_src", "copy_dst"))
            keys, values = self.cache.storage[:, 0], self.cache.storage[:, 1]
            copy_blocks(keys, values, src, dst, backend=self.backend, checked=True)

    def _context_slots(self, row: int, length: int) -> torch.Tensor:
        """Slots of the first `length` tokens of an extended row, int64 [length], read off its nodes."""
        plan, size = self.plan, self.cache.block_size
        nodes = range(plan.num_nodes)
        below = [m for m in nodes if plan.node_row_begin[m] <= row < plan.node_row_end[m]]
        slots = np.empty(length, dtype=np.int64)
        for m in sorted(below, key=lambda m: plan.node_start[m]):
            start = int(plan.node_start[m])
            index = np.arange(min(int(plan.node_length[m]), length - start))
            blocks = plan.block_table[plan.node_table[m]]
            slots[start : start + len(index)] = blocks[index // size].astype(np.int64) * size + index % size
        return torch.from_numpy(slots)
