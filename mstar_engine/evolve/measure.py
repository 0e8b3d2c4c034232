"""Measuring a policy: one engine call per problem set, each prompt prefilled once for greedy and samples together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mstar_engine.evolve.dynamics import (
    greedy_accuracy,
    pass_at_k,
    reward_pass_at_k,
    sample_accuracy,
    unbiased_pass_at_k,
    verifier_table,
)
from mstar_engine.report.progress import Phase
from mstar_engine.reward.answers import judge
from mstar_engine.reward.prm import ProcessRewardModel
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.rollout_file import RolloutWriter
from mstar_engine.types import Estimate, Group, Problem, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A policy on one problem set. All but `greedy` are None when nothing was sampled besides the greedy response, the
    last two without a process reward model. `verifier`: by K (powers of two), then voting rule; see `dynamics`.
    """

    greedy: Estimate
    pass_at_1: Estimate | None
    pass_at_k: Estimate | None
    unbiased_pass_at_k: Estimate | None
    reward_pass_at_2: Estimate | None
    verifier: dict[int, dict[str, Estimate]] | None


def measure_policy(
    engine: RolloutEngine,
    problems: Sequence[Problem],
    *,
    max_tokens: int,
    seed: int,
    samples: int = 0,
    k: int = 1,
    temperature: float = 1.0,
    writer: RolloutWriter | None = None,
    phase: Phase | None = None,
    prm: ProcessRewardModel | None = None,
) -> tuple[Measurement, list[Group]]:
    """Greedy accuracy of `problems` and, with `samples` more responses at `temperature`, Pass@1 and Pass@k.

    Returns the measurement and the judged groups in problem order; response 0 of a group is the greedy one. With a
    `writer` every group is kept as it finishes, and those it holds already are not sampled again. `prm` scores every
    response when there are samples.
    """
    params = SamplingParams(n=1 + samples, temperature=temperature, max_tokens=max_tokens, seed=seed)
    degrees = np.array([0.0] + [temperature] * samples, np.float32)
    order = {problem.id: index for index, problem in enumerate(problems)}
    kept = [] if writer is None else writer.groups({problem.id: problem for problem in problems})
    groups = [group for group in kept if group.problem.id in order]
    finished = {group.problem.id for group in groups}
    missing = [problem for problem in problems if problem.id not in finished]
    if phase is not None:
        phase.advance(len(groups))
    batches = engine.generate_batches(missing, params, temperatures=lambda _: degrees) if missing else ()
    for batch in batches:
        judged = [judge(group) for group in batch]
        if prm is not None and samples:
            judged = list(prm.scored(judged))
        if writer is not None:
            writer.write(*judged)
        groups += judged
        if phase is not None:
            phase.advance(len(judged), tokens=sum(len(r.token_ids) for group in judged for r in group.responses))
    if writer is not None:
        writer.finish()
    groups.sort(key=lambda group: order[group.problem.id])
    return measurement(groups, k, seed, scored=prm is not None and samples > 0), groups


def measurement(groups: Sequence[Group], k: int, seed: int, scored: bool) -> Measurement:
    """What judged groups say, whose first response is the greedy one; `scored`: every response has a score."""
    greedy = [replace(group, responses=group.responses[:1]) for group in groups]
    samples = len(groups[0].responses) - 1
    sampled = [replace(group, responses=group.responses[1:]) for group in groups] if samples else []
    return Measurement(
        greedy=greedy_accuracy(greedy),
        pass_at_1=sample_accuracy(sampled, seed) if sampled else None,
        pass_at_k=pass_at_k(sampled, k) if sampled else None,
        unbiased_pass_at_k=unbiased_pass_at_k(sampled, k, seed) if sampled else None,
        reward_pass_at_2=reward_pass_at_k(sampled, 2) if scored and samples > 1 else None,
        verifier=verifier_table(sampled, [2**i for i in range(samples.bit_length())]) if scored and sampled else None,
    )
