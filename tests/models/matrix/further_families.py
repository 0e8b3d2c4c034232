"""Further families with towers or inputs of their own kind, tried when nothing in the engine was made for them."""

from __future__ import annotations

import torch
from family import END, IMAGE, START, TEXT, VIDEO, VISION, Family, Made, auto, family
from llava_families import clip, pixels, siglip
from tile_families import padded, tiles

SAM = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=4, window_size=4)
SAM |= dict(global_attn_indexes=[1], mlp_dim=64)


@family("video_llava")
def _video_llava() -> Family:
    def image(_: str, generator: torch.Generator) -> Made:
        return [IMAGE] * 9, {"pixel_values_images": torch.randn(1, 3, 24, 24, generator=generator)}

    def config():
        ids = dict(image_token_index=IMAGE, video_token_index=VIDEO)
        text = dict(model_type="llama", **TEXT)
        return auto("video_llava", vision_config=clip(), text_config=text, vision_feature_layer=-1, **ids)

    return Family(config, image, notes="pictures enter by an argument of their own")


def _two_tiles(count: int, side: int = 24):
    """Images of one size: two tiles and the whole, `count` tokens."""

    def image(_: str, generator: torch.Generator) -> Made:
        pictures = torch.randn(1, 3, 3, side, side, generator=generator)
        return [IMAGE] * count, {"pixel_values": pictures, "image_sizes": torch.tensor([[side, 2 * side]])}

    return image


@family("llava_next_video")
def _llava_next_video() -> Family:
    def config():
        ids = dict(image_token_index=IMAGE, video_token_index=VIDEO, image_grid_pinpoints=[[24, 48], [48, 24]])
        text = dict(model_type="llama", **TEXT)
        return auto("llava_next_video", vision_config=clip(), text_config=text, vision_feature_layer=-1, **ids)

    return Family(config, _two_tiles(9 + 3 * 7), notes="tiles of any resolution")


@family("granite4_vision")
def _granite4_vision() -> Family:
    def config():
        former = dict(num_hidden_layers=1, intermediate_size=64, hidden_size=64, encoder_hidden_size=64)
        former |= dict(num_attention_heads=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        return auto(
            "granite4_vision",
            vision_config=siglip(hidden_size=64, image_size=32),
            text_config=TEXT | dict(attention_multiplier=0.3),
            qformer_config=former,
            image_token_index=IMAGE,
            image_grid_pinpoints=[[32, 64], [64, 32]],
            downsample_rate="1/2",
            deepstack_layer_map=[[-1, 0]],
            spatial_target_layers=[1],
            projector_dropout=0.0,
            vision_feature_select_strategy="full",
        )

    return Family(
        config, _two_tiles(4 + 2 * (4 + 1), 32), notes="tiles of any resolution; image features in several layers"
    )


@family("granite_docling")
def _granite_docling() -> Family:
    def image(size: str, generator: torch.Generator) -> Made:
        count = 1 if size == "usual" else 3
        pictures = torch.randn(1, count, 3, 16, 16, generator=generator)
        mask = torch.ones(1, count, dtype=torch.bool)
        return [IMAGE] * (4 * count), {"pixel_values": pictures, "pixel_attention_mask": mask}

    def config():
        vision = dict(image_size=16, patch_size=2, out_hidden_size=32, scale_factor=4, use_fine_route=False)
        vision |= VISION | dict(deepstack_visual_indexes=[0, 1])
        scales = dict(embedding_multiplier=1.0, logits_scaling=1.0, residual_multiplier=1.0, attention_multiplier=0.3)
        return auto("granite_docling", vision_config=vision, text_config=TEXT | scales, image_token_id=IMAGE)

    return Family(config, image, join=padded, notes="image features in several layers")


@family("fuyu")
def _fuyu() -> Family:
    def image(size: str, generator: torch.Generator) -> Made:
        count = 4 if size == "usual" else 6
        return [IMAGE] * count, {"image_patches": torch.randn(count, 3 * 4 * 4, generator=generator)}

    def config():
        text = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
        return auto("fuyu", image_size=24, patch_size=4, image_token_id=IMAGE, **text)

    return Family(config, image, notes="patches without a tower")


@family("emu3")
def _emu3() -> Family:
    words = {f"<|visual token {i:06d}|>": 100 + i for i in range(16)}

    def image(_: str, generator: torch.Generator) -> Made:
        pictures = torch.randn(1, 3, 24, 24, generator=generator)
        return [START, *[IMAGE] * 12, END], {"pixel_values": pictures, "image_sizes": torch.tensor([[24, 24]])}

    def config():
        vq = dict(codebook_size=16, embed_dim=4, latent_channels=4, base_channels=32, channel_multiplier=[1, 1, 1, 1])
        vq |= dict(num_res_blocks=1, attn_resolutions=[], hidden_size=32, num_attention_heads=1)
        text = TEXT | dict(attention_dropout=0.0)
        vocabulary = {"<image>": IMAGE, "<|extra_200|>": 9, **words}
        return auto("emu3", vq_config=vq, text_config=text, vocabulary_map=vocabulary)

    return Family(config, image, notes="images as words of the vocabulary; batch normalization in the tower")


@family("apertus1p5")
def _apertus() -> Family:
    def image(_: str, generator: torch.Generator) -> Made:
        pictures = torch.randn(1, 3, 8, 8, generator=generator)
        return [START, *[IMAGE] * 16, END], {"pixel_values": pictures, "image_sizes": torch.tensor([[8, 8]])}

    def config():
        vision = dict(codebook_size=16, embed_dim=8, latent_channels=8, base_channels=32, channel_multiplier=(1, 1))
        vision |= dict(num_res_blocks=1, attn_resolutions=(), resolution=24, spatial_scale_factor=2)
        audio = dict(num_filters=4, upsampling_ratios=(2,), hidden_size=16, codebook_size=16, codebook_dim=16)
        audio |= dict(decoder_hidden_size=16, decoder_intermediate_size=16, decoder_num_layers=1)
        audio |= dict(decoder_attention_num_groups=1)
        ids = dict(image_token_id=IMAGE, audio_token_id=9, image_token_offset=100, audio_token_offset=116)
        return auto("apertus1p5", vision_config=vision, audio_config=audio, text_config=TEXT, **ids)

    return Family(config, image, attention="eager", notes="images as words of the vocabulary")


@family("qianfan_ocr")
def _qianfan() -> Family:
    def config():
        vision = dict(image_size=[24, 24], patch_size=[4, 4], drop_path_rate=0.0) | VISION
        text = dict(model_type="qwen3", head_dim=8, **TEXT)
        ids = dict(image_token_id=IMAGE, downsample_ratio=0.5)
        return auto("qianfan_ocr", vision_config=vision, text_config=text, **ids)

    return Family(config, tiles(9), notes="one tile or several an image")


@family("pp_chart2table")
def _pp_chart2table() -> Family:
    def config():
        vision = SAM | dict(image_size=32, output_channels=8)
        text = dict(model_type="qwen2", **TEXT)
        ids = dict(image_token_index=IMAGE, image_seq_length=4)
        return auto("pp_chart2table", vision_config=vision, text_config=text, **ids)

    return Family(config, pixels(4, 32), attention="eager", notes="a SAM tower")


@family("deepseek_ocr2")
def _deepseek_ocr2() -> Family:
    def image(_: str, generator: torch.Generator) -> Made:
        pictures = torch.randn(1, 3, 64, 64, generator=generator)
        return [IMAGE] * (144 + 1), {"pixel_values": pictures, "num_local_patches": torch.tensor([0])}

    def config():
        sam = SAM | dict(output_channels=16, image_size=64, downsample_channels=[24, 32])
        experts = dict(n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=32)
        text = TEXT | experts | dict(head_dim=8, mlp_layer_types=["dense", "sparse"])
        vision = dict(sam_config=sam, encoder_config=dict(TEXT))
        return auto("deepseek_ocr2", vision_config=vision, text_config=text, image_token_id=IMAGE)

    return Family(config, image, tokens=8, notes="a SAM tower below a language model; experts")


@family("step3p7")
def _step3p7() -> Family:
    def image(_: str, generator: torch.Generator) -> Made:
        pictures = torch.randn(1, 3, 32, 32, generator=generator)
        return [IMAGE] * 4, {"pixel_values": pictures, "num_local_patches": torch.tensor([0])}

    def config():
        kinds = ["sliding_attention", "full_attention"]
        experts = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, share_expert_dim=32)
        text = TEXT | experts | dict(head_dim=16, query_pre_attn_scalar=16, mlp_layer_types=["dense", "sparse"])
        text |= dict(layer_types=kinds, sliding_window=8, num_sliding_attention_heads=4)
        text |= dict(rope_parameters={kind: dict(rope_type="default", rope_theta=10000.0) for kind in kinds})
        vision = dict(image_size=32, patch_size=4, max_position_embeddings=64, mlp_ratio=2.0) | VISION
        return auto("step3p7", vision_config=vision, text_config=text, image_token_id=IMAGE)

    return Family(config, image, notes="sliding windows in some layers; experts")
