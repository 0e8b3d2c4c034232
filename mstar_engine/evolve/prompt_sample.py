"""What the prompts of a problem set look like to the model: some of them, spread over the set, are encoded as the run
will encode them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mstar_engine.models.prompts import EncodedPrompt, PromptEncoder
from mstar_engine.types import Problem


@dataclass(frozen=True, slots=True)
class Spread:
    """The least, the median and the most of some numbers; all 0 of none."""

    least: int = 0
    median: int = 0
    most: int = 0

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread:
        """The spread of whole numbers; the median is one of them."""
        return cls(min(values), int(statistics.median_low(values)), max(values)) if values else cls()

    def __str__(self) -> str:
        """ "least / median / most", or the number where they are one."""
        if self.least == self.most:
            return f"{self.most:,}"
        return f"{self.least:,} / {self.median:,} / {self.most:,}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSample:
    """`encoded` problems of a set: images a problem, pixels an image (as it is in its file), image tokens an image,
    tokens a prompt with them, and numbers a problem that the model's tower is given."""

    encoded: int
    images: Spread
    pixels: Spread
    image_tokens: Spread
    tokens: Spread
    inputs: Spread


def sample_prompts(
    problems: Sequence[Problem], encoder: PromptEncoder, image_token: int | None, count: int
) -> PromptSample:
    """Encode at most `count` of the problems, evenly spread over them, and the one of the longest question: too long a
    prompt stops a run where it comes up. `image_token`: the id that stands for a part of
    an image (None: such tokens are not told apart). ValueError names a problem whose image cannot be read."""
    chosen = spread_over(problems, count)
    longest = max(problems, key=lambda problem: len(problem.question))
    chosen += [longest] if all(longest is not one for one in chosen) else []
    images, pixels, image_tokens, tokens, inputs = [], [], [], [], []
    for problem in chosen:
        prompt = encoder.encode(problem)
        images.append(len(problem.images))
        pixels += map(_pixels, problem.images)
        tokens.append(len(prompt.input_ids))
        inputs.append(_numbers(prompt))
        if problem.images and image_token is not None:
            shown = int((prompt.input_ids == image_token).sum())
            image_tokens.append(round(shown / len(problem.images)))
    return PromptSample(
        encoded=len(chosen),
        images=Spread.of(images),
        pixels=Spread.of(pixels),
        image_tokens=Spread.of(image_tokens),
        tokens=Spread.of(tokens),
        inputs=Spread.of(inputs),
    )


def spread_over(problems: Sequence[Problem], count: int) -> list[Problem]:
    """At most `count` problems at equal distances, the first and the last among them."""
    if len(problems) <= count:
        return list(problems)
    return [problems[round(place * (len(problems) - 1) / (count - 1))] for place in range(count)]


def _pixels(image: Image.Image | Path | str) -> int:
    if isinstance(image, Image.Image):
        return image.width * image.height
    with Image.open(image) as opened:
        return opened.width * opened.height


def _numbers(prompt: EncodedPrompt) -> int:
    """The numbers of the pictures that a processor has made, tiles and padding included."""
    return sum(value.numel() for value in prompt.inputs.values() if value.is_floating_point())
