"""Memory of a training step: activations computed twice, and an out-of-memory error that says what to lower."""

from copy import deepcopy

import pytest
import torch
from families import CONFIGS, build
from lessons import assert_close, gradients, lessons

from mstar_engine.models.memory import checkpoint_activations
from mstar_engine.train.collate import collate
from mstar_engine.train.likelihood import Likelihood, response_nll
from mstar_engine.train.schedule import Schedule
from mstar_engine.train.trainer import Trainer

torch.set_num_threads(1)


@pytest.mark.parametrize("family", CONFIGS)
def test_checkpointed_activations_give_the_same_gradients(family: str) -> None:
    model = build(family).train()
    encoder, examples = lessons(family)
    batch = collate(examples, encoder)
    runs: dict[str, int] = {}
    layers = model.base_model.language_model.layers
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda *_: runs.update(n=runs.get("n", 0) + 1))
    expected_loss = response_nll(model, batch)
    expected = gradients(expected_loss, model)
    assert runs["n"] == len(layers)
    checkpoint_activations(model)
    loss = response_nll(model, batch)
    found = gradients(loss, model)
    assert runs["n"] == 3 * len(layers)  # once more forward, and once in the backward pass
    assert torch.equal(loss, expected_loss)
    assert_close(found, expected, tolerance=1e-6)
    model.eval()
    with torch.no_grad():
        response_nll(model, batch)
    assert runs["n"] == 4 * len(layers)


def test_a_checkpointed_step_is_the_same_step() -> None:
    model = build("llava")
    encoder, examples = lessons("llava")
    steps = []
    for on in (False, True):
        one = Trainer(deepcopy(model), encoder, Schedule(peak=1e-3), gradient_checkpointing=on)
        steps.append((one.step(examples), [parameter.detach() for parameter in one.model.parameters()]))
    (plain, plain_weights), (twice, twice_weights) = steps
    assert plain.loss == twice.loss and plain.grad_norm == pytest.approx(twice.grad_norm, rel=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain_weights, twice_weights))


def test_a_family_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava")
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(ValueError, match=r"train.gradient_checkpointing=true: model family 'llava'.*allowed: false"):
        checkpoint_activations(model)


def test_out_of_memory_names_what_to_lower() -> None:
    model = build("llava")
    encoder, examples = lessons("llava")
    one = Trainer(model, encoder, Schedule(peak=1e-3))
    one.step(examples[:2])
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    handle = model.lm_head.register_forward_hook(exhausted)
    with pytest.raises(ValueError) as caught:
        one.step(examples)
    handle.remove()
    message = str(caught.value)
    assert "\n" not in message and message.startswith(
        "train: out of memory in step 1, in a pass over 5 examples of up to 27"
    )
    for key in ("train.max_tokens (0, no limit) below 102", "train.gradient_checkpointing=true", "train.bf16=true"):
        assert key in message
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters()))
    one.step(examples)  # what was left of the step that failed is gone
    assert one.global_step == 2


def test_advice_leaves_out_what_is_done_already() -> None:
    model = build("llava").bfloat16()
    encoder, examples = lessons("llava")
    one = Trainer(model, encoder, Schedule(peak=1e-3), max_tokens=10, bf16=True, gradient_checkpointing=True)

    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.lm_head.register_forward_hook(exhausted)
    with pytest.raises(ValueError, match=r"in a pass over 1 examples of up to .*; a smaller model or a larger device"):
        one.step(examples)


def test_release_leaves_no_gradient() -> None:
    model = build("llava")
    encoder, examples = lessons("llava")
    one = Trainer(model, encoder, Schedule(peak=1e-3))
    Likelihood().loss(model, examples, encoder, 0).backward()
    assert any(parameter.grad is not None for parameter in model.parameters())
    one.release()
    assert all(parameter.grad is None for parameter in model.parameters())
