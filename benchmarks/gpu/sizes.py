"""The sizes that whole-model subjects run at: Qwen2.5-VL as published, and a rollout; each with its tiny double.

The vision tower has fewer layers than the published 32, which helps the peers that encode an image once a response.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

FIRST_TEXT_ID = 64
"""Random text begins here: lower ids are the tokenizer's special ones."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The text model, the vision tower, and the patches of an image (four become a token)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    rotary: tuple[int, int, int] = (16, 24, 24)
    patches: tuple[int, int] = (64, 64)
    vision: dict[str, object] = field(
        default_factory=lambda: dict(
            depth=4, hidden_size=1280, intermediate_size=3420, num_heads=16, patch_size=14, window_size=112,
            fullatt_block_indexes=[3],
        )
    )  # fmt: skip

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.hidden // self.heads

    @property
    def image_tokens(self) -> int:
        """Tokens of an image."""
        return self.patches[0] * self.patches[1] // 4

    @property
    def image_id(self) -> int:
        """The token that stands for a part of an image: the last but three; behind it video, and the two brackets."""
        return self.vocabulary - 4


QWEN_3B = Sizes(2048, 36, 16, 2, 11_008, 151_936, tied=True)
QWEN_7B = Sizes(3584, 28, 28, 4, 18_944, 152_064, tied=False)
TINY_MODEL = Sizes(
    64, 2, 4, 2, 128, 512, tied=True, rotary=(2, 3, 3), patches=(4, 6),
    vision=dict(
        depth=2, hidden_size=32, intermediate_size=64, num_heads=2, patch_size=4, window_size=16,
        fullatt_block_indexes=[1],
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rollout:
    """`groups` prompts of `prompt` tokens, `samples` responses each; one token in `mean` of the vocabulary ends one.

    `short` and `long` are the lengths, without stops, of the two runs that a step's time is read from.
    """

    groups: int
    samples: int
    prompt: int
    max_tokens: int
    mean: int
    short: int
    long: int

    @property
    def name(self) -> str:
        """How the table names it."""
        return f"{self.groups}x{self.samples} rows, prompt {self.prompt}, responses to {self.max_tokens}"

    @property
    def expected_length(self) -> float:
        """Mean length of a response whose every token ends it with odds of 1 in `mean`."""
        return self.mean * (1 - math.exp(-self.max_tokens / self.mean))


ROLLOUT = Rollout(16, 16, 1500, 512, 500, short=64, long=320)
"""Mean length 320, the middle of 128 to 512."""
TINY_ROLLOUT = Rollout(2, 2, 24, 12, 8, short=2, long=6)


def stop_ids(sizes: Sizes, rollout: Rollout) -> tuple[int, ...]:
    """The tokens that end a response: one in `mean` of the vocabulary."""
    return tuple(range(FIRST_TEXT_ID, FIRST_TEXT_ID + max(1, sizes.vocabulary // rollout.mean)))
