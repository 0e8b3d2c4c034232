"""LLaVA and its relatives: CLIP-like towers, a projector, and image features in place of placeholder tokens."""

from __future__ import annotations

import torch
from family import END, IMAGE, START, TEXT, VISION, Family, Made, auto, family
from tokenizer import template, tokenizer_with, without_videos


def clip(**other: object) -> dict[str, object]:
    """A CLIP tower for images of 24x24 pixels: 9 patches."""
    return dict(model_type="clip_vision_model", image_size=24, patch_size=8, projection_dim=32) | VISION | other


def siglip(**other: object) -> dict[str, object]:
    """A SigLIP tower for images of 24x24 pixels: 9 patches."""
    return dict(model_type="siglip_vision_model", image_size=24, patch_size=8, vision_use_head=False) | VISION | other


def pixels(tokens: int, size: int):
    """Images of one size: the processor has resized whatever it was given."""

    def make(_: str, generator: torch.Generator) -> Made:
        return [IMAGE] * tokens, {"pixel_values": torch.randn(1, 3, size, size, generator=generator)}

    return make


@family("llava")
def _llava() -> Family:
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    tokenizer = tokenizer_with("<image>")

    def processor() -> LlavaProcessor:
        size = {"height": 24, "width": 24}
        return LlavaProcessor(
            CLIPImageProcessorPil(size=size, crop_size=size),
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="full",
            chat_template=template("<image>"),
        )

    def config():
        return auto(
            "llava",
            vision_config=siglip(),
            text_config=dict(model_type="llama", **TEXT),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )

    return Family(config, processor=processor)


@family("llava_next")
def _llava_next() -> Family:
    from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

    tokenizer = tokenizer_with("<image>")
    grid = [[24, 48], [48, 24], [48, 48]]

    def processor() -> LlavaNextProcessor:
        images = LlavaNextImageProcessorPil(
            size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_grid_pinpoints=grid
        )
        return LlavaNextProcessor(
            images,
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=template("<image>"),
        )

    def config():
        return auto(
            "llava_next",
            vision_config=clip(),
            text_config=dict(model_type="mistral", **TEXT),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            image_grid_pinpoints=grid,
            vision_feature_layer=-1,
        )

    return Family(config, processor=processor, notes="tiles of any resolution")


@family("llava_onevision")
def _llava_onevision() -> Family:
    from transformers import LlavaOnevisionImageProcessorPil, LlavaOnevisionProcessor

    tokenizer = tokenizer_with("<image>", "<video>")
    grid = [[24, 24], [24, 48], [48, 24], [48, 48]]

    def processor() -> LlavaOnevisionProcessor:
        images = LlavaOnevisionImageProcessorPil(size={"height": 24, "width": 24}, image_grid_pinpoints=grid)
        return without_videos(LlavaOnevisionProcessor)(
            images,
            tokenizer,
            num_image_tokens=9,
            vision_feature_select_strategy="full",
            chat_template=template("<image>"),
        )

    def config():
        return auto(
            "llava_onevision",
            vision_config=siglip(),
            text_config=dict(model_type="qwen2", **TEXT),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
            image_grid_pinpoints=grid,
            vision_feature_layer=-1,
        )

    return Family(config, processor=processor, notes="tiles of any resolution, several images at base resolution")


@family("vipllava")
def _vipllava() -> Family:
    def config():
        return auto(
            "vipllava",
            vision_config=clip(),
            text_config=dict(model_type="llama", **TEXT),
            image_token_id=IMAGE,
            vision_feature_layers=[-1, -2],
        )

    return Family(config, pixels(9, 24), notes="features of several tower layers")


@family("internvl")
def _internvl() -> Family:
    vision = dict(image_size=[24, 24], patch_size=[4, 4]) | VISION

    def image(size: str, generator: torch.Generator) -> Made:
        tiles = 1 if size == "usual" else 3
        tokens = [START, *[IMAGE] * (9 * tiles), END]
        return tokens, {"pixel_values": torch.randn(tiles, 3, 24, 24, generator=generator)}

    def config():
        return auto(
            "internvl",
            vision_config=vision,
            text_config=dict(model_type="qwen2", **TEXT),
            image_token_id=IMAGE,
            image_seq_length=9,
            downsample_ratio=0.5,
        )

    return Family(config, image, notes="one tile or several an image")
