"""Families with towers or inputs of their own kind: Molmo 2, Phi-4, Ovis 2, Aria, DeepSeek-VL, Janus."""

from __future__ import annotations

import torch
from family import END, IMAGE, START, TEXT, VISION, Family, Made, auto, family
from llava_families import pixels, siglip


@family("molmo2")
def _molmo2() -> Family:
    """Each image token pools patches by their index among all patches of the prompt."""

    def image(size: str, generator: torch.Generator) -> Made:
        high = 0 if size == "usual" else 2
        count = 4 + 4 * (high > 0)
        crops = torch.randn(1 + (high > 0), 16, 3 * 4 * 4, generator=generator)
        index = torch.arange(16 * len(crops)).view(count, 4)
        grid = torch.tensor([[2, 2, high, high]])
        inputs = dict(pixel_values=crops, image_token_pooling=index, image_grids=grid)
        return [START, *[IMAGE] * count, END], inputs | {"image_num_crops": torch.tensor([len(crops)])}

    def join(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        first, shifted = 0, []
        for part in parts:
            shifted.append(part["image_token_pooling"] + first)
            first += 16 * len(part["pixel_values"])
        return joined | {"image_token_pooling": torch.cat(shifted)}

    def config():
        heads = dict(num_attention_heads=2, num_key_value_heads=2, head_dim=16, hidden_size=32, intermediate_size=64)
        text = {name: value for name, value in TEXT.items() if name not in ("bos_token_id", "eos_token_id")}
        return auto(
            "molmo2",
            vision_config=dict(num_hidden_layers=2, image_size=[16, 16], patch_size=4) | heads,
            adapter_config=dict(vision_feature_layer=[0, 1], text_hidden_size=32) | heads,
            text_config=text | dict(head_dim=8, additional_vocab_size=8),
            image_patch_id=IMAGE,
            image_start_token_id=START,
            image_end_token_id=END,
            low_res_image_start_token_id=7,
            frame_start_token_id=8,
            frame_end_token_id=9,
        )

    notes = "image tokens attend both ways; indices of patches: prompts with images run one at a time"
    return Family(config, image, join=join, marks=("mm_token_type_ids",), notes=notes)


@family("phi4_multimodal")
def _phi4_multimodal() -> Family:
    """Loaded as a causal language model, for that is how transformers lists it."""

    def image(size: str, generator: torch.Generator) -> Made:
        crops = 1 if size == "usual" else 2
        side = 2  # image tokens along a crop of 16 pixels
        count = side * (side * crops + 1) + 1 + side * (side + 1)
        return [IMAGE] * count, {
            "image_pixel_values": torch.randn(1, 1 + crops, 3, 16, 16, generator=generator),
            "image_sizes": torch.tensor([[16, 16 * crops]]),
            "image_attention_mask": torch.ones(1, 1 + crops, 4, 4),
        }

    def config():
        audio = dict(num_blocks=1, hidden_size=32, intermediate_size=32, num_attention_heads=2, input_size=8)
        audio |= dict(nemo_conv_channels=8, depthwise_separable_out_channel=32, ext_pw_out_channel=32, audio_token_id=7)
        return auto(
            "phi4_multimodal",
            vision_config=dict(image_size=16, patch_size=4, crop_size=16, image_token_id=IMAGE) | VISION,
            audio_config=audio,
            **TEXT,
        )

    return Family(config, image, join=_padded_crops, notes="listed as a causal language model; crops padded to a count")


def _padded_crops(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Crops up to the most of an image, and masks of ones for them, as the processor adds."""
    most = max(part["image_pixel_values"].shape[1] for part in parts)
    joined = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if values[0].dim() > 2:
            values = [
                torch.cat([value, value.new_ones(1, most - value.shape[1], *value.shape[2:])], dim=1)
                for value in values
            ]
        joined[name] = torch.cat(values)
    return joined


@family("ovis2")
def _ovis2() -> Family:
    def config():
        vision = dict(image_size=24, patch_size=4, hidden_stride=2, vocab_size=40, num_visual_indicator_tokens=5)
        return auto(
            "ovis2",
            vision_config=vision | VISION,
            text_config=dict(model_type="qwen2", **TEXT),
            image_token_id=IMAGE,
            visual_indicator_token_ids=[START, END, 7, 8, 9],
            vocab_size=TEXT["vocab_size"],
            hidden_size=32,
        )

    def image(size: str, generator: torch.Generator) -> Made:
        count = 1 if size == "usual" else 2
        return [START, *[IMAGE] * (9 * count), END], {
            "pixel_values": torch.randn(count, 3, 24, 24, generator=generator)
        }

    return Family(config, image, notes="a table of visual words")


@family("aria")
def _aria() -> Family:
    def image(size: str, generator: torch.Generator) -> Made:
        crops = 1 if size == "usual" else 2
        return [IMAGE] * (4 * crops), {
            "pixel_values": torch.randn(crops, 3, 24, 24, generator=generator),
            "pixel_mask": torch.ones(crops, 24, 24, dtype=torch.bool),
        }

    def config():
        return auto(
            "aria",
            vision_config=dict(model_type="idefics3_vision", image_size=24, patch_size=4) | VISION,
            text_config=TEXT | dict(model_type="aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
            projector_patch_to_query_dict={36: 4},
            image_token_index=IMAGE,
        )

    return Family(config, image, notes="experts; a mask of pixels")


@family("deepseek_vl")
def _deepseek_vl() -> Family:
    def config():
        return auto(
            "deepseek_vl",
            vision_config=siglip(),
            text_config=dict(model_type="llama", **TEXT),
            image_token_id=IMAGE,
        )

    return Family(config, pixels(9, 24))


@family("deepseek_vl_hybrid")
def _deepseek_vl_hybrid() -> Family:
    def config():
        high = dict(model_type="sam_vision_model", image_size=64, patch_size=4, output_channels=32, window_size=4)
        high |= dict(global_attn_indexes=[1], hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_dim=64)
        return auto(
            "deepseek_vl_hybrid",
            vision_config=siglip(),
            high_res_vision_config=high,
            text_config=dict(model_type="llama", **TEXT),
            image_token_id=IMAGE,
        )

    def image(_: str, generator: torch.Generator) -> Made:
        return [IMAGE] * 9, {
            "pixel_values": torch.randn(1, 3, 24, 24, generator=generator),
            "high_res_pixel_values": torch.randn(1, 3, 64, 64, generator=generator),
        }

    return Family(config, image, attention="eager", notes="two towers, two pixel inputs")


@family("janus")
def _janus() -> Family:
    def config():
        return auto(
            "janus",
            vision_config=dict(image_size=24, patch_size=8, projection_dim=32, num_image_tokens=9) | VISION,
            vq_config=dict(
                base_channels=32,
                channel_multiplier=[1, 1],
                latent_channels=8,
                num_embeddings=16,
                num_patches=3,
                projection_dim=32,
                image_token_embed_dim=32,
            ),
            text_config=dict(model_type="llama", **TEXT),
            image_token_id=IMAGE,
        )

    return Family(config, pixels(9, 24))


@family("chameleon")
def _chameleon() -> Family:
    """An image is 9 words of the vocabulary, chosen by a quantizing tower."""
    words = {f"IMGIMG{'ABCD'[i // 4]}{'ABCD'[i % 4]}Z": 100 + i for i in range(16)}

    def config():
        vq = dict(embed_dim=8, num_embeddings=16, latent_channels=8, resolution=24, base_channels=32)
        vq |= dict(channel_multiplier=[1, 1, 1, 1], num_res_blocks=1)
        return auto("chameleon", vq_config=vq, vocabulary_map={"<image>": IMAGE, **words}, swin_norm=False, **TEXT)

    return Family(config, pixels(9, 24), notes="images as words of the vocabulary")
