"""Prompts kept on disk: a second pass runs nothing, whatever determines a prompt changes its key, damage costs time."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, ByT5Tokenizer

from mstar_engine.data.digits import digits_problems
from mstar_engine.data.images import DECODED, ImageLimits
from mstar_engine.data.tensor_cache import TensorCache
from mstar_engine.models.processor_print import processor_print
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.reward.forms import FORMS
from mstar_engine.reward.layout import Layout
from mstar_engine.types import Problem

torch.set_num_threads(1)


@pytest.fixture
def problems(tmp_path):
    """Problems of files: three images, two questions each, one of two images and one of none."""
    found = []
    for i, digits in enumerate(digits_problems("train", 3)):
        path = tmp_path / f"{i}.png"
        digits.images[0].save(path)
        found += [Problem(id=f"{i}{asked}", question=asked, images=(path,)) for asked in ("What ", "Read ")]
    both = Problem(id="both", question="What ", images=found[0].images + found[2].images)
    return [*found, both, Problem(id="none", question="What ")]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def encoder(folder, processor=None, **named) -> PromptEncoder:
    return PromptEncoder(processor or build_tiny()[1], cache_bytes=0, images=TensorCache(folder), **named)


def misses(made: PromptEncoder, problem: Problem) -> int:
    """Entries that were not found while a problem was encoded."""
    before = made._kept._kept.misses
    made.encode(problem)
    return made._kept._kept.misses - before


def assert_same(one, other) -> None:
    assert torch.equal(one.input_ids, other.input_ids)
    assert list(one.inputs) == list(other.inputs) and list(one.token_inputs) == list(other.token_inputs)
    assert all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)


def test_a_second_pass_runs_neither_template_nor_processor(problems, folder, monkeypatch):
    processor = build_tiny()[1]
    plain = [PromptEncoder(processor, cache_bytes=0).encode(problem) for problem in problems]
    first = encoder(folder)
    before = DECODED.images
    for problem, wanted in zip(problems, plain):
        assert_same(first.encode(problem), wanted)
    assert DECODED.images - before == 3 + 2
    for called in ("apply_chat_template", "__call__"):
        monkeypatch.setattr(type(processor), called, lambda *_, **__: pytest.fail("the processor was run"))
    for again in (first, encoder(folder)):  # the next epoch, and the next run
        for problem, wanted in zip(problems, plain):
            assert_same(again.encode(problem), wanted)
    assert DECODED.images - before == 3 + 2


def test_an_image_is_kept_once_for_all_questions(problems, folder):
    made = encoder(folder)
    for number in range(20):
        made.encode(replace(problems[0], id=str(number), question="What " * number))
    pixels = made.encode(problems[0]).inputs["pixel_values"].nbytes
    assert pixels < sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 2 * pixels


def test_what_determines_a_prompt_is_in_its_key(problems, folder, tmp_path):
    problem, both = problems[0], problems[-2]
    encoder(folder).encode(problem)
    encoder(folder).encode(both)
    assert misses(encoder(folder), problem) == misses(encoder(folder), both) == 0
    assert misses(encoder(folder), replace(problem, id="other", gold="7")) == 0  # what a prompt does not show
    assert misses(encoder(folder), replace(problem, question="What  ")) == 1
    assert misses(encoder(folder, system="Read "), problem) == 1
    assert misses(encoder(folder), replace(both, images=both.images[::-1])) == 2
    Image.new("RGB", (64, 64), "red").save(tmp_path / "0.png")
    assert misses(encoder(folder), problem) == 2


def test_another_processor_reads_nothing_of_it(problems, folder):
    encoder(folder).encode(problems[0])
    template, vocabulary, settings = (build_tiny()[1] for _ in range(3))
    template.chat_template = "Read " + template.chat_template
    vocabulary.tokenizer.add_tokens(["<new>"])
    settings.image_processor.image_std = [0.1, 0.2, 0.3]
    for changed, missed in ((template, 1), (vocabulary, 1), (settings, 2)):
        assert misses(encoder(folder, changed), problems[0]) == missed
        assert_same(encoder(folder, changed).encode(problems[0]), PromptEncoder(changed).encode(problems[0]))


def test_a_checkpoint_that_was_written_again_reads_it(problems, folder, tmp_path):
    build_tiny()[1].save_pretrained(tmp_path / "one")
    first = AutoProcessor.from_pretrained(tmp_path / "one")  # whose image processor is torchvision's, where that is
    encoder(folder, first).encode(problems[0])
    for place in ("one", "two"):
        first.save_pretrained(tmp_path / place)
        assert misses(encoder(folder, AutoProcessor.from_pretrained(tmp_path / place)), problems[0]) == 0


def test_another_process_tells_a_processor_the_same():
    code = """
from mstar_engine.models.processor_print import processor_print
from mstar_engine.models.tiny import build_tiny
print(processor_print(build_tiny()[1]))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == processor_print(build_tiny()[1])


def test_a_vocabulary_that_cannot_be_told_keeps_no_prompts(problems, folder):
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'][0]['text'] }}"
    assert processor_print(tokenizer) is None
    made = encoder(folder, tokenizer)
    assert made.encode(problems[-1]).input_ids.tolist() == tokenizer("What ").input_ids[:-1] and not folder.exists()


@pytest.mark.parametrize("spoil", ["flip", "cut", "drop"])
def test_damage_costs_an_encoding_and_no_more(problems, folder, spoil):
    made = encoder(folder)
    wanted = made.encode(problems[0])
    for path in list(folder.rglob("*.safetensors")):  # the prompt's and the image's
        data = bytearray(path.read_bytes())
        data[-1] ^= 64
        if spoil == "drop":
            path.unlink()
        else:
            path.write_bytes(data if spoil == "flip" else data[:-5])
        for reader in (made, encoder(folder)):
            assert_same(reader.encode(problems[0]), wanted)
        assert misses(made, problems[0]) == 0


def test_a_cache_with_room_for_little_is_right(problems, folder):
    plain = [PromptEncoder(build_tiny()[1], cache_bytes=0).encode(problem) for problem in problems]
    made = PromptEncoder(build_tiny()[1], cache_bytes=0, images=TensorCache(folder, 150_000))
    for _ in range(3):
        for problem, wanted in zip(problems, plain):
            assert_same(made.encode(problem), wanted)


def test_threads_share_it(problems, folder):
    plain = [PromptEncoder(build_tiny()[1], cache_bytes=0).encode(problem) for problem in problems]
    made = encoder(folder)
    with ThreadPoolExecutor(4) as threads:
        for prompt, wanted in zip(threads.map(made.encode, problems * 4), plain * 4):
            assert_same(prompt, wanted)


def test_limits_hold_for_what_is_kept(problems, folder):
    encoder(folder).encode(problems[0])
    with pytest.raises(ValueError, match="pixels; allowed"):
        encoder(folder, limits=ImageLimits(pixels=10)).encode(problems[0])


@pytest.mark.parametrize(("name", "new"), [("mstar", 0), ("visual_prm", 1)])
def test_a_process_reward_model_reads_what_the_policy_has(problems, folder, name, new):
    """The whole prompt where its form asks as the policy is asked, else the image."""
    processor = build_tiny()[1]
    encoder(folder).encode(problems[0])
    plain = Layout(FORMS[name], processor).encoder(processor).encode(problems[0])
    for missed in (new, 0):
        kept = Layout(FORMS[name], processor).encoder(processor)
        kept.keep_images(TensorCache(folder))
        before = DECODED.images
        assert misses(kept, problems[0]) == missed and DECODED.images == before
        assert_same(kept.encode(problems[0]), plain)
    assert plain.inputs["pixel_values"].isfinite().all()
