"""The training methods as rows of one table of three switches (paper section 3.1).

An iteration is a refresh of the data. What a method decides is where its policy starts from, whether the optimizer's
moments are inherited, and which clock the learning rate follows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Method:
    """`start` is "previous" or "initial" (the warmed-up policy); `inherit_optimizer` keeps moments and step count;
    `clock` is "global" or "iteration": the step at which the schedule is read."""

    start: str
    inherit_optimizer: bool
    clock: str


METHODS = {
    "continuous": Method(start="previous", inherit_optimizer=True, clock="global"),
    "iterative_rft": Method(start="previous", inherit_optimizer=False, clock="iteration"),
    "rest_em": Method(start="initial", inherit_optimizer=False, clock="iteration"),
}
