"""How long a sequence may be: the positions of the language model, and no longer than its frequencies stay the same."""

import pytest
import torch
from families import FixedPrompts
from transformers import AutoModelForImageTextToText, BloomConfig, GPT2Config, LlavaConfig, Phi3Config

from mstar_engine.models.prompts import EncodedPrompt
from mstar_engine.models.sequence_limit import sequence_limit
from mstar_engine.models.tiny import build_tiny, tiny_config
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.types import Problem, SamplingParams

SMALL = dict(vocab_size=160, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
SMALL |= dict(num_key_value_heads=2, pad_token_id=0, max_position_embeddings=512)


def longrope(length: int) -> LlavaConfig:
    """The tiny model's tower below a language model whose frequencies change beyond `length` tokens."""
    rope = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[2.0, 3.0, 4.0, 5.0])
    text = Phi3Config(rope_parameters=rope, original_max_position_embeddings=length, **SMALL)
    return LlavaConfig(text_config=text, vision_config=tiny_config().vision_config, image_token_id=1)


def test_the_limit_is_that_of_the_positions() -> None:
    assert sequence_limit(tiny_config()) == 512
    config = tiny_config()
    config.text_config.rope_parameters = {"full_attention": {"rope_type": "longrope"}, "rope_theta": 1e4}
    config.text_config.original_max_position_embeddings = 64
    assert sequence_limit(config) == 64
    assert sequence_limit(GPT2Config()) == 1024 and sequence_limit(BloomConfig()) is None


def test_longer_than_the_frequencies_stay_the_same_is_refused() -> None:
    """A short response is what `generate` draws; one that would cross the change is refused, not drawn otherwise."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(longrope(24)).eval()
    model.generation_config.eos_token_id = None
    assert sequence_limit(model.config) == 24
    ids = torch.arange(20, 30)
    engine = RolloutEngine(model, FixedPrompts({"a": EncodedPrompt(ids, {})}, build_tiny(0)[1]))
    engine.stop_ids = lambda: []
    params = SamplingParams(n=2, temperature=0.0, max_tokens=14)
    (group,) = engine.generate([Problem(id="a", question="")], params)
    mask, banned = torch.ones_like(ids[None]), engine.banned_ids.tolist()
    expected = model.generate(
        ids[None], attention_mask=mask, max_new_tokens=14, do_sample=False, suppress_tokens=banned
    )[0, 10:]
    assert all(response.token_ids.tolist() == expected.tolist() for response in group.responses)
    with pytest.raises(ValueError, match=r"prompt_length .*=25; allowed: at most max_sequence_length=24"):
        list(engine.generate([Problem(id="a", question="")], SamplingParams(n=2, temperature=0.0, max_tokens=15)))
