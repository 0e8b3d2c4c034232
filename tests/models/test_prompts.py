"""Encoding problems: generic over processors, once per problem, clear about bad images."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from mstar_engine.data.digits import digits_problems
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.types import Problem

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def processor():
    return build_tiny()[1]


def test_shapes_and_expanded_image_tokens(processor):
    prompt = PromptEncoder(processor).encode(digits_problems("train", 1)[0])
    assert prompt.input_ids.dtype == torch.int64 and prompt.input_ids.ndim == 1
    assert (prompt.input_ids == processor.image_token_id).sum() == 16
    assert set(prompt.inputs) == {"pixel_values"} and prompt.inputs["pixel_values"].shape == (1, 3, 64, 64)


def test_two_images_and_none(processor):
    one, two = (problem.images[0] for problem in digits_problems("train", 2))
    encoder = PromptEncoder(processor)
    both = encoder.encode(Problem(id="both", question="What ", images=(one, two)))
    assert both.inputs["pixel_values"].shape[0] == 2 and (both.input_ids == processor.image_token_id).sum() == 32
    none = encoder.encode(Problem(id="none", question="What "))
    assert not none.inputs and (none.input_ids != processor.image_token_id).all()


def test_system_message(processor):
    problem = digits_problems("train", 1)[0]
    plain, told = PromptEncoder(processor).encode(problem), PromptEncoder(processor, system="Read ").encode(problem)
    assert processor.tokenizer.convert_ids_to_tokens(told.input_ids[:2]) == ["<|system|>", "Read "]
    assert torch.equal(told.input_ids[2:], plain.input_ids)


def test_a_path_gives_the_same_prompt_as_its_image(processor, tmp_path):
    problem = digits_problems("train", 1)[0]
    problem.images[0].save(tmp_path / "a.png")
    encoder = PromptEncoder(processor, cache_bytes=0)
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        prompt = encoder.encode(replace(problem, images=(path,)))
        assert torch.equal(prompt.inputs["pixel_values"], encoder.encode(problem).inputs["pixel_values"])


@pytest.mark.parametrize("content", [None, b"", b"not an image", "truncated"])
def test_a_bad_image_names_problem_and_path(processor, tmp_path, content):
    path = tmp_path / "bad.png"
    if content == "truncated":
        Image.effect_noise((64, 64), 50).save(path)
        content = path.read_bytes()[:900]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"'p7'.*bad\.png"):
        PromptEncoder(processor).encode(Problem(id="p7", question="What ", images=(path,)))


def test_prompts_are_encoded_once_within_the_limit(processor):
    first, second, third = digits_problems("train", 3)
    size = PromptEncoder(processor).encode(first).nbytes
    encoder = PromptEncoder(processor, cache_bytes=2 * size + size // 2)
    kept = encoder.encode(first)
    encoder.encode(second)
    assert encoder.encode(first) is kept
    encoder.encode(third)
    assert encoder.encode(first) is kept
    assert len(encoder._cache) == 2 and encoder._held <= encoder.cache_bytes
    assert encoder._held == sum(prompt.nbytes for _, prompt in encoder._cache.values())


def test_a_reworded_problem_is_encoded_anew(processor):
    problem = digits_problems("train", 1)[0]
    encoder = PromptEncoder(processor)
    first = encoder.encode(problem)
    assert len(encoder.encode(replace(problem, question="Read ")).input_ids) < len(first.input_ids)
    reworded = encoder.encode(replace(problem, question="Read "))
    assert encoder.encode(replace(problem, gold="other", question="Read ")) is reworded


def test_token_types_are_kept_apart():
    class Processor:
        chat_template = "template"

        def decode(self, ids):
            return "b"

        def apply_chat_template(self, messages, **options):
            ids = torch.tensor([[1, 2, 3]], dtype=torch.int32)
            types = torch.ones_like(ids)
            made = {"input_ids": ids, "attention_mask": ids, "mm_token_type_ids": types, "image_grid_thw": ids[:0]}
            return made | {"labels": ids}  # as PaliGemma's processor has them: no input, they ask for a loss

    prompt = PromptEncoder(Processor()).encode(Problem(id="a", question="b"))
    assert prompt.input_ids.tolist() == [1, 2, 3] and prompt.input_ids.dtype == torch.int64
    assert prompt.token_inputs["mm_token_type_ids"].tolist() == [1, 1, 1]
    assert set(prompt.inputs) == {"image_grid_thw"} and set(prompt.token_inputs) == {"mm_token_type_ids"}


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[0]['role'] + messages[0]['content'] }}", 'can only concatenate str \\(not "list"\\) to str'),
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_a_template_that_cannot_render_is_said_to(template, said):
    processor = build_tiny()[1]
    processor.chat_template = template
    with pytest.raises(ValueError, match=rf"problem 'p1': LlavaProcessor cannot make its prompt \(\w+: {said}"):
        PromptEncoder(processor).encode(Problem(id="p1", question="What "))


def test_a_processor_without_a_template_is_refused():
    processor = build_tiny()[1]
    processor.chat_template, processor.tokenizer.chat_template = None, "{{ messages }}"  # which it would not look at
    with pytest.raises(ValueError, match="LlavaProcessor has no chat template"):
        PromptEncoder(processor)


def test_no_chat_template_is_refused():
    with pytest.raises(ValueError, match="no chat template"):
        PromptEncoder(object())
