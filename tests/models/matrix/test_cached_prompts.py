"""Prompts from the cache on disk are the processor's own, for every family whose processor can be built offline."""

import copy

import pytest
import torch
from family import FAMILIES, picture
from matrix import load_families
from stand_ins import internvl_processor
from tokenizer import template, tokenizer_with
from transformers import Idefics2ImageProcessorPil, Idefics2Processor, PaliGemmaProcessor, SiglipImageProcessorPil

from mstar_engine.data.images import DECODED
from mstar_engine.data.tensor_cache import TensorCache
from mstar_engine.models.processor_print import processor_print
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.types import Problem

torch.set_num_threads(1)
load_families()
SHOWN = {"none": (), "one": (0,), "two": (0, 1), "turned round": (1, 0), "repeated": (0, 0), "three": (0, 1, 2)}
SIZES = ("usual", "other", "usual")


def pan_and_scan():
    """Gemma 3's processor as it cuts long images into several."""
    made = FAMILIES["gemma3"]().processor()
    images = made.image_processor
    images.do_pan_and_scan, images.pan_and_scan_min_crop_size = True, 8
    images.pan_and_scan_max_num_crops, images.pan_and_scan_min_ratio_to_activate = 4, 1.2
    return made


def paligemma():
    """PaliGemma's processor: token types, and the image tokens in front of the whole text."""
    tokenizer = tokenizer_with("<image>", "<bos>")
    tokenizer.bos_token = "<bos>"
    images = SiglipImageProcessorPil(size={"height": 24, "width": 24})
    images.image_seq_length = 9
    return PaliGemmaProcessor(images, tokenizer, chat_template=template("<image>"))


def idefics2():
    """Idefics2's processor: images padded to the largest of a prompt, with a mask of pixels."""
    images = Idefics2ImageProcessorPil(size={"shortest_edge": 8, "longest_edge": 40}, do_image_splitting=False)
    return Idefics2Processor(images, tokenizer_with(), image_seq_len=4, chat_template=template("<image>"))


PROCESSORS = {name: make().processor for name, make in FAMILIES.items() if make().processor is not None}
PROCESSORS |= {"gemma3, pan and scan": pan_and_scan, "paligemma": paligemma, "idefics2": idefics2}
PROCESSORS["internvl"] = internvl_processor


def made(name: str):
    """A new processor of a family, with a tokenizer of its own."""
    try:
        processor = PROCESSORS[name]()
    except ImportError as error:
        pytest.skip(f"{name}: {error}")
    processor.tokenizer = copy.deepcopy(processor.tokenizer)
    return processor


def assert_same(one, other) -> None:
    assert torch.equal(one.input_ids, other.input_ids) and one.input_ids.dtype == other.input_ids.dtype
    for mine, theirs in ((one.inputs, other.inputs), (one.token_inputs, other.token_inputs)):
        assert list(mine) == list(theirs)
        for name in mine:
            assert mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]), name


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_cached_prompt_is_the_processor_s(name, tmp_path):
    for i, size in enumerate(SIZES):
        picture(size, i).save(tmp_path / f"{i}.png")
    processor, cache = made(name), TensorCache(tmp_path / "cache")
    plain, encoder = PromptEncoder(processor, cache_bytes=0), PromptEncoder(processor, cache_bytes=0, images=cache)
    problems = [
        Problem(id=case, question=question, images=tuple(tmp_path / f"{i}.png" for i in which))
        for case, which in SHOWN.items()
        if which or name != "paligemma"  # which takes no prompt without an image
        for question in ("What is it?", "What else?")
    ]
    first = [encoder.encode(problem) for problem in problems]
    again = PromptEncoder(made(name), cache_bytes=0, images=TensorCache(tmp_path / "cache"))
    before = DECODED.images
    second = [again.encode(problem) for problem in problems]
    assert DECODED.images == before
    for problem, *cached in zip(problems, first, second, strict=True):
        wanted = plain.encode(problem)
        for prompt in cached:
            assert_same(prompt, wanted)


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_is_told_apart_by_what_it_does(name):
    if name == "minicpmv4_6":  # its video processor is a stand-in here, whose settings cannot be told
        assert processor_print(made(name)) is None
        return
    prints = [processor_print(made(name)) for _ in range(2)]
    assert prints[0] == prints[1] is not None
    changed = [made(name) for _ in range(4)]
    changed[0].chat_template += " "
    changed[1].image_processor.image_mean = [0.1, 0.2, 0.3]
    changed[2].tokenizer.add_tokens(["<new>"])
    changed[3].image_token = "?"
    assert len({prints[0], *map(processor_print, changed)}) == 5
