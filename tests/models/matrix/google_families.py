"""Families whose image tokens, or whole prompts, attend both ways."""

from __future__ import annotations

import torch
from family import END, IMAGE, START, TEXT, VIDEO, VISION, Family, Made, auto, family
from llava_families import pixels, siglip
from tokenizer import template, tokenizer_with

WINDOWS = dict(
    num_hidden_layers=3, sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
)
TWO_WINDOWS = dict(sliding_window=8, layer_types=["sliding_attention", "full_attention"])


@family("gemma3")
def _gemma3() -> Family:
    tokenizer = tokenizer_with(
        boi_token="<start_of_image>", image_token="<image_soft_token>", eoi_token="<end_of_image>"
    )

    def processor():
        from transformers import Gemma3ImageProcessorPil, Gemma3Processor

        images = Gemma3ImageProcessorPil(
            size={"height": 32, "width": 32},
            do_pan_and_scan=True,
            pan_and_scan_min_crop_size=8,
            pan_and_scan_max_num_crops=4,
            pan_and_scan_min_ratio_to_activate=1.2,
        )
        return Gemma3Processor(images, tokenizer, chat_template=template("<start_of_image>"), image_seq_length=4)

    def config():
        return auto(
            "gemma3",
            vision_config=dict(image_size=32, patch_size=8) | VISION,
            text_config=TEXT | dict(head_dim=16, query_pre_attn_scalar=16) | WINDOWS,
            image_token_index=tokenizer.image_token_id,
            boi_token_index=tokenizer.boi_token_id,
            eoi_token_index=tokenizer.eoi_token_id,
            mm_tokens_per_image=4,
        )

    return Family(config, processor=processor, notes="image tokens attend both ways; sliding windows in some layers")


def _paligemma(text: dict[str, object], notes: str, attention: str = "sdpa") -> Family:
    def config():
        return auto(
            "paligemma",
            vision_config=siglip(),
            text_config=TEXT | dict(head_dim=8) | text,
            image_token_index=IMAGE,
            projection_dim=32,
            hidden_size=32,
            vocab_size=TEXT["vocab_size"],
        )

    return Family(config, pixels(9, 24), prefix_marks="token_type_ids", attention=attention, notes=notes)


@family("paligemma")
def _paligemma_1() -> Family:
    return _paligemma(dict(model_type="gemma"), "the whole prompt attends both ways; positions from 1")


@family("paligemma2")
def _paligemma_2() -> Family:
    text = dict(model_type="gemma2", query_pre_attn_scalar=8, attn_logit_softcapping=20.0, final_logit_softcapping=30.0)
    return _paligemma(text | WINDOWS, "as PaliGemma, with sliding windows in some layers and soft caps", "eager")


@family("shieldgemma2")
def _shieldgemma2() -> Family:
    def config():
        ids = dict(image_token_index=IMAGE, boi_token_index=START, eoi_token_index=END)
        vision = dict(image_size=32, patch_size=8, vision_use_head=False) | VISION
        text = TEXT | dict(head_dim=16, query_pre_attn_scalar=16) | TWO_WINDOWS
        return auto("shieldgemma2", vision_config=vision, text_config=text, mm_tokens_per_image=4, **ids)

    notes = "image tokens attend both ways; sliding windows in some layers"
    return Family(config, pixels(4, 32), marks=("token_type_ids",), notes=notes)


def _placed(merge: int, patch: int):
    """Images as patches with their places, padded to a count; `merge` x `merge` patches a token."""

    def image(size: str, generator: torch.Generator) -> Made:
        height, width = (2 * merge, 3 * merge) if size == "usual" else (3 * merge, 4 * merge)
        count, most = height * width, 12 * merge * merge
        columns, rows = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
        places = torch.full((1, most, 2), -1)
        places[0, :count] = torch.stack([columns, rows], dim=-1).reshape(count, 2)
        values = torch.rand(1, most, 3 * patch * patch, generator=generator)
        values[:, count:] = 0
        tokens = [START, *[IMAGE] * (count // merge**2), END]
        return tokens, {"pixel_values": values, "image_position_ids": places}

    return image


def _gemma4(name: str, vision: dict[str, object], merge: int, **text: object) -> Family:
    def config():
        ids = dict(image_token_id=IMAGE, video_token_id=VIDEO, boi_token_id=START, eoi_token_id=END)
        ids |= dict(boa_token_id=7, eoa_token_index=8, audio_token_id=9)
        own = TEXT | TWO_WINDOWS | dict(head_dim=16, global_head_dim=16, use_bidirectional_attention="vision") | text
        return auto(name, vision_config=vision, text_config=own, **ids)

    notes = "image tokens attend both ways; refused where layers differ in head size, as its default config has it"
    return Family(config, _placed(merge, 4), marks=("mm_token_type_ids",), notes=notes)


@family("gemma4")
def _gemma4_tower() -> Family:
    vision = dict(num_key_value_heads=2, head_dim=16, pooling_kernel_size=2, patch_size=4, position_embedding_size=64)
    own = dict(hidden_size_per_layer_input=8, vocab_size_per_layer_input=TEXT["vocab_size"])
    return _gemma4("gemma4", vision | VISION, 2, **own)


@family("gemma4_unified")
def _gemma4_unified() -> Family:
    vision = dict(patch_size=2, pooling_kernel_size=2, model_patch_size=4, mm_embed_dim=32, mm_posemb_size=64)
    return _gemma4("gemma4_unified", vision | dict(output_proj_dims=32, num_soft_tokens=12), 1)
