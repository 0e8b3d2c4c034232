"""The C++ scheduler against its specification, tests/rollout/oracle.py: every array of every plan, every result."""

from __future__ import annotations

import random
from math import ceil

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mstar_kernels import _C
from tests.rollout.oracle import DECODE, EXTEND, IDLE, PREFILL
from tests.rollout.pair import Pair, replay

SMALL = dict(
    num_blocks=16, block_size=4, max_rows=4, max_prefill_tokens=64, max_sequence_length=32, stop_ids=[0], record_width=2
)


def scheduler(**changes) -> _C.Scheduler:
    """A small scheduler, these options changed."""
    return _C.Scheduler(**SMALL | changes)


def submit(target: _C.Scheduler, prompt_length: int, max_tokens: int, n: int) -> int:
    """Submit a group with plain parameters."""
    ones = [1.0] * n
    return target.submit(prompt_length, max_tokens, 7, 8, list(range(n)), ones, [0] * n, ones, [0.0] * n)


def commit(target: _C.Scheduler, token: int = 5) -> None:
    """Commit this token for every row that draws."""
    draws = target.plan.num_draws
    target.commit(np.full(draws, token, np.int32), np.zeros((draws, 2), np.float32))


def blocks_of(plan: _C.Plan, node: int) -> list[int]:
    """The blocks of a node, for block size 4."""
    return plan.block_table[plan.node_table[node], : ceil(plan.node_length[node] / 4)].tolist()


# --- by example ---


def test_a_group_from_prompt_to_result():
    """One prefill for all rows, a shared node of full blocks, one copy less than rows, then plain decode."""
    target = scheduler()
    plan = target.plan
    group = submit(target, prompt_length=6, max_tokens=3, n=2)
    assert target.next_plan() == PREFILL
    assert (plan.num_rows, plan.num_tokens, plan.num_groups, plan.num_copies, plan.num_draws) == (2, 6, 1, 0, 2)
    assert plan.slots[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert plan.logit_rows[:2].tolist() == [0, 0]
    target.commit(np.array([11, 12], np.int32), np.array([[1, 2], [3, 4]], np.float32))

    assert target.next_plan() == DECODE
    assert (plan.num_rows, plan.num_nodes, plan.num_copies) == (2, 3, 1)
    assert plan.token_ids[:2].tolist() == [11, 12]
    assert plan.positions[:2].tolist() == [6, 6]
    assert (plan.copy_src[0], plan.copy_dst[0]) == (1, 2)
    assert plan.slots[:2].tolist() == [2 * 4 + 2, 1 * 4 + 2], "the last row keeps the prompt's tail block"
    assert plan.node_length[:3].tolist() == [4, 3, 3]
    assert [(plan.node_row_begin[m], plan.node_row_end[m]) for m in range(3)] == [(0, 2), (0, 1), (1, 2)]
    assert [blocks_of(plan, m) for m in range(3)] == [[0], [2], [1]]
    target.commit(np.array([0, 13], np.int32), np.array([[5, 6], [7, 8]], np.float32))

    assert target.next_plan() == DECODE
    assert (plan.num_rows, plan.num_copies, plan.sample[0], plan.position[0]) == (1, 0, 1, 2)
    commit(target, token=14)
    assert target.finished() == [group]
    assert target.finished() == []
    result = target.take(group)
    assert {name: array.tolist() for name, array in result.items()} == {
        "lengths": [2, 3],
        "tokens": [11, 0, 12, 13, 14],
        "records": [[1, 2], [5, 6], [3, 4], [7, 8], [0, 0]],
        "reasons": [0, 1],
    }
    assert not target.has_work()
    assert target.next_plan() == IDLE
    assert target.stats()["free_blocks"] == 16


def test_a_preempted_row_is_recomputed_and_keeps_its_tokens():
    """Two rows, one must wait; its suffix comes back by an extend plan and its tokens are those drawn before."""
    pair = Pair(
        num_blocks=4, block_size=2, max_rows=2, max_prefill_tokens=8, max_sequence_length=8, policy="watermark",
        watermark=0.0,
    )  # fmt: skip
    pair.submit(3, 5, 2)
    rng, kinds = random.Random(0), []
    while pair.ours.has_work():
        kinds.append(pair.next())
        pair.commit(0.0, rng)
        pair.check()
    assert EXTEND in kinds
    assert kinds.count(PREFILL) == 2, "the prompt left with the first row and was prefilled again"
    pair.collect()


def test_plan_views_are_persistent_and_outlive_the_scheduler():
    """An array taken once sees each later plan; the memory stays while it is held."""
    target = scheduler()
    plan = target.plan
    assert target.plan is plan
    slots = plan.slots
    assert plan.slots is slots
    submit(target, 5, 2, 1)
    target.next_plan()
    assert slots[:5].tolist() == [0, 1, 2, 3, 4]
    del target, plan
    assert slots[:5].tolist() == [0, 1, 2, 3, 4]


def test_abort_during_a_step_takes_effect_at_its_end():
    """The step's tokens are kept; a finished group ignores an abort."""
    target = scheduler()
    group, other = submit(target, 5, 8, 1), submit(target, 5, 8, 1)
    target.next_plan()
    target.abort(group)
    assert target.finished() == []
    commit(target)
    assert target.finished() == [group]
    target.abort(group)
    result = target.take(group)
    assert result["reasons"].tolist() == [2]
    assert result["tokens"].tolist() == [5]
    target.abort(other)
    assert target.take(other)["lengths"].tolist() == [1]
    assert target.finished() == []
    assert target.stats()["used_blocks"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(prompt_length=4, max_tokens=4, n=0), r"n=0; allowed: 1 or more"),
        (dict(prompt_length=4, max_tokens=4, n=5), r"n=5; allowed: at most max_rows=4"),
        (dict(prompt_length=0, max_tokens=4, n=1), r"prompt_length=0"),
        (dict(prompt_length=4, max_tokens=0, n=1), r"max_tokens=0"),
        (dict(prompt_length=30, max_tokens=3, n=1), r"prompt_length \+ max_tokens=33; .*max_sequence_length=32"),
        (dict(prompt_length=12, max_tokens=20, n=4), r"=23; allowed: at most num_blocks=16; lower n"),
    ],
)
def test_submit_names_what_is_wrong(arguments, message):
    """The message has the key, what was given and what is allowed."""
    with pytest.raises(ValueError, match=message):
        submit(scheduler(policy="no_evict"), **arguments)


def test_a_row_that_never_fits_is_refused_by_every_policy():
    """A pool smaller than one row can only be an error."""
    for policy in ("auto", "no_evict", "watermark"):
        with pytest.raises(ValueError, match="lower max_tokens"):
            submit(scheduler(num_blocks=4, policy=policy), 16, 4, 1)


def test_auto_evicts_only_once_a_group_demands_it():
    """The group of 23 blocks that no_evict refuses runs under auto."""
    target = scheduler()
    group = submit(target, 12, 20, 4)
    while target.next_plan() != IDLE:
        commit(target)
    assert target.take(group)["lengths"].tolist() == [20] * 4
    assert target.stats()["preemptions"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"block_size": 0}, "block_size=0"),
        ({"max_rows": -1}, "max_rows=-1"),
        ({"watermark": 1.0}, "watermark=1"),
        ({"admit_rows": 1000}, "admit_rows=1000; allowed: 1 to max_rows"),
        ({"policy": "lru"}, "policy=lru; allowed: auto, no_evict, watermark"),
        ({"num_blocks": 2**30}, "2\\*\\*31"),
    ],
)
def test_the_constructor_names_what_is_wrong(change, message):
    """The message has the key, what was given and what is allowed."""
    with pytest.raises(ValueError, match=message):
        scheduler(**change)


def test_admission_once_begun_fills_the_places():
    """Prefills of one prompt each: the last group is not left waiting for `admit_rows` places to fall free."""
    target = scheduler(num_blocks=64, max_prefill_tokens=6, admit_rows=2)
    for _ in range(4):
        submit(target, prompt_length=6, max_tokens=4, n=1)
    for rows in range(1, 5):
        assert target.next_plan() == PREFILL and target.plan.num_rows == 1
        commit(target)
        assert target.stats()["running"] == rows
    submit(target, prompt_length=6, max_tokens=4, n=1)
    assert target.next_plan() == DECODE
    target.commit(np.array([0, 5, 5, 5], np.int32), np.zeros((4, 2), np.float32))
    assert target.next_plan() == DECODE  # one place is free, fewer than admission begins with
    commit(target)


def test_one_commit_per_plan():
    """Calls out of order and results of the wrong size are refused, and the plan survives the refusal."""
    target = scheduler()
    with pytest.raises(RuntimeError, match="no plan is outstanding"):
        commit(target)
    with pytest.raises(RuntimeError, match="no plan is outstanding"):
        target.rollback()
    group = submit(target, 4, 2, 2)
    target.next_plan()
    with pytest.raises(RuntimeError, match="neither committed nor rolled back"):
        target.next_plan()
    with pytest.raises(ValueError, match="number of tokens=1; allowed: 2"):
        target.commit(np.zeros(1, np.int32), np.zeros((1, 2), np.float32))
    with pytest.raises(ValueError, match="size of records=2; allowed: 4"):
        target.commit(np.zeros(2, np.int32), np.zeros((1, 2), np.float32))
    with pytest.raises(ValueError, match="group=0"):
        target.take(group)
    commit(target)
    with pytest.raises(ValueError, match="group=9"):
        target.abort(9)


def test_a_step_ahead_feeds_what_the_step_before_it_draws():
    """Rows that stop are dropped from it; it is refused when something else may have to come next."""
    target = scheduler()
    with pytest.raises(RuntimeError, match="plan_ahead: no plan is outstanding"):
        target.plan_ahead()
    group = submit(target, 4, 4, 2)
    target.next_plan()
    assert not target.plan_ahead()  # behind a prefill
    target.commit(np.array([5, 6], np.int32), np.zeros((2, 2), np.float32))
    target.next_plan()
    assert target.plan_ahead() and not target.plan_ahead()  # one step, not two
    plan = target.plan
    assert plan.token_rows[:2].tolist() == [0, 1] and plan.positions[:2].tolist() == [5, 5]
    target.commit(np.array([0, 7], np.int32), np.zeros((2, 2), np.float32))  # 0 stops
    assert target.plan_ahead()
    assert plan.num_rows == 1 and plan.token_rows[0] == 1 and plan.positions[0] == 6
    target.commit(np.array([8, 9], np.int32), np.ones((2, 2), np.float32))
    assert not target.plan_ahead()  # the row reaches its length
    target.commit(np.array([4], np.int32), np.zeros((1, 2), np.float32))
    assert target.take(group)["tokens"].tolist() == [5, 0, 6, 7, 9, 4]


# --- against the oracle ---


def test_random_trace_agrees_with_the_oracle():
    """Thousands of steps on small schedulers, the model played on a shadow cache."""
    seen = replay(15_000, seed=1)
    for event in ("prefill", "extend", "decode", "dropped prompt", "preempting step", "rollback", "abort", "ahead"):
        assert seen[event] > 100, (event, seen)
    for event in ("not ahead", "ahead of a thinned step", "rollback of a step ahead"):
        assert seen[event] > 50, (event, seen)


@pytest.mark.slow
def test_a_million_steps_agree_with_the_oracle():
    """No difference and no leaked block."""
    assert replay(1_000_000, seed=2, shadow=False)["preempted rows"] > 10_000


class SchedulerMachine(RuleBasedStateMachine):
    """Hypothesis looks for a sequence of calls after which the two differ."""

    @initialize(
        block_size=st.sampled_from((1, 2, 4)),
        spare=st.integers(0, 6),
        max_rows=st.integers(1, 5),
        max_prefill_tokens=st.integers(1, 24),
        policy=st.sampled_from(("auto", "no_evict", "watermark")),
        watermark=st.sampled_from((0.0, 0.05, 0.3)),
        admit_rows=st.integers(1, 5),
    )
    def build(self, block_size, spare, max_rows, max_prefill_tokens, policy, watermark, admit_rows):
        """A pool hardly larger than one row needs."""
        self.pair = Pair(
            num_blocks=16 // block_size + spare, block_size=block_size, max_rows=max_rows, max_sequence_length=16,
            max_prefill_tokens=max_prefill_tokens, policy=policy, watermark=watermark,
            admit_rows=min(admit_rows, max_rows),
        )  # fmt: skip
        self.rng = random.Random(0)

    def outstanding(self) -> bool:
        """Whether a step runs."""
        return self.pair.oracle.plan is not None

    @rule(prompt_length=st.integers(0, 15), max_tokens=st.integers(0, 15), n=st.integers(0, 6))
    def submit(self, prompt_length, max_tokens, n):
        """At any time, sensible or not."""
        self.pair.submit(prompt_length, max_tokens, n)

    @precondition(lambda self: not self.outstanding())
    @rule()
    def plan(self):
        """A step begins."""
        self.pair.next()

    @precondition(lambda self: not self.outstanding())
    @rule(steps=st.integers(1, 12), stop_share=st.sampled_from((0.0, 0.2)))
    def run(self, steps, stop_share):
        """Some whole steps."""
        for _ in range(steps):
            if self.pair.next() == IDLE:
                return
            self.pair.commit(stop_share, self.rng)
            self.pair.check()

    @precondition(lambda self: self.outstanding())
    @rule(stop_share=st.sampled_from((0.0, 0.5)))
    def commit(self, stop_share):
        """The step succeeded."""
        self.pair.commit(stop_share, self.rng)

    @precondition(lambda self: self.outstanding())
    @rule()
    def plan_ahead(self):
        """The next step is planned before this one has ended."""
        self.pair.plan_ahead()

    @precondition(lambda self: self.outstanding())
    @rule()
    def rollback(self):
        """The step failed; the next plan must be the same one, unless rows have stopped under it."""
        if self.pair.oracle.ahead is not None or "grown" in self.pair.oracle.plan:
            return self.pair.rollback()
        kind, before = self.pair.oracle.plan["kind"], self.pair.oracle.plan["slots"]
        aborts = bool(self.pair.oracle.pending_aborts)
        waiting = self.pair.oracle.stats()["waiting"]
        self.pair.rollback()
        if not aborts and waiting == 0:
            assert self.pair.next() == kind
            assert self.pair.oracle.plan["slots"] == before

    @precondition(lambda self: self.pair.oracle.live)
    @rule(data=st.data())
    def abort(self, data):
        """Any group that has not ended."""
        self.pair.abort(data.draw(st.sampled_from([group.handle for group in self.pair.oracle.live])))

    @rule()
    def collect(self):
        """Results agree."""
        self.pair.collect()

    @invariant()
    def consistent(self):
        """Counts agree and the invariants hold, in the middle of a step as well."""
        self.pair.check()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
