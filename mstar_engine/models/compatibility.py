"""Which models the rollout engine can run: decided from config and one probing forward, never from a list of names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mstar_engine.models.attention import (
    LayerCall,
    UnsupportedAttention,
    attention_step,
    hooked,
    language_configs,
    mask_windows,
)

KEY_VALUE_LAYERS = ("full_attention", "sliding_attention", "attention")


@dataclass(frozen=True, slots=True)
class KVShape:
    """What the language model keeps per token: the same for all layers, as far as the engine supports."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Bytes of K and V over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize


class _Probe:
    """Records the shape of K and V that each layer produces. On the meta device nothing has a value, so that a mask
    could not be looked at, and attention is only its shape."""

    def __init__(self, device: torch.device) -> None:
        self.needs_mask = device.type != "meta"
        self.shapes: dict[int, tuple[int, int, int]] = {}
        self.windows: set[int | None] = set()
        self.key = torch.empty(0)

    def attend(self, call: LayerCall) -> torch.Tensor:
        """Note the shapes and go on as usual."""
        self.key = call.key
        self.windows.add(call.sliding_window)
        self.shapes[call.layer] = (call.key.shape[1], call.key.shape[3], call.value.shape[3])
        if self.needs_mask:
            return call.usual()
        batch, heads, length, _ = call.query.shape
        return call.value.new_empty(batch, length, heads, call.value.shape[3])


def refuse_unsupported(config: PretrainedConfig) -> None:
    """Raise ValueError for a family whose per-token state is not K and V alone, naming what stands in the way."""
    text = config.get_text_config(decoder=True)
    family = config.model_type
    reasons = []
    if getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        reasons.append("it is an encoder-decoder")
    if _declared(text, "cross_attention_layers") or _declared(text, "cross_layer_interval"):
        reasons.append("its images enter by cross-attention layers")
    other = sorted({kind for kind in (getattr(text, "layer_types", None) or ()) if kind not in KEY_VALUE_LAYERS})
    if other:
        reasons.append(f"it has layers of type {', '.join(other)}")
    if _declared(text, "num_kv_shared_layers"):
        reasons.append("its layers share keys and values")
    if _declared(text, "kv_lora_rank"):
        reasons.append("it keeps compressed latents (kv_lora_rank)")
    if reasons:
        raise ValueError(
            f"model family {family!r} cannot be run by the rollout engine: {'; '.join(reasons)}. "
            "Supported: decoder-only image-text-to-text models whose layers keep keys and values "
            "(LLaVA, Qwen-VL, InternVL, Gemma 3, ...); for this one use `model.generate`."
        )


def _declared(config: PretrainedConfig, name: str) -> object:
    """A value of a config; what the config says only by layer counts as declared."""
    try:
        return getattr(config, name, None)
    except Exception as error:  # of transformers' own kind, whose class is not public
        if "layer" not in str(error):
            raise
        return True


def asks_for_values(error: Exception) -> bool:
    """Whether this is what torch says to code that asks the meta device for values."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("meta", "Meta", "item()"))


@torch.no_grad()
def probe(model: PreTrainedModel) -> KVShape:
    """Run two text tokens through the model and read off what each layer keeps. Raises ValueError when unsupported.

    A model on the meta device will do (see `blank_model`) where its code asks for nothing but shapes; torch's own
    error where it asks for values (`asks_for_values`).
    """
    refuse_unsupported(model.config)
    text = model.config.get_text_config(decoder=True)
    recorder = _Probe(model.device)
    tokens = torch.full((1, 2), ordinary_token_id(model.config), dtype=torch.long, device=model.device)
    try:
        with hooked(language_configs(model)), attention_step(recorder), mask_windows() as windows:
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except UnsupportedAttention as error:
        raise _refusal(model, str(error)) from error
    except Exception as error:  # a family's own code: what it wants besides tokens, the engine does not have
        if model.device.type == "meta" and asks_for_values(error):
            raise
        words = str(error).strip().partition("\n")[0] or type(error).__name__
        raise _refusal(model, f"it does not read text tokens alone ({words})") from error
    finally:
        forget_rope_deltas(model)
    layers = int(text.num_hidden_layers)
    missing = sorted(set(range(layers)) - set(recorder.shapes))
    if missing or len(recorder.shapes) > layers:
        which = f"layers {missing}" if missing else "layers that its config does not count"
        raise _refusal(model, f"{which} do not go through transformers' attention interface as its language model's")
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"]
    if "sliding_attention" in kinds and (unnamed := windows - recorder.windows):  # no short prompt would show it
        raise _refusal(model, f"the window of {min(unnamed)} tokens is in its mask alone, its layers do not name it")
    kept = set(recorder.shapes.values())
    if len(kept) > 1 or any(key_dim != value_dim for _, key_dim, value_dim in kept):
        raise _refusal(model, f"its layers keep keys and values of several shapes {sorted(kept)}")
    ((kv_heads, head_dim, _),) = kept
    dtype, device = recorder.key.dtype, recorder.key.device
    return KVShape(layers=layers, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, device=device)


def _refusal(model: PreTrainedModel, reason: str) -> ValueError:
    family = model.config.model_type
    return ValueError(f"model family {family!r} cannot be run by the rollout engine: {reason}; use `model.generate`.")


def special_image_ids(config: PretrainedConfig, processor: object | None = None) -> list[int]:
    """Ids that stand for visual input. The policy must never write one: a later forward would look for its image."""
    named = ("image", "video", "vision", "visual", "audio", "frame", "boi", "eoi", "img", "patch")
    found: set[int] = set()
    holders = [config, *(value for value in vars(config).values() if isinstance(value, PretrainedConfig)), processor]
    for holder in holders:
        for key, value in vars(holder).items() if holder is not None else ():
            if key.endswith(("_id", "_ids", "token_index")) and any(word in key for word in named):
                found.update(one for one in (value if isinstance(value, (list, tuple)) else [value]) if _is_id(one))
    vocabulary = config.get_text_config(decoder=True).vocab_size
    return sorted(token for token in found if 0 <= token < vocabulary)


def vocabulary_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """One past the highest id that a tokenizer has a token for, added ones included."""
    return max(tokenizer.get_vocab().values()) + 1


def unwritten_ids(config: PretrainedConfig, processor: object) -> list[int]:
    """Ids that the policy must never write, ascending: those that stand for visual input, and those behind the
    tokenizer's vocabulary, which are no text. Many checkpoints have such: their embeddings are padded to a round number
    of rows, most of them never trained (Qwen2.5-VL has 152,064 rows for 151,665 tokens)."""
    end = vocabulary_end(getattr(processor, "tokenizer", processor))
    padding = range(end, config.get_text_config(decoder=True).vocab_size)
    return sorted({*special_image_ids(config, processor), *padding})


def image_token_id(config: PretrainedConfig, processor: object | None = None) -> int | None:
    """The id of the token whose places in a prompt image features take; None where neither says."""
    holders = (config, getattr(config, "vision_config", None), processor)
    names = ("image_token_id", "image_token_index")
    found = (getattr(holder, name, None) for holder in holders for name in names)
    return next((value for value in found if isinstance(value, int)), None)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def ordinary_token_id(config: PretrainedConfig) -> int:
    """The lowest id that stands for no image: safe to feed in a probe."""
    banned = set(special_image_ids(config))
    return next(token for token in range(config.get_text_config(decoder=True).vocab_size) if token not in banned)


def forget_rope_deltas(model: PreTrainedModel) -> None:
    """Clear the multi-axis rotary offset that some families cache on a module from one forward to the next."""
    for module in rope_delta_modules(model):
        module.rope_deltas = None


def rope_delta_modules(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The modules that cache `rope_deltas` (Qwen-VL and relatives)."""
    return [module for module in model.modules() if hasattr(module, "rope_deltas")]
