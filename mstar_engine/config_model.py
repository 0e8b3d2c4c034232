"""What the policy can be told: the model, and how it samples.

One part of the configuration; `config.py` puts the whole together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from mstar_engine.config_section import (
    Count,
    CountOrOff,
    Momentum,
    NonNegative,
    PositiveShare,
    Rate,
    Share,
    Text,
    section,
)


@section
class ModelConfig:
    """The policy: a Hugging Face name or folder, or "tiny" for the small model that a run pretrains itself.

    `dtype` is that of its parameters; "auto" is bfloat16 with train.bf16, else float32. `device` "auto" is the GPU
    where there is one. `attn_implementation`, for prompts and in training: "auto" takes flash_attention_2 where that
    runs (on CUDA from compute capability 8.0 on, in half precision, with flash-attn installed), else sdpa.
    `trust_remote_code` runs code that the checkpoint brings; a warning names its files.

    `lora_r` above 0 trains low-rank adapters of that rank (by peft) instead of the weights, at `lora_alpha / lora_r`
    times what they compute, on the linear layers that `lora_target_modules` names: parts of dotted names (q_proj,
    language_model, layers.0.mlp), or all-linear, every one but the output head. `freeze_vision_tower`: what sees images
    stays as it is and takes no adapters.
    """

    model_name_or_path: Text = "tiny"
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "auto"] = "sdpa"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trust_remote_code: bool = False
    lora_r: CountOrOff = 0
    lora_alpha: Rate = 32.0
    lora_dropout: Momentum = 0.0
    lora_target_modules: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1)] = "all-linear"
    freeze_vision_tower: bool = False

    @field_validator("lora_alpha", "lora_dropout", "lora_target_modules")
    @classmethod
    def _of_adapters(cls, value: object, info: ValidationInfo) -> object:
        """What says how adapters are would do nothing without any."""
        default = cls.__dataclass_fields__[info.field_name].default
        default = getattr(default, "default", default)
        if info.data.get("lora_r") == 0 and value != default:
            raise ValueError(f"{default}, or model.lora_r of 1 or more")
        return value


@section
class RolloutConfig:
    """How the policy samples, and the room it has for keys and values (`kv_cache_memory` in bytes, at least a MiB).

    `decode`: "fixed" pads decode steps to a few shapes, captured in CUDA graphs and run ahead of the host; "eager"
    takes them as they come; "auto" is "fixed" on CUDA. `torch_compile` compiles the model for steps of fixed shape.
    `image_cache_memory`: bytes of image features kept while the weights that made them stay; "auto" is 1 GiB on CUDA
    and 0, none, on the CPU. `merge_lora`: sample from the weights with the adapters merged into them, at the plain
    model's speed, instead of through both; the weights are put back, bit for bit, after each phase that samples.
    """

    n: Count = 16
    temperature: NonNegative = 1.0
    top_k: CountOrOff = 0
    top_p: PositiveShare = 1.0
    min_p: Share = 0.0
    max_completion_length: Count = 40
    max_rows: Count = 512
    block_size: Count = 16
    kv_cache_memory: Literal["auto"] | Annotated[int, Field(ge=2**20)] = "auto"
    decode: Literal["auto", "eager", "fixed"] = "auto"
    torch_compile: bool = False
    image_cache_memory: Literal["auto"] | CountOrOff = "auto"
    merge_lora: bool = False

    @field_validator("max_rows")
    @classmethod
    def _room_for_a_group(cls, value: int, info: ValidationInfo) -> int:
        """The responses of a problem run together."""
        if value < info.data.get("n", value):
            raise ValueError(f"at least rollout.n={info.data['n']}")
        return value

    @field_validator("torch_compile")
    @classmethod
    def _steps_to_compile(cls, value: bool, info: ValidationInfo) -> bool:
        """What is compiled is a step of fixed shape."""
        if value and info.data.get("decode") == "eager":
            raise ValueError("false with rollout.decode=eager")
        return value
