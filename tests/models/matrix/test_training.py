"""A family is taught what it sampled: training computes what the rollout did. Examples whose images do not share a
forward are trained one at a time, others together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from families import FixedPrompts
from family import FAMILIES, AbsentError, build, prompts
from matrix import load_families
from taught import taught
from transformers import AutoModelForImageTextToText, Gemma2Model

from mstar_engine.models.loading import blank_model, with_attention
from mstar_engine.models.tiny import build_tiny
from mstar_engine.models.vision_tower import freeze_vision_tower
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


@pytest.mark.parametrize("name", ["phi4_multimodal", "chameleon", "emu3", "idefics3"])
def test_freezing_what_sees_images_leaves_the_language_model(name: str) -> None:
    """These have no module of the usual name: the layers stand beside the tower, or have a name of their own."""
    try:
        model = build(FAMILIES[name]())
    except AbsentError as error:
        pytest.skip(str(error))
    freeze_vision_tower(model)
    trained = {part for part, p in model.named_parameters() if p.requires_grad}
    frozen = {part for part, p in model.named_parameters() if not p.requires_grad}
    layers = {part for part in trained | frozen if part.startswith(("model.layers.", "model.text_model.layers."))}
    assert layers and layers <= trained
    assert frozen and all(any(word in part for word in ("vision", "vqmodel", "embed_tokens_extend")) for part in frozen)


def test_a_part_without_sdpa_runs_eagerly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Gemma 2, below PaliGemma 2, has a soft cap."""
    if Gemma2Model._supports_sdpa:
        pytest.skip("this version of transformers takes sdpa for it")
    build(FAMILIES["paligemma2"]()).save_pretrained(tmp_path)
    model = with_attention(AutoModelForImageTextToText, tmp_path, "sdpa")
    assert model.model.language_model.config._attn_implementation == "eager"
    assert model.model.vision_tower.config._attn_implementation == "sdpa"
    assert "Gemma2Model runs eagerly" in caplog.text


@pytest.mark.parametrize("name", ["phi4_multimodal", "paligemma2"])
def test_what_a_checkpoint_holds_is_told_without_its_weights(name: str) -> None:
    """For a family that is listed under several modalities, and one with a part without sdpa."""
    made = FAMILIES[name]()
    assert dict(blank_model(made.config()).named_parameters()).keys() == dict(build(made).named_parameters()).keys()
