"""What the matrix asks of a model family: a tiny config, and prompts with no image, one, two, and one of another size.

A family is a config and a way to make prompts: its own processor where that can be built offline, else an `ImageMaker`
of the tensors and placeholder tokens that its processor would make. Nothing here is known to the engine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from packaging import version
from PIL import Image
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mstar_engine.models.loading import image_class
from mstar_engine.models.prompts import EncodedPrompt, PromptEncoder
from mstar_engine.types import Problem

CASES = ("none", "one", "two", "resized", "again")
"""What a prompt shows: "resized" an image of another size, "again" another one of the usual size, which shares a
forward with "one"."""
SEEDS = {case: 10 * number for number, case in enumerate(CASES)}
SIZES = {"usual": (24, 24), "other": (40, 20)}
"""Width and height of images, pixels."""
VOCABULARY = 160
PAD, IMAGE, START, END, EOS, BOS, VIDEO = 0, 1, 2, 3, 4, 5, 6
FIRST_TEXT = 20
"""Ids from here on are text; below are placeholders."""
TEXT = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=EOS,
)
VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)

Made = tuple[list[int], dict[str, torch.Tensor]]
ImageMaker = Callable[[str, torch.Generator], Made]
"""From a size's name and a generator to an image's placeholder tokens and its model inputs."""


@dataclass(frozen=True)
class Family:
    """One row of the matrix.

    `join` makes one prompt's inputs of several images' (None: behind one another in the first dimension). `marks` names
    the token inputs that are 1 on image tokens, `prefix_marks` one that is 0 on the whole prompt. `spread` scales the
    weights. `attention`: the implementation that the model is built with. `since`: the first
    version of transformers whose own `generate` is known to run these prompts.
    """

    config: Callable[[], PretrainedConfig]
    image: ImageMaker | None = None
    processor: Callable[[], ProcessorMixin] | None = None
    join: Callable[[list[dict[str, torch.Tensor]]], dict[str, torch.Tensor]] | None = None
    marks: tuple[str, ...] = ()
    prefix_marks: str = ""
    tokens: int = 12
    spread: float = 4.0
    notes: str = ""
    since: str = ""
    attention: str = "sdpa"
    cases: tuple[str, ...] = CASES


FAMILIES: dict[str, Callable[[], Family]] = {}
"""By model type, in the order of the table."""


def family(name: str) -> Callable[[Callable[[], Family]], Callable[[], Family]]:
    """Adds a function that makes a `Family` to the matrix."""

    def add(make: Callable[[], Family]) -> Callable[[], Family]:
        FAMILIES[name] = functools.cache(make)
        return make

    return add


def build(made: Family, seed: int = 0) -> PreTrainedModel:
    """A model with random float32 weights, large enough in spread that greedy choices are clear and images matter."""
    if version.parse(transformers.__version__) < version.parse(made.since or "0"):
        raise AbsentError(f"transformers {transformers.__version__} itself cannot run these prompts")
    model = build_config(made.config(), made.attention, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(made.spread)
    model.generation_config.eos_token_id = None
    return model.eval().float()


def build_config(config: PretrainedConfig, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A model of a config with the random weights that the library gives it."""
    torch.manual_seed(seed)
    return image_class(config).from_config(config, attn_implementation=attention)


def prompts(made: Family) -> dict[str, EncodedPrompt]:
    """The prompts of a family by case."""
    try:
        processor = made.processor() if made.processor else None
    except ImportError:  # it wants torchvision in this version
        if made.image is None:
            raise
        processor = None
    return {case: _by_hand(made, case) if processor is None else _encoded(processor, case) for case in made.cases}


def sizes_of(case: str) -> list[str]:
    """The sizes of a case's images."""
    return {"none": [], "one": ["usual"], "two": ["usual", "other"], "resized": ["other"], "again": ["usual"]}[case]


def picture(size: str, seed: int) -> Image.Image:
    """A random RGB picture."""
    width, height = SIZES[size]
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def _encoded(processor: ProcessorMixin, case: str) -> EncodedPrompt:
    encoder = PromptEncoder(processor)
    first = SEEDS[case]
    images = tuple(picture(size, first + i) for i, size in enumerate(sizes_of(case)))
    return encoder.encode(Problem(id=case, question="What is the sum of 2 + 3?", images=images))


def _by_hand(made: Family, case: str) -> EncodedPrompt:
    generator = torch.Generator().manual_seed(SEEDS[case])
    text = torch.randint(FIRST_TEXT, VOCABULARY, (9,), generator=torch.Generator().manual_seed(7)).tolist()
    ids, images = text[:3], []
    for size in sizes_of(case):
        placeholder, inputs = made.image(size, generator)
        ids += [*placeholder, *text[3:5]]
        images.append(inputs)
    ids = torch.tensor([*ids, *text[5:]])
    joined = {}
    if images:
        join = made.join or (lambda parts: {name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        joined = join(images)
    is_image = (ids == IMAGE).long()
    token_inputs = {name: is_image for name in made.marks}
    if made.prefix_marks:
        token_inputs[made.prefix_marks] = torch.zeros_like(ids)
    return EncodedPrompt(ids, joined, token_inputs)


class AbsentError(Exception):
    """A family that this version of transformers does not have."""


def auto(model_type: str, **named: object) -> PretrainedConfig:
    """A config of a model type. AbsentError where transformers has no such model."""
    if model_type not in CONFIG_MAPPING:
        raise AbsentError(f"transformers {transformers.__version__} has no {model_type}")
    return AutoConfig.for_model(model_type, **named)
