"""The training methods as rows of one table of three switches (paper section 3.1).

An iteration is a refresh of the data. What a method decides is where its policy starts from, whether the optimizer's
moments are inherited, and which clock the learning rate follows. Nothing else differs: given the same examples, two
methods with the same switches take the same steps, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Method:
    """`start` is "previous" or "initial" (the warmed-up policy); `inherit_optimizer` keeps the moments; `clock` is
    "global" or "iteration": the step at which the schedule is read.

    `imitates` is not a switch of the optimization but its data: "selected" responses of the policy's own, or the
    "reference" answers as they are (nothing is sampled then).
    """

    start: Literal["previous", "initial"]
    inherit_optimizer: bool
    clock: Literal["global", "iteration"]
    imitates: Literal["selected", "reference"] = "selected"


METHODS = {
    # Supervised training on the labelled problems: `continuous` on given examples.
    "sft": Method(start="previous", inherit_optimizer=True, clock="global", imitates="reference"),
    # Zelikman et al. 2022 without rationalisation, and Singh et al. 2023: both retrain the initial policy on what the
    # newest one found. They differ in how they sample: the preset `star` draws one greedy response, `rest_em` many.
    "star": Method(start="initial", inherit_optimizer=False, clock="iteration"),
    "rest_em": Method(start="initial", inherit_optimizer=False, clock="iteration"),
    "iterative_rft": Method(start="previous", inherit_optimizer=False, clock="iteration"),
    "continuous": Method(start="previous", inherit_optimizer=True, clock="global"),
}
