"""Joined projections: the same outputs, of the weights as last taken over, and a model that is afterwards as before."""

import pytest
import torch
from families import CONFIGS, build, prompt
from torch import nn

from mstar_engine.models.image_batches import stack_inputs
from mstar_engine.models.joined_projections import JoinedProjections


def forward(model: nn.Module, family: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**stack_inputs([prompt(family, 9, seed=1, image=True)], torch.device("cpu"))).logits


@pytest.mark.parametrize("family", CONFIGS)
def test_outputs_are_those_of_the_projections_apart(family: str) -> None:
    torch.manual_seed(0)
    model = build(family).eval()
    expected = forward(model, family)
    joined = JoinedProjections(model)
    joined.refresh()
    if len(joined) == 0:
        assert not any(hasattr(module, "q_proj") for module in model.modules())
    with joined.active():
        torch.testing.assert_close(forward(model, family), expected, rtol=1e-5, atol=1e-5)
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(forward(model, family), expected)


def test_weights_are_those_of_the_last_refresh() -> None:
    torch.manual_seed(0)
    model = build("qwen2_5_vl").eval()
    joined = JoinedProjections(model)
    assert len(joined) == model.config.get_text_config().num_hidden_layers
    joined.refresh()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "v_proj" in name:
                parameter.add_(0.1)
    expected = forward(model, "qwen2_5_vl")
    joined.refresh()
    with joined.active():
        torch.testing.assert_close(forward(model, "qwen2_5_vl"), expected, rtol=1e-5, atol=1e-5)


def test_what_is_no_plain_projection_is_left() -> None:
    torch.manual_seed(0)
    model = build("qwen2_5_vl").eval()
    layers = model.config.get_text_config().num_hidden_layers
    first = next(module for name, module in model.named_modules() if name.endswith("layers.0.self_attn"))
    handle = first.k_proj.register_forward_hook(lambda *_: None)
    assert len(JoinedProjections(model)) == layers - 1
    handle.remove()

    class Adapted(nn.Linear):
        pass

    first.v_proj = Adapted(first.v_proj.in_features, first.v_proj.out_features)
    assert len(JoinedProjections(model)) == layers - 1


def test_an_error_within_leaves_the_model_as_it_was() -> None:
    model = build("qwen2_5_vl").eval()
    joined = JoinedProjections(model)
    with pytest.raises(ZeroDivisionError), joined.active():
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in model.modules())


def test_weights_of_a_class_of_their_own_are_left() -> None:
    """As torchao makes them: the module stays a plain linear one."""

    class Quantised(torch.Tensor):
        pass

    model = build("qwen2_5_vl").eval()
    layers = len(JoinedProjections(model))
    first = next(module for name, module in model.named_modules() if name.endswith("layers.0.self_attn"))
    first.k_proj.weight = nn.Parameter(first.k_proj.weight.detach().as_subclass(Quantised))
    assert type(first.k_proj.weight) is Quantised and len(JoinedProjections(model)) == layers - 1
