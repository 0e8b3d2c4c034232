"""Further families with images as rows of patches and their grids, tried when nothing was made for them."""

from __future__ import annotations

import torch
from family import END, IMAGE, START, TEXT, VIDEO, VISION, Family, Made, auto, family
from qwen_families import TOWER, patches, rope

IDS = dict(image_token_id=IMAGE, video_token_id=VIDEO)
ENDS = dict(vision_start_token_id=START, vision_end_token_id=END)
GRIDS = patches(("pixel_values", "image_grid_thw"), 3 * 2 * 4 * 4)
FLAT_GRIDS = patches(("pixel_values", "image_grid_thw"), 3 * 4 * 4)
"""Without a second frame."""
QWEN2_5 = TOWER | dict(intermediate_size=64, out_hidden_size=32, window_size=16, fullatt_block_indexes=[1])
QWEN3 = TOWER | dict(
    intermediate_size=64, out_hidden_size=32, num_position_embeddings=64, deepstack_visual_indexes=[0, 1]
)
GLM = IDS | dict(image_start_token_id=START, image_end_token_id=END, video_start_token_id=7, video_end_token_id=8)
AUDIO = dict(num_mel_bins=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, d_model=32)
AUDIO |= dict(max_source_positions=16, n_window=4, output_dim=32)
MARKS = ("mm_token_type_ids",)
AXES = "multi-axis rotary positions"
WINDOWS = dict(sliding_window=8, layer_types=["sliding_attention", "full_attention"])


def _glm(name: str) -> Family:
    def config():
        vision = TOWER | dict(model_type="glm4v_vision", out_hidden_size=32, intermediate_size=64, image_size=24)
        return auto(name, vision_config=vision, text_config=TEXT | dict(model_type="glm4v_text") | rope(1, 1, 2), **GLM)

    return Family(config, GRIDS, marks=MARKS, notes=AXES)


@family("glm46v")
def _glm46v() -> Family:
    return _glm("glm46v")


@family("glmga")
def _glmga() -> Family:
    return _glm("glmga")


@family("glm_ocr")
def _glm_ocr() -> Family:
    def config():
        vision = TOWER | dict(out_hidden_size=32, intermediate_size=64, image_size=24)
        return auto("glm_ocr", vision_config=vision, text_config=TEXT | dict(head_dim=8) | rope(1, 1, 2), **GLM)

    return Family(config, GRIDS, marks=MARKS, notes=AXES)


@family("exaone4_5")
def _exaone4_5() -> Family:
    def config():
        vision = QWEN2_5 | dict(num_key_value_heads=1)
        return auto("exaone4_5", vision_config=vision, text_config=TEXT | dict(model_type="exaone4") | WINDOWS, **IDS)

    return Family(config, GRIDS, notes="sliding windows in some layers")


@family("ernie4_5_vl_moe")
def _ernie() -> Family:
    def config():
        vision = dict(depth=2, hidden_size=32, num_heads=2, patch_size=4, spatial_merge_size=2, intermediate_size=64)
        text = TEXT | dict(moe_num_experts=4, moe_k=2, moe_num_shared_experts=1, moe_intermediate_size=[32, 16])
        return auto("ernie4_5_vl_moe", vision_config=vision, text_config=text | rope(1, 1, 2), **GLM)

    marks = (*MARKS, "moe_mm_token_type_ids")
    return Family(config, FLAT_GRIDS, marks=marks, notes=f"{AXES}; experts by modality")


@family("hyperclovax_vision_v2")
def _hyperclovax() -> Family:
    def config():
        return auto("hyperclovax_vision_v2", vision_config=QWEN2_5, text_config=TEXT | dict(head_dim=8), **IDS)

    return Family(config, GRIDS)


@family("cosmos3_edge")
def _cosmos3_edge() -> Family:
    def config():
        vision = dict(patch_size=4, num_patches=64, spatial_merge_size=2) | VISION
        text = TEXT | dict(head_dim=16) | rope(4, 2, 2)
        return auto("cosmos3_edge", projector_hidden_size=64, vision_config=vision, text_config=text, **IDS, **ENDS)

    return Family(config, FLAT_GRIDS, marks=MARKS, notes=AXES)


@family("cosmos3_omni")
def _cosmos3_omni() -> Family:
    def config():
        text = TEXT | dict(head_dim=16) | rope(4, 2, 2)
        return auto("cosmos3_omni", vision_config=QWEN3, text_config=text, **IDS, **ENDS)

    return Family(config, GRIDS, marks=MARKS, notes=f"{AXES}; image features in several layers")


@family("cohere_compass")
def _cohere_compass() -> Family:
    def config():
        by_kind = {kind: rope(4, 2, 2)["rope_parameters"] for kind in WINDOWS["layer_types"]}
        text = TEXT | WINDOWS | dict(head_dim=16, rope_parameters=by_kind)
        return auto("cohere_compass", vision_config=QWEN3, text_config=text, **IDS, **ENDS)

    return Family(config, GRIDS, marks=MARKS, notes=f"{AXES}; sliding windows in some layers")


@family("qwen2_5_omni_thinker")
def _qwen2_5_omni() -> Family:
    def config():
        ids = dict(image_token_index=IMAGE, video_token_index=VIDEO, audio_token_index=9, user_token_id=12)
        ids |= ENDS | dict(audio_start_token_id=10, audio_end_token_id=11)
        text = TEXT | rope(1, 1, 2)
        return auto("qwen2_5_omni_thinker", vision_config=QWEN2_5, audio_config=AUDIO, text_config=text, **ids)

    return Family(config, GRIDS, notes=f"{AXES}, counted only under an attention mask")


@family("qwen3_omni_moe_thinker")
def _qwen3_omni() -> Family:
    def config():
        audio = AUDIO | dict(downsample_hidden_size=8)
        text = TEXT | dict(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32) | rope(4, 2, 2)
        ids = IDS | ENDS | dict(audio_token_id=9, audio_start_token_id=10, user_token_id=12)
        return auto("qwen3_omni_moe_thinker", vision_config=QWEN3, audio_config=audio, text_config=text, **ids)

    return Family(config, GRIDS, notes=f"{AXES}, counted only under an attention mask; experts")


@family("minimax_m3_vl")
def _minimax() -> Family:
    def config():
        vision = dict(image_size=64, patch_size=4, temporal_patch_size=2, spatial_merge_size=2) | VISION
        experts = dict(num_local_experts=4, num_experts_per_tok=2, dense_intermediate_size=64)
        experts |= dict(shared_intermediate_size=32, mlp_layer_types=["dense", "sparse"])
        text = TEXT | experts | dict(head_dim=16, rotary_dim=8, layer_types=["full_attention"] * 2)
        ids = dict(image_token_index=IMAGE, video_token_index=VIDEO)
        widths = dict(projector_hidden_size=32, merged_hidden_size=128)
        return auto("minimax_m3_vl", vision_config=vision, text_config=text, **ids, **widths)

    return Family(config, GRIDS, notes="experts; refused where its layers are sparse by an index")


def _muse(name: str, text: dict[str, object], **other: object) -> Family:
    def config():
        vision = dict(patch_size=4, pos_emb_height=8, pos_emb_width=8, patch_temporal=2, merge_size=2)
        vision |= VISION | dict(layer_types=["window_attention", "full_attention"], max_position_embeddings=64)
        own = TEXT | WINDOWS | dict(head_dim=16, layer_rope_theta=[10000.0, 0]) | text
        widths = dict(out_hidden_size=128, projector_hidden_size=64)
        return auto(name, vision_config=vision, text_config=own, **widths, **IDS, **other)

    notes = "sliding windows in some layers, no positions in others"
    return Family(config, GRIDS, notes=notes + ("; experts" if text else ""))


@family("muse_glimmer")
def _muse_glimmer() -> Family:
    return _muse("muse_glimmer", {})


@family("muse_spark")
def _muse_spark() -> Family:
    experts = dict(moe_intermediate_size=32, num_local_experts=4, num_experts_per_tok=2, moe_hidden_size=32)
    audio = dict(hidden_sizes=(8, 8, 8, 32), depths=(1, 1, 1, 1), out_hidden_size=32)
    text = experts | dict(mlp_layer_types=["dense", "sparse"])
    return _muse("muse_spark", text, audio_config=audio, audio_token_id=9)


@family("hunyuan_vl")
def _hunyuan() -> Family:
    def image(size: str, generator: torch.Generator) -> Made:
        height, width = (4, 6) if size == "usual" else (6, 8)
        tokens = [START, *[IMAGE] * ((height // 2) * (width // 2 + 1) + 2), END]  # a break behind each row, and ends
        pixels = torch.randn(height * width, 3 * 4 * 4, generator=generator)
        return tokens, {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, height, width]])}

    def config():
        vision = dict(
            num_key_value_heads=2, out_hidden_size=32, patch_size=4, spatial_merge_size=2, text_hidden_size=32
        )
        vision |= VISION | dict(img_max_token_num=64, max_image_size=64, min_image_size=16, max_vit_seq_len=256)
        axes = dict(rope_type="xdrope", rope_theta=10000.0, xdrope_section=[2, 2, 2, 2], alpha=1000.0, factor=1.0)
        ids = dict(image_token_id=IMAGE, im_start_id=START, im_end_id=END, im_newline_id=7)
        text = TEXT | dict(head_dim=16, rope_parameters=axes)
        return auto("hunyuan_vl", vision_config=vision, text_config=text, **ids)

    return Family(config, image, marks=MARKS, notes="rotary positions of four axes")


@family("lfm2_vl")
def _lfm2_vl() -> Family:
    def image(size: str, generator: torch.Generator) -> Made:
        height, width = (4, 6) if size == "usual" else (6, 8)
        mask = (torch.arange(48) < height * width).long()[None]
        pixels = torch.randn(1, 48, 3 * 4 * 4, generator=generator)
        shape = torch.tensor([[height, width]])
        inputs = {"pixel_values": pixels, "spatial_shapes": shape, "pixel_attention_mask": mask}
        return [START, *[IMAGE] * (height * width // 4), END], inputs

    def config():
        vision = dict(patch_size=4, num_patches=16, vision_use_head=False) | VISION
        text = TEXT | dict(layer_types=["full_attention"] * 2, block_multiple_of=8)
        ids = dict(image_token_id=IMAGE, projector_hidden_size=32)
        return auto("lfm2_vl", vision_config=vision, text_config=text, **ids)

    return Family(config, image, notes="with attention in all layers; with convolutions, as LFM2 comes, it is refused")
