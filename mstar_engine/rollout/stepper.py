"""The steps of a wave: plan, run, draw, commit; and on a device the next decode step started before this one ends.

A step that fails is rolled back, the one started behind it too, so the scheduler is as if neither had been planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mstar_engine.rollout.decode_buffers import FLAT
from mstar_engine.rollout.decoder import Drawn
from mstar_engine.rollout.kv_cache import KVCache
from mstar_engine.rollout.runner import ModelRunner
from mstar_kernels import _C
from mstar_kernels.sampling import sample_tokens

if TYPE_CHECKING:
    from mstar_engine.rollout.engine import RolloutEngine
    from mstar_engine.rollout.wave import Pending

PREFILL, EXTEND, DECODE = 1, 2, 3
SAMPLING = ("logit_rows", "temperature", "top_k", "top_p", "min_p", "seed", "problem", "sample", "position")


class Stepper:
    """Runs the plans of one scheduler. `live` gives the problem of each of the scheduler's handles, `depth` the nodes
    above a row, at most."""

    def __init__(
        self,
        engine: RolloutEngine,
        scheduler: _C.Scheduler,
        cache: KVCache,
        live: Mapping[int, Pending],
        depth: int = FLAT,
    ) -> None:
        self.engine = engine
        self.scheduler = scheduler
        self.plan = scheduler.plan
        self.live = live
        self.runner = ModelRunner(
            engine.model,
            cache,
            self.plan,
            engine.backend,
            engine.features,
            engine.batches,
            engine.proof,
            engine.packed_prefill,
        )
        self.decoder = engine.decoder_for(self.plan, cache, self.runner.last_row_only, depth)
        self._ahead: tuple[Drawn, np.ndarray] | None = None

    @property
    def runs_ahead(self) -> bool:
        """Whether a step is under way: until it is committed the scheduler takes no forks and no releases."""
        return self._ahead is not None

    def step(self, *, ahead: bool = True) -> None:
        """Run one plan to its commit. On return a decode step behind it may be running on the device, unless `ahead` is
        false."""
        under_way, self._ahead = self._ahead, None
        if under_way is None:
            kind = self.scheduler.next_plan()
        try:
            if under_way is None and (kind != DECODE or self.decoder is None):
                drawn = self._run(kind)
            else:
                drawn = self._decode(under_way, ahead)
        except BaseException as error:
            reason = self._out_of_memory() if isinstance(error, torch.OutOfMemoryError) else None
            if self._ahead is not None:
                self._ahead = None
                self.scheduler.rollback()
            self.scheduler.rollback()
            if reason is not None:
                raise ValueError(reason) from error
            raise
        self.scheduler.commit(*drawn)

    def _run(self, kind: int) -> tuple[np.ndarray, np.ndarray]:
        """A plan from beginning to end; what it drew."""
        plan = self.plan
        if kind == PREFILL:
            handles = plan.group_ids[: plan.num_groups].tolist()
            logits = self.runner.prefill([self.live[handle].prompt for handle in handles])
        elif kind == EXTEND:
            self.runner.extend()
        else:
            logits = self.runner.decode()
        if not plan.num_draws:  # what preempted rows had lost was computed again
            return np.empty(0, np.int32), np.empty((0, 4), np.float32)
        return self._sample(logits, plan.num_draws)

    def _decode(self, under_way: tuple[Drawn, np.ndarray] | None, ahead: bool) -> tuple[np.ndarray, np.ndarray]:
        """A decode plan, with the one behind it started before its draws are waited for."""
        drawn, groups = under_way or self._launch()
        if ahead and self.scheduler.plan_ahead():
            try:
                self._ahead = self._launch()
            except BaseException:
                self.scheduler.rollback()
                raise
        tokens, records = drawn.wait()
        # A row that had stopped before this step, with the last of its group, is nobody's any more.
        bad = [row for row in np.flatnonzero(tokens < 0).tolist() if int(groups[row]) in self.live]
        if bad:
            raise ValueError(self._unfit(bad, groups, drawn.rows["sample"], drawn.rows["position"], drawn.count))
        return tokens, records

    def _launch(self) -> tuple[Drawn, np.ndarray]:
        """Start the newest plan; it, and the handles of its rows' groups."""
        self.runner.copy_blocks()
        groups = self.plan.row_groups[: self.plan.num_rows].copy()
        return self.decoder.launch(self.plan, self.runner.rotary()), groups

    def _sample(self, logits: torch.Tensor, rows: int) -> tuple[np.ndarray, np.ndarray]:
        plan, device = self.plan, logits.device
        arrays = {name: torch.from_numpy(_signed(getattr(plan, name)[:rows])).to(device) for name in SAMPLING}
        try:
            drawn = sample_tokens(
                logits, banned_ids=self.engine.banned_ids.to(device), backend=self.engine.backend, **arrays
            )
        except ValueError as error:
            finite = torch.isfinite(logits).any(-1) & ~torch.isnan(logits).any(-1) & ~torch.isposinf(logits).any(-1)
            bad = [r for r in range(rows) if not finite[int(plan.logit_rows[r])]]
            if not bad:
                raise
            raise ValueError(self._unfit(bad, plan.row_groups, plan.sample, plan.position, rows)) from error
        return drawn.tokens.cpu().numpy(), drawn.records.cpu().numpy()

    def _out_of_memory(self) -> str:
        """What did not fit, and what to lower, by the names of the configuration and of the engine's arguments."""
        plan, engine = self.plan, self.engine
        cache = self.runner.cache.storage.nbytes / 2**30
        if plan.kind == DECODE:
            what, keys = f"a decode step of {plan.num_rows} rows", f"rollout.max_rows ({engine.max_rows})"
        else:
            what = f"a prefill of {plan.num_groups} prompts, {plan.num_tokens} tokens"
            keys = f"max_prefill_tokens ({engine.max_prefill_tokens}) or rollout.max_rows ({engine.max_rows})"
        return (
            f"rollout: out of memory in {what}, beside a K/V cache of {cache:.1f} GiB; lower "
            f"rollout.kv_cache_memory, {keys}"
        )

    def _unfit(
        self, bad: Sequence[int], groups: np.ndarray, samples: np.ndarray, positions: np.ndarray, rows: int
    ) -> str:
        row = bad[0]
        return (
            f"rollout: logits are NaN or infinite for problem {self.live[int(groups[row])].problem.id}, sample "
            f"{int(samples[row])}, at step {int(positions[row])} of the response ({len(bad)} of {rows} rows)"
        )


def _signed(array: np.ndarray) -> np.ndarray:
    """torch has no arithmetic on uint64; the sampler reads the same 64 bits."""
    return array.view(np.int64) if array.dtype == np.uint64 else array
