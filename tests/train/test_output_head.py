"""The likelihood through the output head by parts, for tiny models of many families: exact where the probe says so."""

import functools
from copy import deepcopy

import pytest
import torch
from families import CONFIGS, build
from lessons import assert_close, gradients, lessons

from mstar_engine.models.backbone import hidden_states, output_head
from mstar_engine.train import likelihood, linear_cross_entropy
from mstar_engine.train.collate import collate
from mstar_engine.train.likelihood import Likelihood, response_nll

torch.set_num_threads(1)


def changed_logits(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, change) -> None:
    """Have the model's forward put its logits through `change`."""
    forward = type(model).forward

    def changing(self, *arguments, **options):
        output = forward(self, *arguments, **options)
        output.logits = change(output.logits)
        return output

    monkeypatch.setattr(type(model), "forward", functools.wraps(forward)(changing))


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("rows", [2, 1000])
def test_loss_and_gradients_are_those_of_plain_logits(family: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(family)
    encoder, examples = lessons(family)
    head = output_head(model)
    assert head is not None and head.linear is model.get_output_embeddings()
    monkeypatch.setattr(linear_cross_entropy, "MOST_LOGITS", rows * head.linear.out_features)
    batch = collate(examples, encoder)
    plain, parts = response_nll(model, batch), response_nll(model, batch, head)
    torch.testing.assert_close(parts, plain, rtol=1e-5, atol=1e-5)
    assert_close(gradients(parts, model), gradients(plain, model))


@pytest.mark.parametrize("applied", [True, False])
def test_a_soft_cap_counts_where_it_is_applied(applied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("gemma3")
    model.config.get_text_config().final_logit_softcapping = 5.0
    if applied:
        changed_logits(model, monkeypatch, lambda logits: 5.0 * torch.tanh(logits / 5.0))
    encoder, examples = lessons("gemma3")
    head = output_head(model)
    assert head is not None and head.softcap == (5.0 if applied else None)
    batch = collate(examples, encoder)
    plain, parts = response_nll(model, batch), response_nll(model, batch, head)
    torch.testing.assert_close(parts, plain, rtol=1e-5, atol=1e-5)
    assert_close(gradients(parts, model), gradients(plain, model))


def test_the_probe_leaves_no_trace_and_works_in_bfloat16() -> None:
    model = build("qwen2_5_vl").train()
    before = deepcopy(model.state_dict())
    assert output_head(model) is not None and output_head(model.bfloat16()) is not None
    assert model.training and not model.get_output_embeddings()._forward_hooks
    assert all(torch.equal(before[name].bfloat16(), value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("what", ["scaled", "learned", "capped", "fed something else"])
def test_more_than_a_head_is_refused(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that are scaled, learned behind the head, capped unknown to the config, or not of the last states."""
    model = build("llava")
    learned = torch.nn.Parameter(torch.ones(()))
    changes = {
        "scaled": lambda logits: logits * 0.5,
        "learned": lambda logits: logits * learned,
        "capped": lambda logits: 30.0 * torch.tanh(logits / 30.0),
    }
    if what in changes:
        changed_logits(model, monkeypatch, changes[what])
    else:
        model.lm_head.register_forward_pre_hook(lambda module, arguments: (arguments[0] * 2,))
    assert output_head(model) is None


def test_the_objective_goes_by_parts_when_logits_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava")
    encoder, examples = lessons("llava")
    calls = []
    real = likelihood.linear_cross_entropy
    monkeypatch.setattr(likelihood, "linear_cross_entropy", lambda *a, **k: calls.append(1) or real(*a, **k))
    whole = Likelihood().loss(model, examples, encoder, 0)
    assert not calls
    monkeypatch.setattr(likelihood, "PLAIN_LOGITS", 100)
    parts = Likelihood().loss(model, examples, encoder, 0)
    assert calls
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_a_family_that_cannot_computes_all_logits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("llava")
    encoder, examples = lessons("llava")
    whole = Likelihood().loss(model, examples, encoder, 0)
    monkeypatch.setattr(likelihood, "PLAIN_LOGITS", 100)
    monkeypatch.setattr(likelihood, "output_head", lambda model: None)
    objective = Likelihood()
    for _ in range(2):
        assert torch.equal(objective.loss(model, examples, encoder, 0), whole)
    assert caplog.text.count("LlavaForConditionalGeneration computes all logits") == 1


def test_hidden_states_are_what_the_head_is_fed() -> None:
    model = build("internvl")
    encoder, examples = lessons("internvl")
    batch = collate(examples, encoder)
    with torch.no_grad():
        logits = model.get_output_embeddings()(hidden_states(model, **batch.inputs))
        assert torch.equal(logits, model(**batch.inputs, use_cache=False).logits)
