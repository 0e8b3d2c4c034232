"""Families with a Pixtral tower: images of any size as they are, padded to the largest.

Their processor needs torchvision.
"""

from __future__ import annotations

import torch
from family import END, IMAGE, START, TEXT, VISION, Family, Made, auto, family
from tile_families import padded_first


def _pixtral(name: str, merge: int, text: dict[str, object], id_name: str, notes: str, **other: object) -> Family:
    side = 4 * merge

    def image(size: str, generator: torch.Generator) -> Made:
        rows, columns = (2, 3) if size == "usual" else (4, 2)
        row = [IMAGE] * columns
        tokens = [*([*row, START] * (rows - 1)), *row, END]  # a break behind a row, an end behind the last
        pixels = torch.randn(1, 3, rows * side, columns * side, generator=generator)
        return tokens, {"pixel_values": pixels, "image_sizes": torch.tensor([[rows * side, columns * side]])}

    def config():
        return auto(
            name,
            vision_config=dict(model_type="pixtral", image_size=32, patch_size=4, head_dim=16) | VISION,
            text_config=TEXT | text,
            **{id_name: IMAGE},
            **other,
        )

    return Family(config, image, join=padded_first, notes=notes)


@family("mistral3")
def _mistral3() -> Family:
    text = dict(model_type="mistral", head_dim=8)
    return _pixtral("mistral3", 2, text, "image_token_index", "images of any size", spatial_merge_size=2)


@family("pixtral")
def _pixtral_llava() -> Family:
    text = dict(model_type="mistral", head_dim=8)
    other = dict(vision_feature_layer=-1, vision_feature_select_strategy="full")
    return _pixtral("llava", 1, text, "image_token_index", "LLaVA with a Pixtral tower; images of any size", **other)


@family("lighton_ocr")
def _lighton_ocr() -> Family:
    text = dict(model_type="qwen3", head_dim=8)
    return _pixtral("lighton_ocr", 2, text, "image_token_id", "images of any size", spatial_merge_size=2)
