"""Families whose image tokens, or whole prompts, attend both ways."""

from __future__ import annotations

from family import IMAGE, TEXT, VISION, Family, auto, family
from llava_families import pixels, siglip
from tokenizer import template, tokenizer_with

WINDOWS = dict(
    num_hidden_layers=3, sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
)


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
