"""Tiny random-weight models of several families, with prompts made by hand: what the engine must run unknown."""

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from mstar_engine.models.prompts import EncodedPrompt, PromptEncoder
from mstar_engine.types import Problem

IMAGE, VISION_START, VISION_END, EOS, PAD = 1, 2, 3, 4, 0
VOCABULARY = 120
TEXT = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    pad_token_id=PAD,
    bos_token_id=5,
    eos_token_id=EOS,
)


class FixedPrompts(PromptEncoder):
    """Prompts made by hand, for families whose tokenizers cannot be had offline."""

    def __init__(self, prompts: dict[str, EncodedPrompt], processor: object) -> None:
        super().__init__(processor)
        self.prompts = prompts

    def encode(self, problem: Problem) -> EncodedPrompt:
        return self.prompts[problem.id]


def build(family: str, seed: int = 0) -> PreTrainedModel:
    """A model of the family with random weights, large enough in spread that greedy choices are clear."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(CONFIGS[family](), attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    model.generation_config.eos_token_id = None
    return model.eval().float()


def prompt(family: str, length: int, seed: int, image: bool = True) -> EncodedPrompt:
    """A prompt of random text around one image."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(10, VOCABULARY, (length,), generator=generator)
    if not image:
        return EncodedPrompt(text, {}, {})
    tokens, inputs = IMAGES[family](generator)
    ids = torch.cat([text[:3], tokens, text[3:]])
    is_image = (ids == IMAGE).long()
    token_inputs = {
        "qwen2_5_vl": {"mm_token_type_ids": is_image},
        "qwen3_vl": {"mm_token_type_ids": is_image},
        "gemma3": {"token_type_ids": is_image},
    }.get(family, {})
    return EncodedPrompt(ids, inputs, token_inputs)


def _llava() -> AutoConfig:
    vision = dict(model_type="clip_vision_model", hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    vision |= dict(num_attention_heads=2, image_size=24, patch_size=8, projection_dim=32)
    return AutoConfig.for_model(
        "llava",
        vision_config=vision,
        text_config=dict(model_type="llama", **TEXT),
        image_token_id=IMAGE,
        image_seq_length=9,
        vision_feature_layer=-1,
    )


def _qwen2_5_vl() -> AutoConfig:
    vision = dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=32, patch_size=4)
    vision |= dict(window_size=16, fullatt_block_indexes=[1], spatial_merge_size=2, temporal_patch_size=2)
    text = TEXT | dict(rope_parameters=dict(rope_type="default", mrope_section=[1, 1, 2], rope_theta=10000.0))
    return AutoConfig.for_model(
        "qwen2_5_vl",
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        video_token_id=6,
    )


def _qwen3_vl() -> AutoConfig:
    vision = dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=32, patch_size=4)
    vision |= dict(
        spatial_merge_size=2, temporal_patch_size=2, num_position_embeddings=64, deepstack_visual_indexes=[0, 1]
    )
    text = TEXT | dict(
        head_dim=16, rope_parameters=dict(rope_type="default", mrope_section=[4, 2, 2], rope_theta=10000.0)
    )
    return AutoConfig.for_model(
        "qwen3_vl",
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        video_token_id=6,
    )


def _internvl() -> AutoConfig:
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    vision |= dict(image_size=[24, 24], patch_size=[4, 4])
    return AutoConfig.for_model(
        "internvl",
        vision_config=vision,
        text_config=dict(model_type="qwen2", **TEXT),
        image_token_id=IMAGE,
        image_seq_length=9,
        downsample_ratio=0.5,
    )


def _gemma3() -> AutoConfig:
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    vision |= dict(image_size=32, patch_size=8)
    text = TEXT | dict(
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    return AutoConfig.for_model(
        "gemma3",
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        mm_tokens_per_image=4,
        boi_token_id=VISION_START,
        eoi_token_id=VISION_END,
    )


def _square_image(tokens: int, size: int):
    def make(generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return torch.full((tokens,), IMAGE), {"pixel_values": torch.randn(1, 3, size, size, generator=generator)}

    return make


def _qwen_image(generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    height, width = 4, 6
    patches = torch.randn(height * width, 3 * 2 * 4 * 4, generator=generator)
    tokens = [VISION_START, *[IMAGE] * (height * width // 4), VISION_END]
    return torch.tensor(tokens), {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, height, width]])}


CONFIGS = {
    "llava": _llava,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "gemma3": _gemma3,
}
IMAGES = {
    "llava": _square_image(9, 24),
    "qwen2_5_vl": _qwen_image,
    "qwen3_vl": _qwen_image,
    "internvl": _square_image(9, 24),
    "gemma3": _square_image(4, 32),
}
