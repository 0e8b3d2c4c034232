"""Memory by phase: plain arithmetic over sizes, and activations against what autograd keeps."""

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mstar_engine.config_parse import load_config
from mstar_engine.evolve.memory_plan import MemoryPlan, Phase, Prompt, kept_bytes
from mstar_engine.models.compatibility import KVShape, probe
from mstar_engine.models.loading import blank_model
from mstar_engine.models.model_size import ModelSize, Stack, model_size
from mstar_engine.models.tiny import build_tiny, tiny_config

BF16 = torch.bfloat16
STACK = Stack(layers=28, hidden=3584, inner=18944, queries=3584, keys=512)
SEVEN = ModelSize(
    parameters=7 * 10**9,
    added=0,
    trained=7 * 10**9,
    itemsize=2,
    vocabulary=152_064,
    language=STACK,
    tower=None,
    patch=588,
    trains_tower=True,
    trains_head=True,
    keeps_features=False,
)
SHAPE = KVShape(layers=28, kv_heads=4, head_dim=128, dtype=BF16, device=torch.device("meta"))
ADAPTED = dataclasses.replace(SEVEN, added=10**8, trained=10**8, trains_tower=False, trains_head=False)
LARGE = ["model.dtype=bfloat16", "train.bf16=true", "rollout.max_rows=256", "rollout.max_completion_length=512"]


def phases(*overrides: str, policy: ModelSize = SEVEN, scorer: ModelSize | None = SEVEN) -> dict[str, Phase]:
    config = load_config("default", [*LARGE, *overrides])
    plan = MemoryPlan(config, policy, SHAPE, Prompt(tokens=1000, patches=0, features=10**12), scorer, on_gpu=True)
    return {phase.name: phase for phase in plan.phases()}


def test_what_lives_together() -> None:
    found = phases()
    assert list(found) == [
        "warmup: train",
        "warmup: measure",
        "annotate",
        "prm: fit",
        "evolve: sample",
        "evolve: train",
        "evaluate",
    ]
    parameters = 7 * 10**9
    for name, phase in found.items():
        assert phase.weights == 2 * parameters and phase.optimizer == 12 * parameters
        assert phase.gradients == (4 * parameters if name.endswith(("train", "fit")) else 0)
        assert bool(phase.cache) == (phase.gradients == 0) and phase.activations
        assert phase.scorer == (2 * parameters if name.startswith("evolve") else 0)
        held = (phase.weights, phase.optimizer, phase.gradients, phase.activations, phase.cache, phase.features)
        assert phase.total == sum(held) + phase.scorer
    assert list(phases("stages=[evolve]", scorer=None)) == ["evolve: sample", "evolve: train"]
    assert phases("stages=[evolve]", scorer=None)["evolve: sample"].scorer == 0
    assert list(phases("stages=[report]")) == []
    in_float32 = phases("model.dtype=float32", "train.bf16=false", policy=dataclasses.replace(SEVEN, itemsize=4))
    assert (
        in_float32["warmup: train"].optimizer == 8 * parameters
        and in_float32["warmup: train"].gradients == 4 * parameters
    )


def test_the_cache_shares_prompts() -> None:
    token = 2 * 28 * 4 * 128 * 2
    assert SHAPE.bytes_per_token == token
    sampled = phases()["evolve: sample"]
    assert sampled.cache == token * (16 * 1000 + 256 * 512)
    assert sampled.group == token * (1000 + 16 * 512) and sampled.least == sampled.total - sampled.cache + sampled.group
    assert phases()["evaluate"].cache == token * 256 * 1512
    bounded = phases(f"rollout.kv_cache_memory={2**30}")
    assert bounded["evolve: sample"].cache == bounded["evaluate"].cache == 2**30


def test_adapters_and_a_frozen_tower() -> None:
    """Only adapters have masters, moments and gradients; the process reward model is fitted whole all the same."""
    found = phases(policy=ADAPTED)
    assert found["evolve: train"].weights == 2 * (7 * 10**9 + 10**8)
    assert found["evolve: train"].optimizer == 12 * 10**8 and found["evolve: train"].gradients == 4 * 10**8
    assert found["prm: fit"].optimizer == 12 * 7 * 10**9
    assert found["evolve: train"].features == 0
    kept = phases(policy=dataclasses.replace(ADAPTED, keeps_features=True))
    assert kept["evolve: train"].features == kept["evolve: sample"].features == 2**30


def test_activations() -> None:
    tower = Stack(layers=10, hidden=1280, inner=3420, queries=1280, keys=1280)
    one = 64 * 2 * (8 * 3584 + 4 * (3584 + 512) + 4 * 18944)
    assert kept_bytes(STACK, 64, 2, False) == 28 * one
    assert kept_bytes(STACK, 64, 2, True) == 28 * 64 * 2 * 3584 + one
    plain, spare = phases()["evolve: train"], phases("train.gradient_checkpointing=true")["evolve: train"]
    assert spare.activations < plain.activations / 8
    assert phases("train.max_tokens=3000")["evolve: train"].activations < plain.activations / 8
    # one example that is longer than max_tokens goes through alone
    assert phases("train.max_tokens=100") == phases("train.max_tokens=1512")
    frozen = phases(policy=dataclasses.replace(SEVEN, tower=tower, trains_tower=False))
    assert frozen["evolve: train"].activations >= plain.activations


@pytest.mark.parametrize(("heads", "inner"), [(2, 688), (8, 512)])
def test_a_layer_keeps_about_what_is_said(heads: int, inner: int) -> None:
    """Bytes that autograd holds for a longer stack less those for a shorter, parameters apart."""
    tokens = 256

    def held(layers: int) -> int:
        config = AutoConfig.for_model(
            "llama",
            vocab_size=100,
            hidden_size=256,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=heads,
        )
        model = AutoModelForCausalLM.from_config(config, dtype=BF16, attn_implementation="sdpa").train()
        own = {parameter.data_ptr() for parameter in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input_ids=torch.ones(1, tokens, dtype=torch.long), use_cache=False, logits_to_keep=1)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    measured = (held(3) - held(1)) / 2
    stack = Stack(layers=1, hidden=256, inner=inner, queries=256, keys=32 * heads)
    assert 1.0 <= kept_bytes(stack, tokens, 2, False) / measured <= 1.25


def test_sizes_of_a_model_without_weights() -> None:
    """They are those of the same model with weights, which the probe sees too."""
    model, _ = build_tiny(0)
    blank = blank_model(tiny_config(), "bfloat16")
    shape, expected = probe(blank), probe(model)
    assert (shape.layers, shape.kv_heads, shape.head_dim) == (expected.layers, expected.kv_heads, expected.head_dim)
    assert shape.dtype == BF16 and shape.device.type == "meta"
    size = model_size(blank, shape)
    assert size == dataclasses.replace(model_size(model, expected), itemsize=2)
    assert size.parameters == size.trained == sum(parameter.numel() for parameter in model.parameters())
    text = AutoConfig.for_model("qwen2", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
    assert type(blank_model(text)).__name__ == "Qwen2ForCausalLM"  # a process reward model without images
