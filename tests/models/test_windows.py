"""Sliding windows and sinks that the engine would not see in a short prompt: refused when it looks at the model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, PhimoeConfig, Qwen2Config

from mstar_engine.models.compatibility import probe

SMALL = dict(vocab_size=160, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
SMALL |= dict(num_key_value_heads=2, pad_token_id=0, sliding_window=64)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (PhimoeConfig(num_local_experts=4, **SMALL), "the window of 64 tokens is in its mask alone"),
        (GptOssConfig(num_local_experts=4, head_dim=8, **SMALL), "its attention has sinks"),
    ],
)
def test_what_a_step_would_not_do_is_refused(config, reason: str) -> None:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with pytest.raises(ValueError, match=reason) as caught:
        probe(model)
    assert "\n" not in str(caught.value) and str(caught.value).count("use `model.generate`") == 1


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_windows_that_layers_and_masks_share_are_taken(device: str) -> None:
    config = Qwen2Config(use_sliding_window=True, max_window_layers=1, **SMALL)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    assert probe(model).layers == 2
