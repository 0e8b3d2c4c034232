"""Qwen2.5-VL models with random weights made on the device, and image prompts for them.

Nothing is downloaded. Speed does not depend on what the weights are, only lengths do: logits of random weights are
nearly flat, so a response ends at one of a set of stop tokens with about the set's share of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from benchmarks.gpu.sizes import FIRST_TEXT_ID, Sizes
from mstar_engine.models.prompts import EncodedPrompt, PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.types import Problem


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
