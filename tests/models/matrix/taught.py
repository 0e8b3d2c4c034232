"""What training and process rewards make of responses that a family sampled, against what the rollout did.

A response is sampled a token at a time and taught in one forward: its log-probabilities must be the same, or it is
taught something else than it was (a token that sees those behind it learns to copy them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from families import FixedPrompts
from family import FAMILIES, build, prompts
from matrix import processor

from mstar_engine.models.backbone import hidden_states
from mstar_engine.models.compatibility import special_image_ids
from mstar_engine.rollout.branches import BranchRunner, Trunk
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.train.batch_norm import keep_statistics
from mstar_engine.train.collate import collate
from mstar_engine.train.likelihood import Likelihood
from mstar_engine.types import Group, Problem, SamplingParams, TrainingExample

CLOSE = 5e-4
"""Of log-probabilities a token, and of hidden states relative to their norm."""
SAMPLED = SamplingParams(n=4, temperature=1.0, max_tokens=4, seed=3)


def taught(name: str) -> dict[str, str]:
    """What differs, in words, by where: each example alone, padded together, packed where the family packs, and below
    its prompt as a process reward model reads it. Empty where nothing does."""
    made = FAMILIES[name]()
    model, shown = build(made), {case: prompt for case, prompt in prompts(made).items() if case != "resized"}
    encoder = FixedPrompts(shown, processor())
    engine = RolloutEngine(model, encoder)
    engine.stop_ids = lambda: []
    engine.banned_ids = engine.banned_ids[:0]  # training spreads over the whole vocabulary
    images = np.array(special_image_ids(model.config, engine.processor))
    groups = [
        _without(group, images) for group in engine.generate([Problem(id=case, question="") for case in shown], SAMPLED)
    ]
    model.train()
    found = {}
    for group in groups:
        loss = float(Likelihood().loss(model, _examples([group])[:1], encoder, 0).detach())
        found[f"{group.problem.id}, alone"] = _unlike(loss, group.responses[:1])
    for packing in (False, True):
        objective, examples = Likelihood(packing=packing), _examples(groups)
        losses = [
            objective.loss(model, run, encoder, 0).detach() for run in objective.runs(model, examples, encoder, None, 4)
        ]
        everything = [response for group in groups for response in group.responses]
        found["packed" if packing else "together"] = _unlike(float(sum(losses)), everything)
    if model.base_model is not model:  # there is a part below the output head, in this version
        found["process rewards"] = _branches(model, encoder, groups)
    return {where: what for where, what in found.items() if what}


def _without(group: Group, images: np.ndarray) -> Group:
    """The first two responses without an image token: those with one cannot be taught."""
    fit = [response for response in group.responses if not np.isin(response.token_ids, images).any()]
    return replace(group, responses=tuple(fit[:2]))


def _examples(groups: Sequence[Group]) -> list[TrainingExample]:
    return [TrainingExample(problem=g.problem, response_ids=r.token_ids) for g in groups for r in g.responses]


def _unlike(loss: float, responses: Sequence[object]) -> str:
    logprobs = np.concatenate([response.logprobs for response in responses])
    difference = abs(loss + float(logprobs.sum())) / len(logprobs)
    return "" if difference <= CLOSE else f"a loss of {loss:.4f}, not {-float(logprobs.sum()):.4f}"


@torch.no_grad()
def _branches(model, encoder: FixedPrompts, groups: Sequence[Group]) -> str:
    """Final hidden states of responses below their prompts against those of training's forwards."""
    trunks = [Trunk(encoder.encode(group.problem), [r.token_ids for r in group.responses]) for group in groups]
    worst = 0.0
    for which, states in BranchRunner(model).run(trunks):
        for index, begins in zip(which, states.begins):
            start = len(trunks[index].prompt.input_ids)
            keep_statistics(model)
            for example, begin in zip(_examples([groups[index]]), begins):
                expected = hidden_states(model, **collate([example], encoder, model=model).inputs)[0, start:]
                found = states.hidden[begin : begin + len(expected)]
                worst = max(worst, float((found - expected).norm() / expected.norm()))
    return "" if worst <= CLOSE else f"hidden states differ by {worst:.2g}"
