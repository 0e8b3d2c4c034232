"""What a checkpoint's generation config means for a rollout."""

import logging

import pytest
from transformers import GenerationConfig

from mstar_engine.models.generation_settings import end_ids, left_out
from mstar_engine.models.tiny import build_tiny
from mstar_engine.rollout.engine import RolloutEngine


def test_end_tokens_are_those_of_generate() -> None:
    """A text config has an end token by default (2 in Llama), which need not be one of this vocabulary."""
    model, processor = build_tiny(0)
    text, own = model.config.text_config, processor.tokenizer.eos_token_id
    text.eos_token_id = 9
    model.generation_config = GenerationConfig(eos_token_id=[11, 12])
    assert end_ids(model) == {11, 12} and RolloutEngine(model, processor).stop_ids() == sorted({11, 12, own})
    model.generation_config = GenerationConfig(eos_token_id=11)
    assert end_ids(model) == {11}
    model.generation_config = GenerationConfig()
    assert end_ids(model) == {9} and RolloutEngine(model, processor).stop_ids() == sorted({9, own})
    text.eos_token_id = processor.tokenizer.eos_token = None
    assert end_ids(model) == set() and RolloutEngine(model, processor).stop_ids() == []


def test_what_has_no_effect_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model, processor = build_tiny(0)
    cuts = dict(do_sample=True, temperature=0.1, top_k=1, top_p=0.001, max_new_tokens=9, eos_token_id=2)
    model.generation_config = GenerationConfig(**cuts, repetition_penalty=1.0, num_beams=1, use_cache=True)
    assert left_out(model) == {}
    with caplog.at_level(logging.WARNING):
        RolloutEngine(model, processor)
        assert not caplog.text
        model.generation_config = GenerationConfig(**cuts, repetition_penalty=1.05, forced_eos_token_id=3)
        RolloutEngine(model, processor)
    assert "has no effect on what is drawn: repetition_penalty=1.05, forced_eos_token_id=3" in caplog.text
