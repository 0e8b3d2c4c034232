"""Families of the Qwen-VL kind: images of any size as rows of patches, rotary positions of several axes."""

from __future__ import annotations

import torch
from family import END, IMAGE, START, TEXT, VIDEO, VISION, Family, Made, auto, family
from tokenizer import template, tokenizer_with, without_videos

IMAGES = dict(size={"shortest_edge": 64, "longest_edge": 512}, patch_size=4, merge_size=2)
"""Of the image processors: 16 to 32 patches of 4x4 pixels an image."""
TOWER = dict(depth=2, hidden_size=32, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"


def qwen_tokenizer():
    """The special tokens of Qwen-VL."""
    return tokenizer_with("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")


def qwen_ids(tokenizer) -> dict[str, int]:
    """The ids of Qwen-VL's special tokens, as its configs name them."""
    return dict(
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    )


def rope(*sections: int) -> dict[str, object]:
    """Rotary parameters of three axes."""
    return dict(rope_parameters=dict(rope_type="default", mrope_section=list(sections), rope_theta=10000.0))


def qwen(name: str, vision: dict[str, object], text: dict[str, object], processor: str, notes: str) -> Family:
    """A Qwen-VL family with its processor."""
    tokenizer = qwen_tokenizer()

    def make():
        import transformers

        images = transformers.Qwen2VLImageProcessorPil(temporal_patch_size=2, **IMAGES)
        kind = without_videos(getattr(transformers, processor))
        return kind(image_processor=images, tokenizer=tokenizer, chat_template=template(PLACEHOLDER))

    def config():
        return auto(name, vision_config=TOWER | vision, text_config=TEXT | text, **qwen_ids(tokenizer))

    return Family(config, processor=make, notes=notes)


@family("qwen2_vl")
def _qwen2_vl() -> Family:
    vision = dict(embed_dim=32, hidden_size=32, mlp_ratio=2)
    return qwen("qwen2_vl", vision, rope(1, 1, 2), "Qwen2VLProcessor", "multi-axis rotary positions")


@family("qwen2_5_vl")
def _qwen2_5_vl() -> Family:
    vision = dict(intermediate_size=64, out_hidden_size=32, window_size=16, fullatt_block_indexes=[1])
    return qwen("qwen2_5_vl", vision, rope(1, 1, 2), "Qwen2_5_VLProcessor", "multi-axis rotary positions")


@family("qwen3_vl")
def _qwen3_vl() -> Family:
    vision = dict(intermediate_size=64, out_hidden_size=32, num_position_embeddings=64, deepstack_visual_indexes=[0, 1])
    text = dict(head_dim=16) | rope(4, 2, 2)
    notes = "multi-axis rotary positions; image features in several layers"
    return qwen("qwen3_vl", vision, text, "Qwen3VLProcessor", notes)


@family("qwen3_vl_moe")
def _qwen3_vl_moe() -> Family:
    vision = dict(intermediate_size=64, out_hidden_size=32, num_position_embeddings=64, deepstack_visual_indexes=[0, 1])
    text = dict(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32) | rope(4, 2, 2)
    notes = "multi-axis rotary positions; experts"
    return qwen("qwen3_vl_moe", vision, text, "Qwen3VLProcessor", notes)


def _glm(name: str, text: dict[str, object], notes: str) -> Family:
    names = ("<|begin_of_image|>", "<|image|>", "<|end_of_image|>")
    videos = ("<|begin_of_video|>", "<|video|>", "<|end_of_video|>")
    tokenizer = tokenizer_with(*names, *videos)

    def make():
        from transformers import Glm4vImageProcessorPil, Glm4vProcessor

        images = Glm4vImageProcessorPil(temporal_patch_size=2, **IMAGES)
        kind = without_videos(Glm4vProcessor)
        return kind(image_processor=images, tokenizer=tokenizer, chat_template=template("".join(names)))

    def config():
        keys = ("start_token_id", "token_id", "end_token_id")
        ids = {f"image_{key}": tokenizer.convert_tokens_to_ids(token) for key, token in zip(keys, names)}
        ids |= {f"video_{key}": tokenizer.convert_tokens_to_ids(token) for key, token in zip(keys, videos)}
        vision = TOWER | dict(out_hidden_size=32, intermediate_size=64, image_size=24)
        return auto(name, vision_config=vision, text_config=TEXT | text, **ids)

    return Family(config, processor=make, notes=notes)


@family("glm4v")
def _glm4v() -> Family:
    return _glm("glm4v", rope(1, 1, 2), "multi-axis rotary positions")


@family("glm4v_moe")
def _glm4v_moe() -> Family:
    text = dict(
        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=1, first_k_dense_replace=1
    )
    return _glm("glm4v_moe", text | rope(1, 1, 2) | dict(head_dim=16), "multi-axis rotary positions; experts")


def _grid(size: str) -> tuple[int, int]:
    return (4, 6) if size == "usual" else (6, 8)


def patches(names: tuple[str, ...], *shape: int):
    """Images as rows of patches of `shape`, with their grids, as their processors would cut them."""

    def make(size: str, generator: torch.Generator) -> Made:
        height, width = _grid(size)
        tokens = [START, *[IMAGE] * (height * width // 4), END]
        values = torch.randn(height * width, *shape, generator=generator)
        return tokens, dict(zip(names, (values, torch.tensor([[1, height, width]]))))

    return make


@family("paddleocr_vl")
def _paddleocr_vl() -> Family:
    def config():
        return auto(
            "paddleocr_vl",
            vision_config=dict(image_size=24, patch_size=4, spatial_merge_size=2) | VISION,
            text_config=TEXT | dict(head_dim=8) | rope(1, 1, 2),
            image_token_id=IMAGE,
            vision_start_token_id=START,
            vision_end_token_id=END,
            video_token_id=VIDEO,
            tie_word_embeddings=False,
        )

    made = patches(("pixel_values", "image_grid_thw"), 3, 4, 4)
    return Family(config, made, marks=("mm_token_type_ids",), notes="multi-axis rotary positions")


@family("video_llama_3")
def _video_llama_3() -> Family:
    def image(size: str, generator: torch.Generator) -> Made:
        tokens, inputs = patches(("pixel_values", "image_grid_thw"), 3 * 4 * 4)(size, generator)
        return tokens, inputs | {"image_merge_sizes": torch.tensor([2])}

    def config():
        return auto(
            "video_llama_3",
            vision_config=dict(model_type="video_llama_3_vision", patch_size=4) | VISION,
            text_config=dict(model_type="qwen2", **TEXT),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        )

    return Family(config, image, notes="a merge size an image")
