"""Families that cut an image into tiles and pad their count or size: Idefics3, SmolVLM, MiniCPM-V, and others."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from family import END, IMAGE, START, TEXT, VISION, Family, Made, auto, family
from llava_families import siglip
from tokenizer import template, tokenizer_with, without_videos

TILE = {"longest_edge": 24}


def _tiled_names() -> list[str]:
    return ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"] + [
        f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)
    ]


def _idefics_kind(name: str, images: str, processor: str, notes: str) -> Family:
    tokenizer = tokenizer_with(*_tiled_names())

    def make():
        import transformers

        splits = getattr(transformers, images)(size={"longest_edge": 48}, max_image_size=TILE)
        kind = without_videos(getattr(transformers, processor))
        options = dict(image_processor=splits, tokenizer=tokenizer, image_seq_len=9)
        return kind(**options, chat_template=template("<image>"))

    def config():
        return auto(
            name,
            vision_config=dict(image_size=24, patch_size=4) | VISION,
            text_config=dict(model_type="llama", **TEXT),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            scale_factor=2,
        )

    def image(size: str, generator: torch.Generator) -> Made:
        """As that processor does, where it is not to be had (transformers before 5.24 without torchvision)."""
        count = 1 if size == "usual" else 3
        one = [tokenizer.convert_tokens_to_ids(token) for token in ["<fake_token_around_image>", *["<image>"] * 9]]
        pixels = torch.randn(1, count, 3, 24, 24, generator=generator)
        return one * count, {
            "pixel_values": pixels,
            "pixel_attention_mask": torch.ones(1, count, 24, 24, dtype=torch.long),
        }

    return Family(config, image, make, join=padded, notes=notes)


@family("idefics3")
def _idefics3() -> Family:
    notes = "tiles padded to a count, with a mask of pixels"
    return _idefics_kind("idefics3", "Idefics3ImageProcessorPil", "Idefics3Processor", notes)


@family("smolvlm")
def _smolvlm() -> Family:
    """Its processor needs the package num2words, for videos only: tiles as the one of Idefics3 makes them."""
    notes = "tiles padded to a count, with a mask of pixels; prompts by Idefics3's processor"
    return _idefics_kind("smolvlm", "Idefics3ImageProcessorPil", "Idefics3Processor", notes)


@family("idefics2")
def _idefics2() -> Family:
    def image(size: str, generator: torch.Generator) -> Made:
        height, width = (24, 24) if size == "usual" else (16, 24)
        pixels = torch.randn(1, 1, 3, height, width, generator=generator)
        mask = torch.ones(1, 1, height, width, dtype=torch.long)
        return [START, *[IMAGE] * 4, START], {"pixel_values": pixels, "pixel_attention_mask": mask}

    def config():
        return auto(
            "idefics2",
            vision_config=dict(model_type="idefics2_vision", image_size=24, patch_size=4) | VISION,
            perceiver_config=dict(
                hidden_size=32,
                resampler_n_latents=4,
                resampler_depth=1,
                resampler_n_heads=2,
                resampler_head_dim=16,
                num_key_value_heads=1,
            ),
            text_config=dict(model_type="mistral", **TEXT),
            image_token_id=IMAGE,
        )

    return Family(config, image, join=padded, notes="images padded to the largest, with a mask of pixels; a resampler")


def padded(parts: list[dict[str, torch.Tensor]], axis: int = 1) -> dict[str, torch.Tensor]:
    """One prompt's images [1, images, ..., height, width], padded below and to the right to the largest; or those whose
    first dimension is the image (`axis` 0). What is no picture is joined as it is."""
    joined = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if values[0].dim() > 2:
            tall, wide = (max(value.shape[side] for value in values) for side in (-2, -1))
            values = [F.pad(value, (0, wide - value.shape[-1], 0, tall - value.shape[-2])) for value in values]
        joined[name] = torch.cat(values, dim=axis)
    return joined


padded_first = functools.partial(padded, axis=0)


@family("minicpmv4_6")
def _minicpmv4_6() -> Family:
    tokenizer = tokenizer_with(
        image_token="<unk>",
        video_token="<video>",
        image_start_token="<image>",
        image_end_token="</image>",
        slice_start_token="<slice>",
        slice_end_token="</slice>",
        image_id_start_token="<image_id>",
        image_id_end_token="</image_id>",
    )

    def make():
        from types import SimpleNamespace

        from transformers import MiniCPMV4_6ImageProcessorPil, MiniCPMV4_6Processor

        images = MiniCPMV4_6ImageProcessorPil(patch_size=4, scale_resolution=32, max_slice_nums=4)
        videos = SimpleNamespace(slice_mode=False, downsample_mode="16x")
        return without_videos(MiniCPMV4_6Processor)(
            image_processor=images, video_processor=videos, tokenizer=tokenizer, chat_template=template("<unk>")
        )

    def config():
        return auto(
            "minicpmv4_6",
            vision_config=dict(image_size=32, patch_size=4) | VISION,
            text_config=dict(model_type="qwen3", head_dim=8, **TEXT),
            insert_layer_id=0,
            image_size=32,
            image_token_id=tokenizer.convert_tokens_to_ids("<unk>"),
            video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        )

    notes = (
        "all images in one row of pixels: prompts with images run one at a time; with its default text model (Qwen3.5, "
    )
    notes += "linear attention) it is refused"
    return Family(config, processor=make, since="5.24", notes=notes)


def tiles(tokens: int, *, most: int = 3):
    """One tile or several an image, as one image each."""

    def make(size: str, generator: torch.Generator) -> Made:
        count = 1 if size == "usual" else most
        return [START, *[IMAGE] * (tokens * count), END], {
            "pixel_values": torch.randn(count, 3, 24, 24, generator=generator)
        }

    return make


@family("aya_vision")
def _aya_vision() -> Family:
    def config():
        text = TEXT | dict(sliding_window=8, layer_types=["sliding_attention", "full_attention"])
        return auto(
            "aya_vision",
            vision_config=siglip(patch_size=4),
            text_config=dict(model_type="cohere2", **text),
            image_token_index=IMAGE,
            downsample_factor=2,
        )

    return Family(config, tiles(9), notes="sliding windows in some layers; logits scaled")


@family("cohere2_vision")
def _cohere2_vision() -> Family:
    def config():
        text = TEXT | dict(sliding_window=8, layer_types=["sliding_attention", "full_attention"])
        return auto(
            "cohere2_vision",
            vision_config=siglip(patch_size=4),
            text_config=dict(model_type="cohere2", **text),
            image_token_id=IMAGE,
            alignment_intermediate_size=64,
        )

    return Family(config, tiles(9), notes="sliding windows in some layers; logits scaled")


@family("got_ocr2")
def _got_ocr2() -> Family:
    def image(size: str, generator: torch.Generator) -> Made:
        count = 1 if size == "usual" else 2
        return [START, *[IMAGE] * (4 * count), END], {
            "pixel_values": torch.randn(count, 3, 32, 32, generator=generator)
        }

    def config():
        vision = dict(
            image_size=32, patch_size=4, output_channels=8, window_size=4, global_attn_indexes=[1], mlp_dim=64
        )
        return auto(
            "got_ocr2",
            vision_config=vision | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2),
            text_config=dict(model_type="qwen2", **TEXT),
            image_token_index=IMAGE,
            image_seq_length=4,
        )

    return Family(config, image, attention="eager", notes="a SAM tower")
