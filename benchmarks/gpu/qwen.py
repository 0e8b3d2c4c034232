"""Qwen2.5-VL as its published sizes have it, with random weights made on the device, and image prompts for it.

Nothing is downloaded. Speed does not depend on what the weights are, only lengths do: logits of random weights are
nearly flat, so a response ends at one of a set of stop tokens with about the set's share of the vocabulary. The vision
tower has fewer layers than the published 32, which helps the peers that encode an image once a response.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from mstar_engine.models.prompts import EncodedPrompt, PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.types import Problem

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
TINY = Sizes(
    64, 2, 4, 2, 128, 512, tied=True, rotary=(2, 3, 3), patches=(4, 6),
    vision=dict(
        depth=2, hidden_size=32, intermediate_size=64, num_heads=2, patch_size=4, window_size=16,
        fullatt_block_indexes=[1],
    ),
)  # fmt: skip


def config(sizes: Sizes) -> PretrainedConfig:
    """The configuration of a model of these sizes."""
    image = sizes.image_id
    text = dict(
        vocab_size=sizes.vocabulary, hidden_size=sizes.hidden, intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=32_768, rms_norm_eps=1e-6, tie_word_embeddings=sizes.tied, pad_token_id=None,
        bos_token_id=None, eos_token_id=None,
        rope_parameters=dict(rope_type="default", mrope_section=list(sizes.rotary), rope_theta=1e6),
    )  # fmt: skip
    vision = dict(sizes.vision, out_hidden_size=sizes.hidden, spatial_merge_size=2, temporal_patch_size=2)
    return AutoConfig.for_model(
        "qwen2_5_vl", text_config=text, vision_config=vision, tie_word_embeddings=sizes.tied, image_token_id=image,
        video_token_id=image + 1, vision_start_token_id=image + 2, vision_end_token_id=image + 3,
    )  # fmt: skip


def build_model(sizes: Sizes, device: torch.device) -> PreTrainedModel:
    """A model with random weights, bfloat16 on CUDA, float32 on the CPU; in evaluation mode."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        model = AutoModelForImageTextToText.from_config(config(sizes), dtype=dtype, attn_implementation="sdpa")
    model.generation_config.eos_token_id = None
    return model.eval()


class ImagePrompts(PromptEncoder):
    """Prompts of `length` tokens, random text around one random image, made once for each problem."""

    def __init__(self, sizes: Sizes, length: int) -> None:
        super().__init__(build_tiny(0)[1])
        self.sizes = sizes
        self.length = length
        self._made: dict[str, EncodedPrompt] = {}

    def encode(self, problem: Problem) -> EncodedPrompt:
        """The prompt that the problem's number seeds."""
        if problem.id not in self._made:
            self._made[problem.id] = self._make(int(problem.id))
        return self._made[problem.id]

    def _make(self, seed: int) -> EncodedPrompt:
        sizes = self.sizes
        generator = torch.Generator().manual_seed(seed)
        count = self.length - sizes.image_tokens - 2
        text = torch.randint(FIRST_TEXT_ID, sizes.image_id, (count,), generator=generator)
        image = [sizes.image_id + 2, *[sizes.image_id] * sizes.image_tokens, sizes.image_id + 3]
        ids = torch.cat([text[:4], torch.tensor(image), text[4:]])
        height, width = sizes.patches
        pixels = torch.randn(height * width, 3 * 2 * int(sizes.vision["patch_size"]) ** 2, generator=generator)
        inputs = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, height, width]])}
        return EncodedPrompt(ids, inputs, {"mm_token_type_ids": (ids == sizes.image_id).long()})


def problems(count: int) -> list[Problem]:
    """Problems whose numbers seed their prompts."""
    return [Problem(id=str(number), question="") for number in range(count)]


def read_parameters(model: PreTrainedModel) -> list[Tensor]:
    """What a decode step reads of a model: the language model's layers and the output head.

    Not the vision tower; of the input embeddings a row a token, which is nothing, unless they are the output head.
    """
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    layers = [p for p in model.base_model.language_model.parameters() if p is not embeddings and p is not head]
    return [*layers, head]


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of `read_parameters`."""
    return sum(parameter.nbytes for parameter in read_parameters(model))
