"""Scores of the steps of responses with a 3B process reward model, the prompt shared, against a forward per response.

The scores of both ways are compared before anything is timed. Floor: the tokens that the backbone must compute at the
peer's speed per token, the prompt once a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.floors import computed_share
from benchmarks.gpu.goals import Goal
from benchmarks.gpu.qwen import ImagePrompts, build_model, problems
from benchmarks.gpu.sizes import FIRST_TEXT_ID, QWEN_3B, TINY_MODEL
from benchmarks.gpu.suite_row import Skipped, SuiteRow
from benchmarks.harness import Side, median_seconds
from mstar_engine.reward.forms import FORMS
from mstar_engine.reward.head import RewardHead
from mstar_engine.reward.prm import ProcessRewardModel
from mstar_engine.rollout.runner import stack_inputs
from mstar_engine.types import Group, Response

LABELS = (FIRST_TEXT_ID, FIRST_TEXT_ID + 1)


@dataclass(frozen=True, slots=True)
class Scoring:
    """`groups` prompts of `prompt` tokens, `samples` responses of `response` tokens each, `steps` steps a response."""

    groups: int
    samples: int
    prompt: int
    response: int
    steps: int


MOST_APART = {"cpu": 1e-4, "cuda": 0.15}
"""Between the scores, of either side: bfloat16 in another order of summation, layer upon layer, on the device."""
FULL, TINY = Scoring(16, 16, 1500, 500, 10), Scoring(2, 2, 24, 6, 2)


class Work:
    """The responses and the two ways to score them; each returns the scores, [groups, samples, steps]."""

    def __init__(self, model: PreTrainedModel, prompts: ImagePrompts, scoring: Scoring) -> None:
        self.model = model
        self.scoring = scoring
        self.head = RewardHead("label_tokens", output=model.get_output_embeddings(), label_ids=LABELS)
        self.prm = ProcessRewardModel(model, prompts.processor, self.head, FORMS["mstar"])
        self.prm.encoder = prompts
        shape = (scoring.groups, scoring.samples, scoring.response)
        ids = np.random.default_rng(0).integers(FIRST_TEXT_ID, prompts.sizes.image_id, shape)
        self.ids = torch.from_numpy(ids)
        self.encoded = [prompts.encode(problem) for problem in problems(scoring.groups)]
        self.groups = [
            Group(
                problem=problem,
                responses=tuple(_response(i, one) for i, one in enumerate(of_group.astype(np.int32))),
                prompt_length=scoring.prompt,
            )
            for problem, of_group in zip(problems(scoring.groups), ids)
        ]
        each = scoring.response // scoring.steps
        self.ends = list(range(each, scoring.steps * each + 1, each))

    def ours(self) -> np.ndarray:
        """The prompt once a group, the responses as branches below it."""
        ends = [[self.ends] * self.scoring.samples] * self.scoring.groups
        return np.array([found.step_scores for found in self.prm.score_groups(self.groups, ends)])

    @torch.no_grad()
    def peer(self) -> np.ndarray:
        """One forward per response through the backbone, then the label rows at step ends."""
        label_rows = self.head.label_rows()[0]
        at = torch.tensor(self.ends, device=self.model.device) + self.scoring.prompt - 1
        found = []
        for prompt, of_group in zip(self.encoded, self.ids):
            inputs = stack_inputs([prompt], self.model.device)
            for ids in of_group.to(self.model.device):
                whole = dict(inputs, input_ids=torch.cat([inputs["input_ids"], ids[None]], 1), attention_mask=None)
                for name in prompt.token_inputs:
                    whole[name] = torch.nn.functional.pad(inputs[name], (0, len(ids)))
                hidden = self.model.base_model(**whole, use_cache=False).last_hidden_state
                found.append((hidden[0, at] @ label_rows.T).float().softmax(-1)[:, 0])
        return torch.stack(found).view(len(self.encoded), -1, len(self.ends)).cpu().numpy()


def rows(bench: Bench) -> Iterator[SuiteRow | Skipped]:
    """Both ways, turn by turn."""
    sizes, scoring = bench.sized((QWEN_3B, FULL), (TINY_MODEL, TINY))
    work = Work(build_model(sizes, bench.device), ImagePrompts(sizes, scoring.prompt), scoring)
    sides = [Side("ProcessRewardModel", work.ours), Side("a forward per response", work.peer)]
    apart = float(np.abs(work.ours() - work.peer()).max())
    allowed = MOST_APART[bench.device.type]
    assert apart <= allowed, f"the scores are {apart:.3g} apart; allowed: {allowed}"
    ours, peer = median_seconds(sides, repeats=bench.sized(2, 1))
    share = computed_share(scoring.samples, scoring.prompt, scoring.response)
    yield bench.values(
        f"step scores, {scoring.groups}x{scoring.samples} responses, {scoring.prompt}+{scoring.response}",
        sides[0].name, sides[1].name, ours, peer, "s", floor=peer * share, goal=Goal(least_ratio=3.0),
        note=f"scores at most {apart:.2g} apart",
    )  # fmt: skip


def _response(sample: int, ids: np.ndarray) -> Response:
    nothing = np.zeros(0, np.float32)
    return Response(
        sample=sample, token_ids=ids, text="", logprobs=nothing, scaled_logprobs=nothing, filtered_logprobs=nothing,
        entropy=nothing, finish_reason="stop", temperature=1.0,
    )  # fmt: skip
