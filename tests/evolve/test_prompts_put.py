"""How problems are put to a policy: by default as ever, and by a template everywhere alike."""

import numpy as np
import pytest
import torch

from mstar_engine.config_parse import load_config
from mstar_engine.data.digits import digits_problems
from mstar_engine.evolve.hint import HintedPrompts
from mstar_engine.evolve.policy import Policy, prompt_encoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.reward.prm_checkpoint import load_prm
from mstar_engine.train.prm import new_prm, save_prm
from mstar_engine.train.schedule import Schedule
from mstar_engine.types import Problem

MODEL, PROCESSOR = build_tiny(0)
PUT = ["prompts.system=Read ", "prompts.template={question} Go."]


def rendered(text: str, images: list, system: str | None = None) -> list[int]:
    """Token ids of a prompt, by the processor alone."""
    content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    if system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return PROCESSOR.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )["input_ids"][0].tolist()


def ids(encoder, problem: Problem) -> list[int]:
    return encoder.encode(problem).input_ids.tolist()


@pytest.mark.parametrize("question", [None, "{question} {{x}}", r"\frac{1}{2} {"])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_prompts_by_default_are_the_question(question, images):
    first, second = digits_problems("train", 2)
    pictures = (*first.images, *second.images)[:images]
    problem = Problem(id="a", question=question or first.question, images=pictures)
    expected = rendered(problem.question, list(pictures))
    for recipe in (None, "smoke", "ablation"):
        assert ids(prompt_encoder(PROCESSOR, load_config(recipe)), problem) == expected


def test_one_encoder_for_sampling_training_and_measuring():
    problem = digits_problems("train", 1)[0]
    policy = Policy(MODEL, PROCESSOR, load_config("smoke", PUT), Schedule(peak=1e-3, kind="constant", horizon=1))
    assert policy.encoder is policy.engine.encoder is policy.trainer.encoder
    assert ids(policy.encoder, problem) == rendered(f"{problem.question} Go.", list(problem.images), "Read")


def test_the_hint_is_a_prompt_of_its_own():
    """It has the run's system message, and not the ordinary template."""
    problem = digits_problems("train", 1)[0]
    config = load_config("smoke", [*PUT, "warmup.prompt={answer}: {question} {{}}"])
    expected = rendered(f"{problem.gold}: {problem.question} {{}}", list(problem.images), "Read")
    assert ids(HintedPrompts.of(PROCESSOR, config), problem) == expected


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    MODEL.save_pretrained(path)
    PROCESSOR.save_pretrained(path)
    return path


@pytest.mark.parametrize("put", [PUT, []])
def test_a_process_reward_model_is_asked_as_it_was_when_it_was_fitted(base, tmp_path, put):
    config = load_config("smoke", put)
    problem = digits_problems("train", 1)[0]
    wanted = ids(prompt_encoder(PROCESSOR, config), problem)
    options = {"system": config.prompts.system or None, "template": config.prompts.template}
    prm = new_prm(base, "mstar", "here", seed=0, dtype="float32", **options)
    assert ids(prm.encoder, problem) == wanted
    save_prm(tmp_path / "prm", prm, "mstar")
    again = load_prm(tmp_path / "prm", policy_processor=PROCESSOR, max_steps=0)
    assert ids(again.encoder, problem) == wanted
    assert ids(load_prm(tmp_path / "prm", form="math_shepherd").encoder, problem) == wanted


def test_forms_put_their_question_around_the_template(base):
    prm = new_prm(base, "mstar", "here", seed=0, dtype="float32", template="{question} {{Go}}")
    encoder = type(prm.layout)(prm.form, PROCESSOR, None, "{question} {{Go}}").encoder(PROCESSOR)
    problem = Problem(id="a", question="{x}")
    assert encoder.text(problem) == prm.encoder.text(problem) == "{x} {Go}"
    assert np.array_equal(encoder.encode(problem).input_ids, torch.tensor(rendered("{x} {Go}", [])))
