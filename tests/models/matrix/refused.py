"""Families that the engine refuses by their config, as transformers makes it by default."""

from __future__ import annotations

from family import auto

from mstar_engine.models.compatibility import refuse_unsupported

REFUSED = {
    "mllama": "cross-attention",
    "idefics": "cross-attention",
    "kimi_k25": "kv_lora_rank",
    "mistral4": "kv_lora_rank",
    "dots3_note": "kv_lora_rank",
    "qwen3_5": "linear_attention",
    "qwen3_5_moe": "linear_attention",
    "glm5_next": "linear_attention",
    "nemotron_h_omni": "linear_attention",
    "lfm3_vl": "conv",
    "llama4": "chunked_attention",
    "gemma3n": "share keys and values",
    "inkling_mm_model": "hybrid",
    "inkling2": "hybrid",
    "inkling2_loop": "hybrid",
    "hy_v4_vl": "indexed_attention",
    "mistral_large4": "indexed_attention",
    "qwen4_exp": "linear_attention",
    "minicpm_ocr": "linear_attention",
    "minicpmv4_7": "linear_attention",
    "unlimited_ocr": "reference_sliding_attention",
    "florence2": "encoder-decoder",
    "pix2struct": "encoder-decoder",
    "pp_formulanet": "encoder-decoder",
    "t5gemma2": "encoder-decoder",
    "udop": "encoder-decoder",
}
"""By model type, a word of the reason."""


def reason(name: str) -> str:
    """Why the family is refused. AbsentError where transformers does not have it; an assertion if it is not."""
    try:
        refuse_unsupported(auto(name))
    except ValueError as error:
        assert "use `model.generate`" in str(error)
        return str(error).partition("rollout engine: ")[2].partition(". Supported")[0]
    raise AssertionError(f"{name} is not refused")
