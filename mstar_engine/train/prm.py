"""Fitting a process reward model to labelled steps, and saying how good it is on steps it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mstar_engine.models.loading import load_model
from mstar_engine.reward.forms import FORMS
from mstar_engine.reward.head import RewardHead, fresh_layers
from mstar_engine.reward.prm import ProcessRewardModel
from mstar_engine.reward.prm_checkpoint import HEAD, KEY, build_head, description, head_tensors
from mstar_engine.reward.step_metrics import Balance, balance, best_threshold, macro_f1, process_bench_f1, step_auc
from mstar_engine.train.checkpoint import save_checkpoint
from mstar_engine.train.schedule import Schedule
from mstar_engine.train.steps import StepClassifier, StepExample, StepObjective
from mstar_engine.train.trainer import StepStats, Trainer
from mstar_engine.types import Group, LabelledSolution, Response

TARGETS = ("hard", "soft")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepQuality:
    """How step scores agree with labels (see reward/step_metrics.py); `threshold` was chosen on other steps.

    `f1` is ProcessBench's (with its two accuracies), `macro_f1` VisualProcessBench's. What the labels, being of one
    kind, do not define is None.
    """

    steps: int
    balance: float
    auc: float | None
    f1: float | None
    accuracy_on_erroneous: float | None
    accuracy_on_correct: float | None
    macro_f1: float
    threshold: float


def new_prm(
    path: str | Path,
    form: str,
    where: str,
    *,
    seed: int,
    dtype: str,
    attn_implementation: str = "sdpa",
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    **options: Any,
) -> ProcessRewardModel:
    """An unfitted process reward model on any checkpoint, such as the warmed-up policy's; `form` one of ours."""
    row = FORMS[form]
    model, processor = load_model(
        path,
        dtype=dtype,
        attn_implementation=attn_implementation,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    if row.head == "label_tokens":
        head = build_head(row, model, processor, where)
    else:
        width = model.config.get_text_config(decoder=True).hidden_size
        layers = fresh_layers(row.head, width, seed=seed, dtype=model.dtype, device=model.device)
        head = RewardHead(row.head, layers=layers, positive=row.positive)
    return ProcessRewardModel(model, processor, head, row, **options)


def step_examples(prm: ProcessRewardModel, solutions: Sequence[LabelledSolution], targets: str) -> list[StepExample]:
    """What the model is fitted to: `targets` "hard" makes every label above 0 a 1, "soft" takes labels as they are."""
    if targets not in TARGETS:
        raise ValueError(f"prm.targets={targets!r}; allowed: {', '.join(TARGETS)}")
    examples = []
    for one in solutions:
        laid = prm.layout.lay_out(one.response_ids, one.step_ends)
        labels = np.asarray(one.labels, np.float32)
        wanted = (labels > 0).astype(np.float32) if targets == "hard" else labels
        examples.append(
            StepExample(problem=one.problem, response_ids=laid.ids, positions=laid.positions, labels=wanted)
        )
    return examples


def fit_prm(
    prm: ProcessRewardModel,
    examples: Sequence[StepExample],
    schedule: Callable[[int], Schedule],
    *,
    epochs: int,
    batch_size: int,
    weight_decay: float,
    seed: int,
    progress: Callable[[StepStats], None] | None = None,
    max_tokens: int | None = None,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
) -> float:
    """Fit model and head to the examples; the mean loss of the last epoch, in nats a step.

    `schedule` gives the learning rates for a number of optimizer steps. The last three are the Trainer's.
    """
    total = epochs * -(-len(examples) // batch_size)
    trainer = Trainer(
        StepClassifier(prm.model, prm.head),
        prm.encoder,
        schedule(total),
        weight_decay=weight_decay,
        max_tokens=max_tokens,
        objective=StepObjective(),
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
    )
    loss = 0.0
    for epoch in range(epochs):
        loss = trainer.train_epoch(examples, batch_size=batch_size, seed=seed, epoch=epoch, progress=progress).loss
    prm.model.eval()
    return loss


def score_solutions(prm: ProcessRewardModel, solutions: Sequence[LabelledSolution]) -> list[tuple[float, ...]]:
    """The step scores of labelled solutions, those of a problem together; steps are split as their labels are."""
    groups: dict[str, list[int]] = {}
    for index, one in enumerate(solutions):
        groups.setdefault(one.problem.id, []).append(index)
    scores: list[tuple[float, ...]] = [()] * len(solutions)
    asked = [[solutions[i] for i in indices] for indices in groups.values()]
    found = prm.score_groups([_group(members) for members in asked], ends=[[m.step_ends for m in ms] for ms in asked])
    for indices, group in zip(groups.values(), found):
        for index, steps in zip(indices, group.step_scores):
            scores[index] = steps
    return scores


def _group(solutions: Sequence[LabelledSolution]) -> Group:
    nothing = np.empty(0, np.float32)
    responses = tuple(
        Response(
            sample=one.sample,
            token_ids=one.response_ids,
            text=one.text,
            logprobs=nothing,
            scaled_logprobs=nothing,
            filtered_logprobs=nothing,
            entropy=nothing,
            finish_reason="stop",
            temperature=1.0,
        )
        for one in solutions
    )
    return Group(problem=solutions[0].problem, responses=responses, prompt_length=solutions[0].prompt_length)


def step_quality(
    prm: ProcessRewardModel, held_out: Sequence[LabelledSolution], seen: Sequence[LabelledSolution]
) -> StepQuality:
    """Quality on `held_out` steps; the threshold between right and wrong is chosen on `seen` ones."""
    chosen = best_threshold(score_solutions(prm, seen), _hard(seen))
    threshold = 0.5 if chosen is None else chosen
    scores, labels = score_solutions(prm, held_out), _hard(held_out)
    bench, counted = process_bench_f1(scores, labels, threshold), balance(labels)
    return StepQuality(
        steps=counted.steps,
        balance=counted.positive / counted.steps,
        auc=step_auc(scores, labels),
        f1=bench.f1,
        accuracy_on_erroneous=bench.error_accuracy,
        accuracy_on_correct=bench.correct_accuracy,
        macro_f1=macro_f1(scores, labels, threshold),
        threshold=threshold,
    )


def _hard(solutions: Sequence[LabelledSolution]) -> list[tuple[float, ...]]:
    """Labels as right or wrong: right when anything right came of the step."""
    return [tuple(float(label > 0) for label in one.labels) for one in solutions]


def class_balance(solutions: Sequence[LabelledSolution]) -> Balance:
    """Steps, right and wrong ones, and where errors begin."""
    return balance(_hard(solutions))


def save_prm(path: Path, prm: ProcessRewardModel, form: str, **state: Any) -> None:
    """Write the model as a Hugging Face checkpoint directory that `load_prm` reads back without being told its form."""
    setattr(prm.model.config, KEY, description(form, prm))
    tensors = head_tensors(prm.head, prm.form)
    save_checkpoint(path, prm.model, prm.processor, state=state, files={HEAD: tensors} if tensors else {})
