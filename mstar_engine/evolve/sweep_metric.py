"""What a temperature is chosen by: one number in [0, 1] for the responses that a problem got at one temperature.

A function of outcomes, not of texts: a sweep keeps no texts. All responses of the problem at the temperature count.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mstar_engine.config import RunConfig
from mstar_engine.types import Response

NEED_SCORES = ("reward_pass_at_k",)
"""Metrics that cannot do without step scores."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """The responses to one problem at one temperature, in sample order: arrays [n].

    `correct` bool; `score` float64, NaN without a process reward model; `length` int32, in tokens; `text` int64, equal
    for equal texts (surrounding white space aside).
    """

    correct: np.ndarray
    score: np.ndarray
    length: np.ndarray
    text: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepMetric:
    """`kind` "reward_pass_at_k", "pass_at_k" or "balance"; `k` of the first two, `target` and `threshold` of the last.

    - Reward-Pass@k: 1 when a correct response is among the k of the highest score, else 0; ties as in
      `dynamics.reward_pass_at_k` (paper section 4).
    - Pass@k: 1 - C(n - c, k) / C(n, k), the unbiased estimate from all n.
    - Balance, B-STaR's min(n' / n*, 1) * n' / n (Zeng et al. 2024, arXiv 2412.17256; determine_hyper.py in
      github.com/hkust-nlp/B-STaR): of the n distinct responses that the reward selects, n' are correct; n* is `target`.
      Selected is what scores above `threshold`; without scores, everything. Nothing selected is 0. B-STaR searches the
      threshold with the temperature; here it is the run's.
    """

    kind: str
    k: int
    target: int
    threshold: float

    @classmethod
    def of(cls, config: RunConfig) -> SweepMetric:
        """The metric of a run; the threshold is `select.alpha`, 0.5 without one."""
        chosen, alpha = config.temperature, config.select.alpha
        threshold = 0.5 if alpha is None else alpha
        return cls(kind=chosen.metric, k=chosen.k or chosen.n, target=chosen.balance_target, threshold=threshold)

    def __call__(self, outcomes: Outcomes) -> float:
        """The value of one problem at one temperature. ValueError when it needs scores and there are none."""
        if self.kind == "pass_at_k":
            n, missed = len(outcomes.correct), len(outcomes.correct) - int(outcomes.correct.sum())
            return 1.0 - math.prod((missed - i) / (n - i) for i in range(self.k))
        if self.kind == "balance":
            return self._balance(outcomes)
        if np.isnan(outcomes.score).any():
            raise ValueError("temperature.metric=reward_pass_at_k: it needs a score for every response")
        order = np.lexsort((outcomes.length, -outcomes.score))  # stable: then the earlier sample
        return float(outcomes.correct[order[: self.k]].any())

    def _balance(self, outcomes: Outcomes) -> float:
        _, first = np.unique(outcomes.text, return_index=True)
        score = outcomes.score[first]
        kept = first[np.isnan(score) | (score > self.threshold)]
        right = int(outcomes.correct[kept].sum())
        return min(right / self.target, 1.0) * right / len(kept) if len(kept) else 0.0


def outcomes_of(responses: Sequence[Response]) -> Outcomes:
    """The outcomes of judged responses. ValueError names a response without a verdict."""
    for response in responses:
        if response.correct is None:
            raise ValueError(f"sample {response.sample}: not judged")
    return Outcomes(
        np.array([r.correct for r in responses], bool),
        np.array([math.nan if r.score is None else r.score for r in responses], np.float64),
        np.array([len(r.token_ids) for r in responses], np.int32),
        np.array([text_key(r.text) for r in responses], np.int64),
    )


def text_key(text: str) -> int:
    """A signed 64-bit hash of a text, surrounding white space aside."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "little", signed=True)
