"""Adapters: where they are put, that merging computes what they do, and that it leaves no trace."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from families import FixedPrompts, build, prompt
from transformers import PreTrainedModel

from mstar_engine.models.joined_projections import JoinedProjections
from mstar_engine.models.loading import load_model, save_model
from mstar_engine.models.lora import (
    LoraMerge,
    add_lora,
    base_of,
    has_lora,
    inject_saved,
    load_lora,
    lora_layers,
    save_lora,
    target_layers,
)
from mstar_engine.models.tiny import build_tiny
from mstar_engine.models.vision_tower import freeze_vision_tower, tower_parameters
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.types import Problem, SamplingParams

peft = pytest.importorskip("peft")
FAMILIES = ("llava", "qwen2_5_vl")
GREEDY = SamplingParams(n=2, temperature=0.0, max_tokens=8, seed=5)
SAMPLED = SamplingParams(n=3, temperature=1.0, max_tokens=8, seed=5)


def adapted(family: str, dtype: torch.dtype = torch.float32, **options) -> PreTrainedModel:
    """A model whose adapters have learned something."""
    model = build(family).to(dtype)
    add_lora(model, **{"rank": 4, "alpha": 8.0} | options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            outer = layer.lora_B["default"].weight
            outer.copy_(0.1 * torch.randn(outer.shape, generator=generator))
    return model


def logits(model: PreTrainedModel, family: str) -> torch.Tensor:
    shown = prompt(family, 8, seed=1)
    with torch.no_grad():
        ids = shown.input_ids[None]
        extra = {name: value[None] for name, value in shown.token_inputs.items()}
        return model(input_ids=ids, **shown.inputs, **extra).logits


def bits(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- where they are put


def test_all_linear_is_every_layer_but_the_head() -> None:
    model = build("llava")
    found = target_layers(model, "all-linear")
    linear = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    assert set(linear) - set(found) == {"lm_head"}
    freeze_vision_tower(model)
    left = target_layers(model, "all-linear")
    assert set(found) - set(left) == {name for name in found if "vision_tower" in name} != set()
    assert any("multi_modal_projector" in name for name in left)


def test_targets_are_parts_of_names() -> None:
    model = build("llava")
    assert {name.rpartition(".")[2] for name in target_layers(model, ["q_proj", "v_proj"])} == {"q_proj", "v_proj"}
    assert all(".language_model.layers.0." in n for n in target_layers(model, ["language_model.layers.0"]))
    assert len(target_layers(model, ["language_model.layers.0.mlp"])) == 3
    assert target_layers(model, ["q_proj", "language_model"]) == target_layers(model, ["language_model", "q_proj"])


@pytest.mark.parametrize(
    ("target", "nearest"),
    [("q_prj", "q_proj"), ("proj", "q_proj"), ("lm_head", ""), ("langage_model", "language_model")],
)
def test_an_unknown_target_names_the_nearest(target: str, nearest: str) -> None:
    with pytest.raises(ValueError) as caught:
        target_layers(build("llava"), ["v_proj", target])
    message = str(caught.value)
    assert message.startswith(f"model.lora_target_modules: {target!r} names no linear layer") and "\n" not in message
    assert "allowed: all-linear, or parts of the layers' names: " in message and "did you mean" in message
    assert not nearest or (nearest == "q_proj" and target == "proj") or f"did you mean {nearest}?" in message


def test_a_frozen_tower_takes_none() -> None:
    model = build("llava")
    freeze_vision_tower(model)
    with pytest.raises(ValueError, match=r"'vision_tower' names no linear layer that can be adapted \(frozen ones"):
        target_layers(model, ["vision_tower"])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"no linear layer that is not frozen; allowed: model.lora_r=0"):
        target_layers(model, "all-linear")


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3"])
def test_what_sees_images_is_frozen(family: str) -> None:
    model = build(family)
    freeze_vision_tower(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen and all("vision" in name or "visual" in name for name in frozen)
    assert frozen == {name for name, _ in model.named_parameters() if ".vision_tower." in name or ".visual." in name}


def test_a_family_without_a_name_for_its_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava")
    monkeypatch.setattr(type(model), "get_encoder", lambda self, modality: self)
    freeze_vision_tower(model)
    assert {id(p) for p in model.parameters() if not p.requires_grad} == {id(p) for p in tower_parameters(model)}
    monkeypatch.setattr("mstar_engine.models.vision_tower.tower_parameters", lambda model: list(model.parameters()))
    with pytest.raises(ValueError, match=r"model.freeze_vision_tower=true: model family 'llava' has none apart"):
        freeze_vision_tower(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_adapters_change_nothing_and_are_drawn_by_the_seed(family: str) -> None:
    plain, one, same, other = (build(family) for _ in range(4))
    state = torch.get_rng_state()
    for model, seed in ((one, 0), (same, 0), (other, 1)):
        add_lora(model, rank=4, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws move
    assert torch.equal(logits(plain, family), logits(one, family))
    assert_equal(bits(one), bits(same))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    trained = {name for name, parameter in one.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in one.state_dict() if ".lora_" in name} and not one.training


def test_their_type_is_that_of_the_weights() -> None:
    model = adapted("llava", torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


# ---- merging


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_compute_what_the_adapters_do(family: str, dtype: torch.dtype) -> None:
    model = adapted(family, dtype)
    names = list(build(family).state_dict())
    before, places = bits(model), [parameter.data_ptr() for parameter in model.parameters()]
    merge = LoraMerge(model)
    if dtype == torch.float32:
        with_adapters = logits(model, family)
        assert not torch.allclose(with_adapters, logits(build(family), family), atol=1e-2)
    for _ in range(2):
        weights = {name: layer.base_layer.weight for name, layer in lora_layers(model).items()}
        with merge.active():
            assert list(model.state_dict()) == names and not has_lora(model)
            assert all(type(model.get_submodule(name)) is torch.nn.Linear for name in weights)
            assert all(model.get_submodule(name).weight is weight for name, weight in weights.items())
            if dtype == torch.float32:
                torch.testing.assert_close(logits(model, family), with_adapters, rtol=1e-4, atol=1e-4)
        assert_equal(bits(model), before)
        assert [parameter.data_ptr() for parameter in model.parameters()] == places
    assert has_lora(model)


def test_what_was_subtracted_would_not_be_the_same_bits() -> None:
    """Why a copy is kept: the test above could otherwise pass for weights that come back by themselves."""
    layer = next(iter(lora_layers(adapted("llava")).values()))
    weight = layer.base_layer.weight.detach()
    added = layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
    assert not torch.equal((weight + added) - added, weight)


def test_a_failure_inside_restores_and_a_changed_base_is_noticed() -> None:
    model = adapted("llava")
    merge, before = LoraMerge(model), bits(model)
    with pytest.raises(RuntimeError, match="inside"), merge.active():
        raise RuntimeError("inside")
    assert_equal(bits(model), before)
    with torch.no_grad():
        next(iter(lora_layers(model).values())).base_layer.weight.mul_(2.0)
    before = bits(model)
    with merge.active():
        pass
    assert_equal(bits(model), before)


def test_merged_layers_are_joined_and_adapted_ones_are_not() -> None:
    model = adapted("llava", targets=["language_model"])
    assert len(JoinedProjections(model)) == 0
    with LoraMerge(model).active():
        assert len(JoinedProjections(model)) == 3


# ---- rollouts


def engine_for(model: PreTrainedModel, family: str, **options) -> RolloutEngine:
    prompts = {f"p{i}": prompt(family, 8, seed=i, image=i != 2) for i in range(3)}
    return RolloutEngine(model, FixedPrompts(prompts, build_tiny(0)[1]), **options)


def draw(engine: RolloutEngine, params: SamplingParams = GREEDY) -> list[list[list[int]]]:
    groups = engine.generate([Problem(id=f"p{i}", question="") for i in range(3)], params)
    found = {group.problem.id: [response.token_ids.tolist() for response in group.responses] for group in groups}
    return [found[key] for key in sorted(found)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decode", ["eager", "fixed"])
def test_rollouts_are_those_of_the_merged_model(family: str, decode: str) -> None:
    """As it is, merged for rollouts, and as `model.generate` of a model with the adapters merged for good says."""
    model = adapted(family)
    before = bits(model)
    as_it_is, merged = draw(engine_for(model, family, decode=decode)), engine_for(
        model, family, decode=decode, merge_lora=True, image_cache_memory=1 << 24
    )  # fmt: skip
    assert draw(merged) == as_it_is
    assert_equal(bits(model), before)
    assert draw(merged, SAMPLED) == draw(engine_for(model, family, decode=decode), SAMPLED)
    assert merged.features.hits == 2  # the merged tower of the second call has the bits of the first
    assert draw(engine_for(build(family), family, decode=decode)) != as_it_is
    whole = deepcopy(model)
    with LoraMerge(whole).active():
        shown = prompt(family, 8, seed=0)
        extra = {name: value[None] for name, value in shown.token_inputs.items()}
        with torch.no_grad():
            tokens = whole.generate(
                shown.input_ids[None], **shown.inputs, **extra, max_new_tokens=8, do_sample=False, suppress_tokens=[1]
            )
    assert tokens[0, len(shown.input_ids) :].tolist() == as_it_is[0][0]


def test_an_update_reaches_merged_rollouts_and_a_dropped_one_restores() -> None:
    model = adapted("llava")
    engine = engine_for(model, "llava", decode="fixed", merge_lora=True)
    first, before = draw(engine), bits(model)
    problems = [Problem(id=f"p{i}", question="") for i in range(3)]
    batches = engine.generate_batches(problems, GREEDY)
    next(batches)
    assert not has_lora(model)
    batches.close()
    assert_equal(bits(model), before)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B["default"].weight.mul_(-4.0)
    assert draw(engine) == draw(engine_for(model, "llava", decode="fixed")) != first


def test_graphs_find_the_weights_where_they_were() -> None:
    engine = engine_for(adapted("llava"), "llava", decode="fixed", merge_lora=True)
    draw(engine)
    decoder = engine._decoder
    draw(engine, SamplingParams(n=2, temperature=1.0, max_tokens=8, seed=6))
    assert decoder is not None and engine._decoder is decoder


@pytest.mark.parametrize(("targets", "kept"), [(["language_model"], True), ("all-linear", False)])
def test_features_outlive_training_where_the_tower_has_no_adapters(targets: str | list[str], kept: bool) -> None:
    engine = engine_for(adapted("llava", targets=targets), "llava", merge_lora=True, image_cache_memory=1 << 24)
    draw(engine)
    assert engine.features._held > 0
    engine.release()
    assert (engine.features._held > 0) == kept


def test_nothing_to_merge_is_refused() -> None:
    with pytest.raises(ValueError, match=r"merge_lora=True: the model has no adapters; allowed: False"):
        engine_for(build("llava"), "llava", merge_lora=True)


# ---- on disk


def test_saved_adapters_come_back_and_load_as_a_plain_model(tmp_path: Path) -> None:
    model, processor = build_tiny(0)
    save_model(model, processor, tmp_path / "base")
    add_lora(model, rank=2, targets=["q_proj", "mlp"], seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    (tmp_path / "one").mkdir()
    save_lora(model, tmp_path / "one", "../base")
    other, _ = build_tiny(0)
    add_lora(other, rank=2, targets=["q_proj", "mlp"], seed=2)
    load_lora(other, tmp_path / "one")
    assert_equal(bits(model), bits(other))
    again, _ = build_tiny(0)
    inject_saved(again, tmp_path / "one")
    assert_equal(bits(model), bits(again))
    assert Path(base_of(tmp_path / "one")).resolve() == tmp_path / "base"
    plain, _ = load_model(tmp_path / "one")
    assert not has_lora(plain) and all(parameter.requires_grad for parameter in plain.parameters())
    with LoraMerge(model).active():
        assert_equal(bits(model), bits(plain))
    # What peft itself makes of the folder.
    theirs = peft.PeftModel.from_pretrained(build_tiny(0)[0], tmp_path / "one").merge_and_unload()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_other_or_damaged_adapters_are_refused(tmp_path: Path) -> None:
    model = adapted("llava")
    save_lora(model, tmp_path, "nowhere")
    with pytest.raises(ValueError, match=r"its adapters are others than the model.s, at base_model\.model\."):
        load_lora(adapted("llava", rank=2), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="is damaged"):
        load_lora(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no base_model_name_or_path"):
        base_of(tmp_path)
