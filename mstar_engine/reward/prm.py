"""Scoring the steps of responses with a process reward model (paper section 3.2), a group at a time.

R_p(y) = min over steps of f(s_i). The prompt and its images go through the model once a group, each distinct response
once; hidden states are read at step ends and meet the label rows of the head alone, so no logit of the rest of the
vocabulary exists at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from mstar_engine.prompt_template import PLAIN
from mstar_engine.reward.forms import PrmForm
from mstar_engine.reward.head import RewardHead
from mstar_engine.reward.layout import LaidOut, Layout
from mstar_engine.reward.steps import check_steps, step_ends
from mstar_engine.rollout.branches import BranchRunner, BranchStats, Trunk
from mstar_engine.types import Group, Response
from mstar_kernels.step_rewards import check_indices, step_rewards

REDUCTIONS = ("min", "mean", "product", "last")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupScores:
    """The scores of a group, in the order of its responses.

    `step_scores`: in [0, 1], one a step. `scores`: the reduced score of each response. `weakest`: the index of its
    weakest step, the first on a tie. A response without a step (empty, or white space) has no step scores, the score 0
    and no weakest step.
    """

    step_scores: tuple[tuple[float, ...], ...]
    scores: tuple[float, ...]
    weakest: tuple[int | None, ...]


class ProcessRewardModel:
    """A frozen process reward model: `model` with a `head`, steps read in `form`.

    `delimiter` and `max_steps` split responses (see `steps.step_ends`); `reduction` is "min", "mean", "product" or
    "last". `system` and `template`: how problems were put to it when it was fitted. `processor` is the model's; its
    tokenizer must be the policy's (see `prm_checkpoint`). `max_tokens` bounds the response tokens of one forward.
    `stats` counts the tokens the backbone computed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor,
        head: RewardHead,
        form: PrmForm,
        *,
        delimiter: str = "\n\n",
        max_steps: int = 0,
        reduction: str = "min",
        system: str | None = None,
        template: str = PLAIN,
        max_tokens: int = 8192,
        backend: str = "auto",
    ) -> None:
        if reduction not in REDUCTIONS:
            raise ValueError(f"ProcessRewardModel: reduction={reduction!r}; allowed: {', '.join(REDUCTIONS)}")
        self.model = model
        self.processor = processor
        self.head = head
        self.form = form
        self.delimiter = delimiter
        self.max_steps = max_steps
        self.reduction = reduction
        self.backend = backend
        self.layout = Layout(form, processor, system, template)
        self.encoder = self.layout.encoder(processor)
        self.runner = BranchRunner(model, max_tokens=max_tokens)

    @property
    def stats(self) -> BranchStats:
        """Backbone tokens computed so far."""
        return self.runner.stats

    def step_ends(self, response: Response) -> tuple[int, ...]:
        """Exclusive token ends of a response's steps."""
        return step_ends(response.token_ids, self.layout.tokenizer, self.delimiter, self.max_steps)

    def score(self, group: Group) -> GroupScores:
        """The scores of one group's responses."""
        (scores,) = self.score_groups([group])
        return scores

    def score_groups(
        self, groups: Sequence[Group], ends: Sequence[Sequence[Sequence[int]]] | None = None
    ) -> Iterator[GroupScores]:
        """The scores of groups, in order; many share a forward. Equal responses of a group are computed once.

        `ends`: the exclusive token ends of the steps of each response of each group, where they are known already.
        """
        plans = [_GroupPlan(self, group, None if ends is None else ends[i]) for i, group in enumerate(groups)]
        trunks = [Trunk(self.encoder.encode(plan.group.problem), [laid.ids for laid in plan.laid]) for plan in plans]
        with torch.no_grad():
            for which, states in self.runner.run(trunks):
                yield from self._reduce([plans[i] for i in which], states.hidden, states.begins)

    def scored(self, groups: Sequence[Group]) -> Iterator[Group]:
        """The groups with `step_scores` and `score` filled."""
        for group, scores in zip(groups, self.score_groups(groups)):
            filled = zip(group.responses, scores.step_scores, scores.scores)
            yield replace(group, responses=tuple(replace(r, step_scores=s, score=v) for r, s, v in filled))

    def _reduce(self, plans: list[_GroupPlan], hidden: torch.Tensor, begins: list[list[int]]) -> Iterator[GroupScores]:
        positions = [laid.positions + row for plan, rows in zip(plans, begins) for laid, row in zip(plan.laid, rows)]
        counts = [len(one) for one in positions]
        if not counts:
            yield from (plan.scores([], [], []) for plan in plans)
            return
        at = torch.from_numpy(np.concatenate(positions).astype(np.int32))
        bounds = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        check_indices(at, bounds, tokens=len(hidden))  # here on the host, so that nothing waits for the device
        at, bounds = (indices.to(hidden.device, non_blocking=True) for indices in (at, bounds))
        rows, bias = self.head.label_rows()
        if self.head.deep:  # layers before the rows see the step ends alone
            hidden = self.head.transform(hidden[at.long()]).contiguous()
            at = torch.arange(len(at), dtype=torch.int32, device=hidden.device)
        rewards = step_rewards(
            hidden.contiguous(),
            rows.contiguous(),
            at,
            bounds,
            bias=None if bias is None else bias.float().contiguous(),
            head=self.head.activation,
            reduction=self.reduction,
            backend=self.backend,
            checked=True,
            deferred=True,
        )
        found = rewards.scores.cpu().numpy()
        unfit = np.flatnonzero(~np.isfinite(found))
        if len(unfit):
            where = int(np.searchsorted(np.cumsum(counts), unfit[0], side="right"))
            plan, sample = [(plan, sample) for plan in plans for sample in plan.samples][where]
            raise ValueError(
                f"process reward model: NaN or infinite score for problem {plan.group.problem.id}, sample {sample}"
            )
        step_scores = np.split(found, np.cumsum(counts)[:-1])
        reduced, weakest = rewards.reduced.tolist(), rewards.weakest.tolist()
        first = 0
        for plan in plans:
            last = first + len(plan.laid)
            yield plan.scores(step_scores[first:last], reduced[first:last], weakest[first:last])
            first = last


class _GroupPlan:
    """A group's distinct responses, laid out; `place[i]` is where response i stands among them, None without steps."""

    def __init__(self, prm: ProcessRewardModel, group: Group, known: Sequence[Sequence[int]] | None = None) -> None:
        self.group = group
        self.laid: list[LaidOut] = []
        self.samples: list[int] = []
        self.place: list[int | None] = []
        seen: dict[tuple[bytes, tuple[int, ...] | None], int | None] = {}
        for index, response in enumerate(group.responses):
            key = (np.ascontiguousarray(response.token_ids).tobytes(), None if known is None else tuple(known[index]))
            if key not in seen:
                ends = prm.step_ends(response) if known is None else known[index]
                seen[key] = len(self.laid) if ends else None
                if known is not None and ends:
                    check_steps(ends, len(response.token_ids), f"problem {group.problem.id}, sample {response.sample}")
                if ends:
                    self.samples.append(response.sample)
                    self.laid.append(prm.layout.lay_out(response.token_ids, ends))
            self.place.append(seen[key])

    def scores(self, steps: Sequence[np.ndarray], reduced: Sequence[float], weakest: Sequence[int]) -> GroupScores:
        """Scores of the distinct responses, dealt out to all."""
        return GroupScores(
            step_scores=tuple(() if p is None else tuple(map(float, steps[p])) for p in self.place),
            scores=tuple(0.0 if p is None else float(reduced[p]) for p in self.place),
            weakest=tuple(None if p is None else int(weakest[p]) for p in self.place),
        )
