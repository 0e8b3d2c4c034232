"""What an iteration learns from: selected responses of the policy's own, or reference answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.reward.answers import bare_answer
from mstar_engine.train.collate import imitate
from mstar_engine.types import Group, Problem, TrainingExample


def selected_examples(groups: Sequence[Group]) -> list[TrainingExample]:
    """What the improve phase imitates: the selected responses, by problem, then sample."""
    return [
        TrainingExample(problem=group.problem, response_ids=response.token_ids)
        for group in groups
        for response in group.responses
        if response.selected
    ]


def reference_example(problem: Problem, encoder: PromptEncoder) -> TrainingExample:
    """What SFT imitates: the worked response that the data has, else the bare reference answer."""
    if problem.response is None and problem.gold is None:
        raise ValueError(f"problem {problem.id}: neither a response nor a reference answer; method sft needs one")
    return imitate(
        replace(problem, response=problem.response or bare_answer(problem.gold, problem.answer_type)), encoder
    )
