"""Held stems and forks against their specification, tests/rollout/oracle_holds.py, under random calls."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from tests.rollout.pair import Pair, replay
from tests.rollout.test_scheduler import SchedulerMachine


def test_random_trace_with_holds_agrees_with_the_oracle():
    """Thousands of steps with groups, holds and forks, the model played on a shadow cache."""
    seen = replay(12_000, seed=3, holds=True)
    for event in ("hold", "ready", "stems", "fork", "release", "rollback of forks", "deep tree", "refused fork"):
        assert seen[event] > 40, (event, seen)
    assert seen["rollback of stems"] > 0


@pytest.mark.slow
def test_many_steps_with_holds_agree_with_the_oracle():
    """No difference and no leaked block."""
    assert replay(200_000, seed=4, shadow=False, holds=True)["fork"] > 10_000


class HoldMachine(SchedulerMachine):
    """The same search with holds among the calls."""

    @initialize(
        block_size=st.sampled_from((1, 2, 4)),
        num_blocks=st.integers(16, 80),
        max_rows=st.integers(1, 6),
        max_prefill_tokens=st.integers(1, 24),
        policy=st.sampled_from(("auto", "no_evict")),
        max_held_nodes=st.integers(3, 30),
    )
    def build(self, block_size, num_blocks, max_rows, max_prefill_tokens, policy, max_held_nodes):
        """A pool in which something can be held."""
        self.pair = Pair(
            num_blocks=num_blocks, block_size=block_size, max_rows=max_rows, max_sequence_length=24,
            max_prefill_tokens=max_prefill_tokens, policy=policy, max_held_nodes=max_held_nodes,
        )  # fmt: skip
        self.rng = random.Random(0)

    @rule(
        prompt_length=st.integers(1, 9),
        stems=st.lists(st.sets(st.integers(1, 10), min_size=1, max_size=4), min_size=1, max_size=3),
        fork_rows=st.integers(1, 4),
        max_tokens=st.integers(1, 6),
    )
    def hold(self, prompt_length, stems, fork_rows, max_tokens):
        """At any time; a stem ends with its last offset."""
        offsets = [sorted(stem) for stem in stems]
        self.pair.hold(prompt_length, [[5] * allowed[-1] for allowed in offsets], offsets, fork_rows, max_tokens)

    @precondition(lambda self: not self.outstanding() and any(hold.ready for hold in self.pair.oracle.holds()))
    @rule(data=st.data(), n=st.integers(1, 4), max_tokens=st.integers(1, 6))
    def fork(self, data, n, max_tokens):
        """Any stem of a ready hold, at a declared offset."""
        hold = data.draw(st.sampled_from([hold for hold in self.pair.oracle.holds() if hold.ready]))
        stem = data.draw(st.integers(0, len(hold.rows) - 1))
        self.pair.fork(hold.handle, stem, data.draw(st.sampled_from(hold.offsets[stem])), max_tokens, n)

    @precondition(lambda self: not self.outstanding() and self.pair.oracle.holds())
    @rule(data=st.data())
    def release(self, data):
        """Any hold, whether rows below it are alive or not."""
        self.pair.release(data.draw(st.sampled_from([hold.handle for hold in self.pair.oracle.holds()])))


TestHoldMachine = HoldMachine.TestCase
TestHoldMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
