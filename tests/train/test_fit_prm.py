"""Fitting of process reward models: the loss, what is fitted to what, and the judging of readings in pretraining."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mstar_engine.data.digits import demonstrations
from mstar_engine.models.loading import save_model
from mstar_engine.models.tiny import build_tiny
from mstar_engine.reward.steps import step_ends
from mstar_engine.train.pretrain import claims
from mstar_engine.train.prm import fit_prm, new_prm, score_solutions, step_examples, step_quality
from mstar_engine.train.schedule import Schedule
from mstar_engine.train.steps import StepObjective, step_losses
from mstar_engine.types import LabelledSolution


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The untrained tiny model on disk, and its processor."""
    torch.set_num_threads(1)
    model, processor = build_tiny(0)
    path = tmp_path_factory.mktemp("tiny")
    save_model(model, processor, path)
    return path, processor


def solutions(tokenizer, count: int = 8) -> list[LabelledSolution]:
    """Worked problems; every second one is called wrong from its second step on."""
    found = []
    for number, problem in enumerate(demonstrations(count, 1)):
        ids = np.asarray(tokenizer(problem.response, add_special_tokens=False)["input_ids"], np.int32)
        ends = step_ends(ids, tokenizer)
        labels = tuple(1.0 if number % 2 or step == 0 else 0.25 * (step == 1) for step in range(len(ends)))
        found.append(
            LabelledSolution(problem=problem, sample=0, response_ids=ids, text=problem.response, correct=True,
                             prompt_length=0, step_ends=ends, labels=labels)
        )  # fmt: skip
    return found


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_loss_of_a_step(rows: int) -> None:
    """Cross-entropy of the positive label against the rest, hard and soft, and exact far out."""
    logits = torch.randn(50, rows, dtype=torch.float64) * 5
    labels = torch.rand(50, dtype=torch.float64).round(decimals=1)
    positive = logits[:, 0].sigmoid() if rows == 1 else logits.softmax(-1)[:, 0]
    torch.testing.assert_close(step_losses(logits, labels), F.binary_cross_entropy(positive, labels, reduction="none"))
    far = torch.tensor([[2e4] + [-2e4] * (rows - 1)])
    assert step_losses(far, torch.ones(1)).item() == 0.0
    assert np.isfinite(step_losses(far, torch.zeros(1)).item())


@pytest.mark.parametrize("head", ["mstar", "mstar_two_class", "mstar_scalar"])
def test_fitting_follows_the_labels(checkpoint, head: str) -> None:
    """Thirty passes over eight solutions: the loss falls and the scores tell right from wrong; twice the same."""
    path, processor = checkpoint
    given = solutions(processor.tokenizer)
    weights = []
    for _ in range(2):
        prm = new_prm(path, head, "here", seed=0, dtype="float32")
        examples = step_examples(prm, given, "hard")
        before = step_quality(prm, given, given)
        loss = fit_prm(prm, examples, lambda steps: Schedule(peak=3e-3, kind="linear", horizon=steps), epochs=30,
                       batch_size=4, weight_decay=0.0, seed=0)  # fmt: skip
        after = step_quality(prm, given, given)
        weights.append(torch.cat([p.flatten() for p in [*prm.model.parameters(), *prm.head.parameters()]]))
    assert loss < 0.45 and after.auc > max(0.85, before.auc)
    assert torch.equal(*weights)
    assert after.steps == sum(len(one.labels) for one in given)
    assert [len(steps) for steps in score_solutions(prm, given)] == [len(one.labels) for one in given]


def test_hard_and_soft_targets(checkpoint) -> None:
    """Hard: anything right that came of a step makes it right. Soft: the share itself."""
    path, processor = checkpoint
    prm = new_prm(path, "mstar", "here", seed=0, dtype="float32")
    given = solutions(processor.tokenizer, 1)
    (hard,), (soft,) = step_examples(prm, given, "hard"), step_examples(prm, given, "soft")
    assert soft.labels.tolist() == list(given[0].labels)
    assert hard.labels.tolist() == [float(label > 0) for label in given[0].labels]
    assert (hard.positions == np.asarray(given[0].step_ends) - 1).all()
    with pytest.raises(ValueError, match=r"prm.targets='medium'; allowed: hard, soft"):
        step_examples(prm, given, "medium")


def test_the_objective_is_the_mean_over_steps_however_it_is_batched(checkpoint) -> None:
    """Two micro-batches add up to one."""
    path, processor = checkpoint
    prm = new_prm(path, "mstar_scalar", "here", seed=0, dtype="float32")
    from mstar_engine.train.steps import StepClassifier

    model, objective = StepClassifier(prm.model, prm.head), StepObjective()
    examples = step_examples(prm, solutions(processor.tokenizer, 4), "soft")
    with torch.no_grad():
        whole = objective.loss(model, examples, prm.encoder, 0)
        parts = sum(objective.loss(model, examples[i : i + 1], prm.encoder, 0) for i in range(4))
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-5)
    assert objective.count(examples) == sum(len(example.labels) for example in examples)


def test_claims_say_what_is_shown_and_whether_it_was_read(checkpoint) -> None:
    """A line is labelled right exactly when its digit is the tile's; both kinds occur."""
    tokenizer = checkpoint[1].tokenizer
    found = claims(40, 5, tokenizer)
    seen = set()
    for claim in found:
        text = tokenizer.decode(claim.example.response_ids)
        lines = text.split("\n\n")[:-1]
        assert len(lines) == len(claim.digits) == len(claim.example.labels)
        for line, digit, label, end in zip(
            lines, claim.digits, claim.example.labels, claim.example.positions, strict=True
        ):
            assert (line.rsplit(" ", 1)[1] == str(digit)) == bool(label)
            assert tokenizer.decode([claim.example.response_ids[end]]) == "\n\n"
            seen.add(bool(label))
    assert seen == {True, False}
