"""Tiny checkpoints of the families that the recipes of examples/ are for, with processors that need no torchvision, and
one (PaliGemma) whose code wants values where a model without weights has none.

The processors are the families' own, built as the matrix builds them, but for Phi-4's, whose image processor exists for
torchvision alone: `ByHand` makes the tensors and placeholders that it would.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from family import FAMILIES, build_config
from matrix import load_families
from tokenizer import template, tokenizer_with, without_videos

POSITIONS = 4096
IMAGE_TOKEN = "<|image|>"


class ByHand:
    """A processor of a family whose images the matrix makes by hand; wide pictures are of the other size."""

    chat_template = template(IMAGE_TOKEN)

    def __init__(self, family: str) -> None:
        self.made = FAMILIES[family]()
        self.tokenizer = tokenizer_with(IMAGE_TOKEN)
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def apply_chat_template(self, messages: list[dict], **_: Any) -> dict[str, torch.Tensor]:
        """Ids and image inputs of one conversation."""
        ids, parts = [], []
        for item in messages[-1]["content"]:
            if item["type"] == "image":
                size = "other" if item["image"].width > item["image"].height else "usual"
                placeholder, inputs = self.made.image(size, torch.Generator().manual_seed(0))
                ids += [self.image_token_id] * len(placeholder)
                parts.append(inputs)
            else:
                ids += self.tokenizer(item["text"])["input_ids"]
        ids = torch.tensor([ids])
        joined = self.made.join(parts) if len(parts) > 1 else parts[0] if parts else {}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **joined}


def internvl_processor() -> Any:
    """InternVL's own: at most 3 tiles of 24x24 pixels and a thumbnail, 9 tokens each."""
    tokenizer = tokenizer_with(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    size = {"height": 24, "width": 24}
    images = transformers.GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, min_patches=1, max_patches=3)
    return without_videos(transformers.InternVLProcessor)(
        image_processor=images, tokenizer=tokenizer, image_seq_length=9, chat_template=template("<IMG_CONTEXT>")
    )


PROCESSORS: dict[str, Callable[[], Any]] = {
    "internvl": internvl_processor,
    "qwen2_5_vl": lambda: FAMILIES["qwen2_5_vl"]().processor(),
    "minicpmv4_6": lambda: FAMILIES["minicpmv4_6"]().processor(),
    "phi4_multimodal": lambda: ByHand("phi4_multimodal"),
    "paligemma": lambda: ByHand("paligemma"),
}


def stand_in(family: str, folder: Path) -> tuple[transformers.PreTrainedModel, Any]:
    """Write a tiny random-weight checkpoint of a family to `folder`, without a processor; the model and a processor."""
    load_families()
    made, processor = FAMILIES[family](), PROCESSORS[family]()
    config = made.config()
    config.get_text_config(decoder=True).max_position_embeddings = POSITIONS
    for holder in (config, getattr(config, "vision_config", None)):
        if hasattr(holder, "image_token_id"):
            holder.image_token_id = processor.image_token_id
    model = build_config(config)
    model.save_pretrained(folder)
    return model, processor
