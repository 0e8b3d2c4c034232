"""Held stems and forks by example: what a hold does from prompt to release, and what is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mstar_kernels import _C
from tests.rollout.oracle import DECODE, EXTEND, IDLE, PREFILL
from tests.rollout.pair import Pair
from tests.rollout.test_scheduler import blocks_of, commit, scheduler, submit

STEM = list(range(10, 22))


def holder(**changes) -> _C.Scheduler:
    """A scheduler with room for stems, these options changed."""
    return scheduler(**dict(num_blocks=64, max_rows=8, max_sequence_length=64, max_held_nodes=20) | changes)


def hold(target: _C.Scheduler, **changes) -> int:
    """Hold one stem of 12 tokens below a prompt of 6, these arguments changed."""
    return target.hold(**dict(prompt_length=6, stems=[STEM], offsets=[[1, 4, 12]], fork_rows=4, max_tokens=6) | changes)


def fork(target: _C.Scheduler, handle: int, offset: int, n: int = 1, stem: int = 0, max_tokens: int = 6) -> int:
    """Fork a group with plain parameters."""
    ones = [1.0] * n
    return target.fork(handle, stem, offset, max_tokens, 7, 8, list(range(n)), ones, [0] * n, ones, [0.0] * n)


def commit_all(target: _C.Scheduler) -> None:
    """Steps until nothing is left to do."""
    while target.next_plan() != IDLE:
        commit(target)


def made_ready(target: _C.Scheduler, **changes) -> int:
    """Hold, and plan until nothing is left to do."""
    handle = hold(target, **changes)
    commit_all(target)
    assert target.ready() == [handle]
    return handle


def test_a_hold_from_prompt_to_release():
    """One prefill, one extend for both stems, forks that feed the token before them, then plain decode."""
    target = holder()
    plan = target.plan
    held = hold(target, stems=[STEM, np.arange(30, 35, dtype=np.int32)], offsets=[[1, 4, 12], [5]])
    assert target.next_plan() == PREFILL
    assert (plan.num_rows, plan.num_tokens, plan.num_groups, plan.num_draws) == (0, 6, 1, 0)
    assert plan.group_ids[0] == held
    commit(target)
    assert target.ready() == []
    assert target.next_plan() == EXTEND
    assert (plan.num_rows, plan.num_tokens, plan.num_groups, plan.num_draws) == (2, 15, 2, 0)
    assert plan.token_ids[:15].tolist() == [*STEM[:11], 30, 31, 32, 33]
    assert plan.positions[:15].tolist() == [*range(6, 17), *range(6, 10)]
    assert plan.row_groups[:2].tolist() == plan.group_ids[:2].tolist() == [held, held]
    assert plan.token_begin[:3].tolist() == [0, 11, 15]
    assert plan.logit_rows[:2].tolist() == [-1, -1]
    assert (plan.num_copies, plan.copy_src[0], plan.copy_dst[0]) == (1, 1, 2), "the last stem keeps the prompt's tail"
    commit(target)
    assert target.ready() == [held]
    assert target.ready() == []
    assert not target.has_work()
    assert target.next_plan() == IDLE
    assert target.stats()["held"] == 2

    late, pair, last = fork(target, held, 5, stem=1), fork(target, held, 4, n=2), fork(target, held, 12)
    assert target.next_plan() == DECODE
    assert plan.row_groups[:4].tolist() == [pair, pair, last, late], "in the order of the tree, not of the calls"
    assert plan.token_ids[:4].tolist() == [13, 13, 21, 34]
    assert plan.positions[:4].tolist() == [9, 9, 17, 10]
    assert plan.position[:4].tolist() == [4, 4, 12, 5]
    ranges = [(plan.node_row_begin[m], plan.node_row_end[m]) for m in range(plan.num_nodes)]
    assert ranges == [(0, 3), (0, 4), (2, 3), (3, 4), (0, 1), (1, 2), (2, 3), (3, 4)]
    assert [blocks_of(plan, m) for m in range(4)] == [[2], [0], [3, 4], [1]]
    assert plan.copy_src[: plan.num_copies].tolist() == [3, 3, 5, 6]
    assert plan.node_length[4:8].tolist() == [2, 2, 2, 3]
    commit(target)
    with pytest.raises(ValueError, match="forked rows alive=4; allowed: 0"):
        target.release(held)
    commit_all(target)
    assert target.finished() == [pair, last, late]
    for handle in (pair, last, late):
        assert set(target.take(handle)["lengths"].tolist()) == {6}
    assert target.stats()["used_blocks"] == 7
    target.release(held)
    assert target.stats()["used_blocks"] == target.stats()["held"] == 0
    target.audit()


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("prompt_length", [1, 3, 4, 8, 9])
def test_forks_at_every_offset(block_size, prompt_length):
    """Each place relative to the blocks, two rows each, all at once; the shadow cache knows each token."""
    count = 11
    pair = Pair(
        num_blocks=400, block_size=block_size, max_rows=2 * count, max_prefill_tokens=8, max_sequence_length=40,
        max_held_nodes=40, policy="no_evict",
    )  # fmt: skip
    stems, offsets = [[5] * count, [6], [7] * count], [list(range(1, count + 1)), [1], [3, 4]]
    held, rng = pair.hold(prompt_length, stems, offsets, 2 * count, 9), random.Random(0)
    while pair.next() != IDLE:
        pair.rollback()
        pair.next()
        pair.commit(0.0, rng)
        pair.check()
    for offset in random.Random(1).sample(range(1, count + 1), count - 1):
        pair.fork(held, 0, offset, 9, 2)
    pair.fork(held, 1, 1, 9, 1)
    pair.fork(held, 2, 4, 9, 1)
    while pair.next() != IDLE:
        pair.rollback()
        pair.next()
        pair.commit(0.0, rng)
        pair.check()
    pair.collect()
    assert pair.seen["fork"] == count + 1
    assert pair.release(held)
    pair.check()


def test_a_stem_of_one_token_needs_no_extend():
    """Its forks feed all of it."""
    target = holder()
    held = hold(target, stems=[[9]], offsets=[[1]])
    assert target.next_plan() == PREFILL
    commit(target)
    assert target.ready() == [held]
    child = fork(target, held, 1)
    assert target.next_plan() == DECODE
    assert target.plan.token_ids[0] == 9
    commit(target, token=0)
    assert target.take(child)["tokens"].tolist() == [0]


def test_groups_run_beside_a_hold():
    """A prompt of each in one prefill; what the hold has reserved is not given away."""
    target = holder(max_rows=6)
    held, beside, behind = hold(target), submit(target, 4, 8, 2), submit(target, 4, 8, 1)
    assert target.next_plan() == PREFILL
    assert target.plan.group_ids[: target.plan.num_groups].tolist() == [held, beside]
    assert target.plan.logit_rows[: target.plan.num_draws].tolist() == [1, 1]
    commit(target)
    assert target.next_plan() == EXTEND
    commit(target)
    child = fork(target, held, 4, n=4)
    assert target.next_plan() == DECODE
    assert target.plan.row_groups[:6].tolist() == [child] * 4 + [beside] * 2
    commit(target)
    commit_all(target)
    assert set(target.finished()) == {child, beside, behind}


def test_a_group_that_waits_for_a_release():
    """There is work, but the plan is idle until the hold goes."""
    target = holder(max_rows=4)
    held = made_ready(target)
    submit(target, 4, 8, 1)
    assert target.has_work()
    assert target.next_plan() == IDLE
    target.release(held)
    assert target.next_plan() == PREFILL


def test_abort_of_a_hold_ends_its_forks():
    """Also while a step runs, and while the hold still waits."""
    target = holder()
    held = made_ready(target)
    child = fork(target, held, 4, n=2)
    target.next_plan()
    for call in (lambda: fork(target, held, 4), lambda: target.release(held)):
        with pytest.raises(RuntimeError, match="neither committed nor rolled back"):
            call()
    target.abort(held)
    assert target.finished() == []
    commit(target)
    assert target.finished() == [child]
    assert target.take(child)["reasons"].tolist() == [2, 2]
    assert target.stats()["used_blocks"] == 0
    with pytest.raises(ValueError, match="hold=0; allowed: a handle of hold that was not released"):
        target.release(held)
    waiting = hold(target)
    target.abort(waiting)
    assert target.next_plan() == IDLE
    assert not target.has_work()


def test_rows_are_free_again_when_forks_end():
    """Four at one time, as often as one likes: until the first success."""
    target = holder()
    held = made_ready(target)
    for _ in range(5):
        child = fork(target, held, 4, n=4)
        with pytest.raises(ValueError, match="n=1; allowed: at most 0: fork_rows=4, of which 4 are alive"):
            fork(target, held, 12)
        assert target.next_plan() == DECODE
        commit(target, token=0)
        assert target.finished() == [child]
        target.take(child)
    target.release(held)
    target.audit()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(stems=[], offsets=[]), r"number of stems=0"),
        (dict(offsets=[]), r"length of offsets=0; allowed: that of stems, 1"),
        (dict(stems=[[]]), r"tokens of stem 0=0"),
        (dict(stems=[[3, -1, 4]], offsets=[[1]]), r"token of a stem=-1"),
        (dict(offsets=[[]]), r"number of offsets of stem 0=0"),
        (dict(offsets=[[0]]), r"offset of stem 0=0; allowed: ascending, 1 to the stem's length, 12"),
        (dict(offsets=[[13]]), r"offset of stem 0=13"),
        (dict(offsets=[[4, 4]]), r"offset of stem 0=4; allowed: ascending, 5 to"),
        (dict(offsets=[[4, 3]]), r"offset of stem 0=3"),
        (dict(prompt_length=0), r"prompt_length=0"),
        (dict(max_tokens=0), r"max_tokens=0"),
        (dict(fork_rows=0), r"fork_rows=0; allowed: 1 to max_rows=8"),
        (dict(fork_rows=9), r"fork_rows=9; allowed: 1 to max_rows=8"),
        (dict(prompt_length=50, max_tokens=3), r"stem \+ max_tokens=65; .*max_sequence_length=64; lower max_tokens"),
        (dict(fork_rows=8, max_tokens=36), r"blocks .*=85; allowed: at most num_blocks=64; lower .*raise num_blocks"),
        (dict(stems=[STEM] * 5, offsets=[[1, 4, 12]] * 5), r"nodes .*=21; .*max_held_nodes=20; .*raise max_held_nodes"),
    ],
)
def test_hold_names_what_is_wrong(arguments, message):
    """The message has the key, what was given and what is allowed."""
    target = holder()
    with pytest.raises(ValueError, match=message):
        hold(target, **arguments)
    assert not target.has_work()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(handle=7, offset=4), r"hold=7; allowed: a handle of hold"),
        (dict(handle=1, offset=4), r"hold=1; allowed: a handle of hold"),
        (dict(handle=0, offset=4, stem=1), r"stem=1; allowed: 0 to 0"),
        (dict(handle=0, offset=5), r"offset of stem 0=5; allowed: the offsets that hold declared"),
        (dict(handle=0, offset=4, max_tokens=7), r"max_tokens=7; allowed: at most the hold's, 6"),
        (dict(handle=0, offset=4, max_tokens=0), r"max_tokens=0"),
        (dict(handle=0, offset=4, n=0), r"n=0"),
        (dict(handle=0, offset=4, n=5), r"n=5; allowed: at most 4: fork_rows=4, of which 0 are alive"),
    ],
)
def test_fork_names_what_is_wrong(arguments, message):
    """The message has the key, what was given and what is allowed."""
    target = holder()
    made_ready(target)
    submit(target, 4, 4, 1)
    with pytest.raises(ValueError, match=message):
        fork(target, **arguments)
    target.audit()


def test_nothing_is_forked_before_it_is_ready_nor_held_without_nodes():
    """ready() says when; the nodes are an option."""
    target = holder()
    with pytest.raises(ValueError, match="hold=0; allowed: a hold that is ready"):
        fork(target, hold(target), 4)
    with pytest.raises(ValueError, match="nodes of the held group=5; allowed: at most max_held_nodes=0"):
        hold(holder(max_held_nodes=0))
    with pytest.raises(ValueError, match="max_held_nodes=-1; allowed: 0 to"):
        holder(max_held_nodes=-1)


def test_stems_are_not_held_where_rows_are_evicted():
    """Neither by the policy nor once auto has chosen it; and auto does not choose it while stems are held."""
    with pytest.raises(ValueError, match="policy=watermark; allowed: no_evict, or auto"):
        hold(holder(policy="watermark"))
    target = holder()
    held = hold(target)
    with pytest.raises(ValueError, match=r"blocks of the group at its longest=67; .* or release the held groups"):
        submit(target, 12, 33, 8)
    target.abort(held)
    submit(target, 12, 33, 8)
    with pytest.raises(ValueError, match="policy=watermark"):
        hold(target)
