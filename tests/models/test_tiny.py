"""The tiny model: an ordinary checkpoint with an exact tokenizer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoProcessor

from mstar_engine.data.digits import captions, demonstrations, digits_problems
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.models.vocabulary import build_tokenizer

torch.set_num_threads(1)
TOKENIZER = build_tokenizer()


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@given(st.text(alphabet=[chr(c) for c in range(32, 127)] + ["\n"]))
@settings(max_examples=200, deadline=None)
def test_text_survives_the_round_trip(text):
    text = text.replace("<", "")  # special tokens are spelt with it
    assert TOKENIZER.decode(ids_of(text)) == text


def test_every_text_of_the_data_set_is_made_of_words():
    for problem in demonstrations(50) + captions(50) + digits_problems("ood", 20):
        for text in filter(None, (problem.question, problem.response)):
            assert TOKENIZER.decode(ids_of(text)) == text
            tokens = TOKENIZER.convert_ids_to_tokens(ids_of(text))
            assert all(len(token) > 1 or token in "0123456789-" for token in tokens)


def test_numbers_are_tokenised_digit_by_digit():
    tokens = TOKENIZER.convert_ids_to_tokens(ids_of("12 - 25 = -13"))
    assert tokens == ["1", "2", " - ", "2", "5", " = ", "-", "1", "3"]
    assert TOKENIZER.convert_ids_to_tokens(ids_of("red 7\n\n# Answer 7")) == ["red ", "7", "\n\n", "# Answer ", "7"]


def test_checkpoint_round_trip(tmp_path):
    model, processor = build_tiny(seed=3)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    loaded_processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(model) and type(loaded_processor) is type(processor)
    assert set(loaded_processor.tokenizer.all_special_ids) == set(processor.tokenizer.all_special_ids)
    assert loaded.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    problem = demonstrations(1)[0]
    a, b = (PromptEncoder(p).encode(problem) for p in (processor, loaded_processor))
    assert torch.equal(a.input_ids, b.input_ids) and torch.equal(a.inputs["pixel_values"], b.inputs["pixel_values"])
    with torch.no_grad():
        logits = [m(input_ids=a.input_ids[None], **a.inputs).logits for m in (model, loaded.eval())]
    assert torch.equal(*logits)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(9)
    before = torch.get_rng_state()
    first, second, other = (build_tiny(seed)[0].state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_size_and_prompt():
    model, processor = build_tiny()
    assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 1.5e6
    tokens = processor.tokenizer.convert_ids_to_tokens(PromptEncoder(processor).encode(demonstrations(1)[0]).input_ids)
    assert tokens[0] == "<|user|>" and tokens[1:17] == ["<image>"] * 16 and tokens[-1] == "<|assistant|>"
    specials = {"<|user|>", "<|system|>", "<|assistant|>", "<|end|>", "<|unknown|>", "<image>", "<|pad|>"}
    assert set(processor.tokenizer.all_special_tokens) == specials


@pytest.mark.parametrize("response", ["red 7\n\nblue 5\n\n7 + 5 = 12\n\n# Answer 12"])
def test_the_chat_template_renders_a_finished_turn(response):
    _, processor = build_tiny()
    text = processor.apply_chat_template(
        [
            {"role": "system", "content": "Read "},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "red"}]},
            {"role": "assistant", "content": response},
        ]
    )
    assert text == f"<|system|>Read <|user|><image>red<|assistant|>{response}<|end|>"
