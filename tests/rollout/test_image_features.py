"""Image features are computed once while the weights stay, and whatever is drawn does not change by it."""

from __future__ import annotations

import pytest
import torch
from families import CONFIGS, FixedPrompts, build, prompt

from mstar_engine.models.tiny import build_tiny
from mstar_engine.models.vision_tower import tower_parameters
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.types import Problem, SamplingParams

PARAMS = SamplingParams(n=2, temperature=1.0, max_tokens=6, seed=5)


@pytest.fixture(scope="module")
def processor():
    return build_tiny(0)[1]


def engine_for(family: str, processor, capacity: int) -> RolloutEngine:
    prompts = {f"p{i}": prompt(family, 8, seed=i, image=i != 3) for i in range(5)}
    return RolloutEngine(build(family), FixedPrompts(prompts, processor), image_cache_memory=capacity)


def asked(*numbers: int) -> list[Problem]:
    return [Problem(id=f"p{i}", question="") for i in numbers]


def draw(engine: RolloutEngine, *numbers: int) -> dict[str, list[list[int]]]:
    groups = engine.generate(asked(*numbers), PARAMS)
    return {group.problem.id: [r.token_ids.tolist() for r in group.responses] for group in groups}


@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_drawn_is_the_same(family: str, processor) -> None:
    """None known, some known, all known, in other orders; a prompt without an image between them."""
    with_cache, without = engine_for(family, processor, 1 << 24), engine_for(family, processor, 0)
    for numbers in ((0, 1), (2, 1, 0, 3), (4, 3, 2, 1, 0), (1, 4)):
        assert draw(with_cache, *numbers) == draw(without, *numbers)
    assert (with_cache.features.hits, with_cache.features.misses) == (7, 4)
    assert (without.features.hits, without.features.misses) == (0, 0)


def test_an_update_of_the_tower_makes_features_stale(processor) -> None:
    engine = engine_for("llava", processor, 1 << 24)
    before = draw(engine, 0, 1)
    with torch.no_grad():
        for parameter in engine.model.model.language_model.parameters():
            parameter.mul_(1.0)  # the language model's own weights make no features
        engine.model.model.language_model.layers[0].mlp.up_proj.weight.mul_(1.01)
        engine.model.get_output_embeddings().weight.mul_(1.01)
    draw(engine, 0, 1)
    assert engine.features.misses == 2
    with torch.no_grad():
        engine.model.model.multi_modal_projector.linear_1.weight.data.mul_(-3.0)  # .data: no version counter sees it
    assert draw(engine, 0, 1) != before
    assert engine.features.misses == 4
    fresh = engine_for("llava", processor, 0)
    fresh.model.load_state_dict(engine.model.state_dict())
    assert draw(engine, 1, 0) == draw(fresh, 1, 0) and engine.features.hits == 4


def test_weights_that_change_places_make_features_stale(processor) -> None:
    engine = engine_for("llava", processor, 1 << 24)
    projector = engine.model.model.multi_modal_projector
    for weight in (projector.linear_1.weight, projector.linear_1.bias, projector.linear_2.weight):
        draw(engine, 0)
        misses = engine.features.misses
        with torch.no_grad():
            weight.add_(0.01 * torch.arange(len(weight)).view(-1, *[1] * (weight.dim() - 1)))
        draw(engine, 0)
        with torch.no_grad():
            weight.copy_(weight.flip(0).clone())
        draw(engine, 0)
        assert engine.features.misses == misses + 2


@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.zeros(3, 3, dtype=torch.uint8)])
def test_weights_of_any_shape_and_type_are_looked_at(value: torch.Tensor, processor) -> None:
    """A scale, or bytes of quantised weights."""
    engine = engine_for("llava", processor, 1 << 24)
    tower = engine.model.model.vision_tower
    tower.register_parameter("other", torch.nn.Parameter(value, requires_grad=False))
    draw(engine, 0)
    with torch.no_grad():
        tower.other.add_(1)
    draw(engine, 0)
    assert engine.features.misses == 2


def test_the_least_recently_used_go_first(processor) -> None:
    engine = engine_for("llava", processor, 1 << 24)
    draw(engine, 0)
    one = engine.features._held
    engine.features.capacity = 2 * one
    draw(engine, 1)
    draw(engine, 0)
    draw(engine, 2)  # 1 goes
    assert engine.features._held == 2 * one
    draw(engine, 0)
    assert (engine.features.hits, engine.features.misses) == (2, 3)
    draw(engine, 1)
    assert engine.features.misses == 4
    for parameter in tower_parameters(engine.model):
        parameter.requires_grad_(False)
    engine.release()  # a frozen tower: the features stay right
    draw(engine, 1)
    assert engine.features.misses == 4
    tower_parameters(engine.model)[0].requires_grad_(True)
    engine.release()
    assert engine.features._held == 0 and not engine.features._entries


def test_a_failing_tower_leaves_the_model_as_it_was(processor, monkeypatch) -> None:
    engine = engine_for("llava", processor, 1 << 24)
    inner = engine.model.model
    with monkeypatch.context() as patch:
        patch.setattr(type(inner), "get_image_features", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("tower")))
        with pytest.raises(ValueError, match=r"its forward fails \(tower\)"):
            draw(engine, 0)
    assert "get_image_features" not in vars(inner)
    assert draw(engine, 0) == draw(engine_for("llava", processor, 0), 0)
