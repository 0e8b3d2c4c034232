"""Measuring a policy: one engine call per problem set, each prompt prefilled once for greedy and samples together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mstar_engine.evolve.dynamics import measure, reward_pass_at_k, verifier_table
from mstar_engine.report.progress import Phase
from mstar_engine.reward.answers import judge
from mstar_engine.reward.prm import ProcessRewardModel
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.rollout_file import RolloutWriter
from mstar_engine.types import Estimate, Group, Problem, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A policy on one problem set: its `dynamics` by name (see `dynamics.measure`), at `k` and `reward_k`.

    `reward_pass_at_2` is Reward-Pass@K at the paper's 2, whatever `reward_k` is; `verifier`: by K (powers of two), then
    voting rule. Both are None without samples or without a process reward model.
    """

    dynamics: dict[str, Estimate]
    k: int
    reward_k: int
    reward_pass_at_2: Estimate | None
    verifier: dict[int, dict[str, Estimate]] | None

    @property
    def greedy(self) -> Estimate:
        """Greedy accuracy."""
        return self.dynamics["greedy"]

    @property
    def pass_at_1(self) -> Estimate | None:
        """Mean share of right samples a problem; None without samples."""
        return self.dynamics.get("pass_at_1")

    @property
    def pass_at_k(self) -> Estimate | None:
        """Share of problems with a right one among `k` samples; None without samples."""
        return self.dynamics.get("pass_at_k")

    def samples_in_words(self) -> str:
        """What sampling reached, for a progress line: "Pass@8 65.6%  Reward-Pass@2 44.4%", as far as measured."""
        labels = {"pass_at_k": f"Pass@{self.k}", "reward_pass_at_k": f"Reward-Pass@{self.reward_k}"}
        found = [(label, self.dynamics[name]) for name, label in labels.items() if name in self.dynamics]
        return "  ".join(f"{label} {100 * estimate.value:.1f}%" for label, estimate in found)


def measure_policy(
    engine: RolloutEngine,
    problems: Sequence[Problem],
    *,
    max_tokens: int,
    seed: int,
    samples: int = 0,
    k: int = 1,
    reward_k: int = 2,
    temperature: float = 1.0,
    delimiter: str = "\n\n",
    max_steps: int = 0,
    writer: RolloutWriter | None = None,
    phase: Phase | None = None,
    prm: ProcessRewardModel | None = None,
) -> tuple[Measurement, list[Group]]:
    """Greedy accuracy of `problems` and, with `samples` more responses at `temperature`, all of their dynamics.

    `k` is that of Pass@K, `reward_k` that of Reward-Pass@K, each at most `samples` where it is measured (ValueError);
    `delimiter` and `max_steps` divide responses into steps. The greedy response and the samples of a problem are
    branches of one prompt. Returns the measurement and the judged groups in problem order; response 0 of a group is
    the greedy one. With a `writer` every group is kept as it finishes, and those it holds already are not sampled
    again. `prm` scores every response when there are samples.
    """
    scored = prm is not None and samples > 0
    for name, value, measured in (("k", k, samples > 0), ("reward_k", reward_k, scored)):
        if measured and not 1 <= value <= samples:
            raise ValueError(f"measure_policy: {name}={value}; allowed: 1 to samples={samples}")
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
        if scored:
            judged = list(prm.scored(judged))
        if writer is not None:
            writer.write(*judged)
        groups += judged
        if phase is not None:
            phase.advance(len(judged), tokens=sum(len(r.token_ids) for group in judged for r in group.responses))
    if writer is not None:
        writer.finish()
    groups.sort(key=lambda group: order[group.problem.id])
    found = measurement(
        groups, k=k, reward_k=reward_k, scored=scored, seed=seed, delimiter=delimiter, max_steps=max_steps
    )
    return found, groups


def measurement(
    groups: Sequence[Group],
    *,
    k: int,
    reward_k: int,
    scored: bool,
    seed: int,
    delimiter: str = "\n\n",
    max_steps: int = 0,
) -> Measurement:
    """What judged groups say, whose first response is the greedy one; `scored`: every response has a score."""
    samples = len(groups[0].responses) - 1
    sampled = [replace(group, responses=group.responses[1:]) for group in groups] if scored else []
    return Measurement(
        dynamics=measure(
            groups, k=k, reward_k=reward_k, scored=scored, seed=seed, delimiter=delimiter, max_steps=max_steps
        ),
        k=k,
        reward_k=reward_k,
        reward_pass_at_2=reward_pass_at_k(sampled, 2) if scored and samples > 1 else None,
        verifier=verifier_table(sampled, [2**i for i in range(samples.bit_length())]) if scored else None,
    )
