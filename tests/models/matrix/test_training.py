"""A family is taught what it sampled: training computes what the rollout did. Examples whose images do not share a
forward are trained one at a time, others together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import FixedPrompts
from family import FAMILIES, AbsentError, build, prompts
from matrix import load_families
from taught import taught

from mstar_engine.models.tiny import build_tiny
from mstar_engine.train.likelihood import Likelihood
from mstar_engine.types import Problem, TrainingExample

load_families()


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities_in_training_are_those_of_the_rollout(name: str) -> None:
    try:
        assert taught(name) == {}
    except AbsentError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("name", "together"), [("minicpmv4_6", False), ("molmo2", False), ("qwen2_vl", True)])
def test_the_loss_of_a_batch_is_that_of_its_examples(name: str, together: bool) -> None:
    made = FAMILIES[name]()
    try:
        model = build(made)
    except AbsentError as error:
        pytest.skip(str(error))
    encoder = FixedPrompts(prompts(made), build_tiny(0)[1])
    response = np.arange(30, 36, dtype=np.int32)
    cases = ("one", "again", "none")
    examples = [TrainingExample(problem=Problem(id=case, question=""), response_ids=response) for case in cases]
    objective = Likelihood()
    runs = list(objective.runs(model, examples, encoder, None, None))
    assert len(runs) == (1 if together else len(cases))
    with torch.no_grad():
        found = sum(float(objective.loss(model, run, encoder, 0)) for run in runs)
        alone = sum(float(objective.loss(model, [example], encoder, 0)) for example in examples)
    assert found == pytest.approx(alone, rel=1e-5)
