"""Microseconds that a decode step spends in the scheduler: next_plan and commit, called from Python as the engine does.

Groups of 16 rows below a prompt of 1500 tokens, blocks of 16 tokens, four records a token, one stop id that is never
drawn. Rows start in one step, so all cross into a new block in the same step: every sixteenth step is the worst there
is, and each measured call covers whole rounds of sixteen. The peer is the specification in tests/rollout/oracle.py,
without the copy that its rollback needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.harness import Row, Side, compare, main
from mstar_kernels import _C
from tests.rollout.oracle import IDLE, Oracle

ROWS = (32, 256, 1024)
GROUP, PROMPT, BLOCK, RECORDS = 16, 1500, 16, 4
STEPS = 64  # a measured call


def options(rows: int, max_tokens: int) -> dict:
    """A pool in which everything fits."""
    blocks_per_row = (PROMPT + max_tokens) // BLOCK + 2
    return dict(
        num_blocks=rows * blocks_per_row, block_size=BLOCK, max_rows=rows, max_prefill_tokens=rows * PROMPT,
        max_sequence_length=PROMPT + max_tokens, stop_ids=[2], policy="no_evict", record_width=RECORDS,
    )  # fmt: skip


def started(scheduler, rows: int, max_tokens: int, commit: Callable[[], object]) -> None:
    """Submit the groups and run the one prefill."""
    for problem in range(rows // GROUP):
        scheduler.submit(
            PROMPT, max_tokens, 0, problem, list(range(GROUP)), [1.0] * GROUP, [0] * GROUP, [1.0] * GROUP, [0.0] * GROUP
        )
    scheduler.next_plan()
    commit()


def stepper(next_plan: Callable[[], int], commit: Callable[[], object]) -> Callable[[], None]:
    """STEPS steps as one call."""

    def run() -> None:
        for _ in range(STEPS):
            assert next_plan() != IDLE
            commit()

    return run


def measured(count: int, repeats: int) -> Row:
    """Both sides with this many rows."""
    max_tokens = STEPS * (repeats + 2)
    tokens, records = np.full(count, 5, np.int32), np.zeros((count, RECORDS), np.float32)
    ours = _C.Scheduler(**options(count, max_tokens))
    started(ours, count, max_tokens, lambda: ours.commit(tokens, records))
    oracle = Oracle(**options(count, max_tokens))
    token_list, record_list = tokens.tolist(), records.tolist()
    started(oracle, count, max_tokens, lambda: oracle.commit(token_list, record_list))
    peer = stepper(lambda: oracle.next_plan(undoable=False), lambda: oracle.commit(token_list, record_list))
    return compare(
        f"step, {count} rows",
        Side("scheduler", stepper(ours.next_plan, lambda: ours.commit(tokens, records))),
        Side("Python oracle", peer),
        unit="us/step",
        per_second=lambda seconds: seconds / STEPS * 1e6,
        repeats=repeats,
    )


def rows(quick: bool) -> Iterator[Row]:
    """One row a batch size."""
    for count in ROWS:
        yield measured(count, repeats=3 if quick else 15)


if __name__ == "__main__":
    main("scheduler_step", rows)
