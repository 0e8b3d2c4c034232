"""How large a model is, read off its modules without weights: what memory is planned by, for any family.

Nothing is known by name: parameters are counted, and widths come from the config's usual keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from mstar_engine.models.compatibility import KVShape
from mstar_engine.models.vision_tower import tower_parameters, vision_tower


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Transformer layers alike: `hidden` width, `inner` width of the MLP (of the experts that a token meets, together),
    `queries` and `keys` the widths of all heads."""

    layers: int
    hidden: int
    inner: int
    queries: int
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """`parameters` of the model and `added` ones of its adapters, of `itemsize` bytes; `trained` of both have a
    gradient. `language` and `tower` are its layers (no tower: the config does not say), `patch` the numbers of one
    patch of an image. `keeps_features`: nothing between an image and its features is trained."""

    parameters: int
    added: int
    trained: int
    itemsize: int
    vocabulary: int
    language: Stack
    tower: Stack | None
    patch: int
    trains_tower: bool
    trains_head: bool
    keeps_features: bool

    @property
    def weights(self) -> int:
        """Bytes of all parameters."""
        return (self.parameters + self.added) * self.itemsize


def model_size(model: PreTrainedModel, shape: KVShape) -> ModelSize:
    """The size of a model that is frozen and adapted as it will be trained. The meta device will do."""
    text = model.config.get_text_config(decoder=True)
    added = sum(parameter.numel() for name, parameter in model.named_parameters() if ".lora_" in name)
    every = sum(parameter.numel() for parameter in model.parameters())
    head = model.get_output_embeddings()
    tower = _tower(model.config)
    return ModelSize(
        parameters=every - added,
        added=added,
        trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        itemsize=shape.dtype.itemsize,
        vocabulary=int(text.vocab_size),
        language=Stack(
            layers=shape.layers,
            hidden=int(text.hidden_size),
            inner=_inner(text),
            queries=int(text.num_attention_heads) * shape.head_dim,
            keys=shape.kv_heads * shape.head_dim,
        ),
        tower=tower,
        patch=_patch(_vision(model.config)),
        trains_tower=_trained(vision_tower(model)),
        trains_head=isinstance(head, nn.Module) and _trained(head.parameters()),
        keeps_features=not _trained(tower_parameters(model)),
    )


def _trained(parameters: Iterable[nn.Parameter]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)


def _inner(config: PretrainedConfig) -> int:
    experts = _first(config, "num_experts_per_tok", "moe_topk")
    each = _first(config, "moe_intermediate_size")
    if isinstance(each, (list, tuple)):  # a width for the experts of each kind of token
        each = max(each)
    if experts and each:
        return int(experts) * int(each)
    return int(_first(config, "intermediate_size") or 4 * config.hidden_size)


def _vision(config: PretrainedConfig) -> Any:
    return getattr(config, "vision_config", None)


def _tower(config: PretrainedConfig) -> Stack | None:
    """The layers that see images. Qwen2-VL's `hidden_size` is that of the language model, its own is `embed_dim`."""
    vision = _vision(config)
    layers, width = _first(vision, "num_hidden_layers", "depth"), _first(vision, "embed_dim", "hidden_size")
    if not isinstance(layers, int) or not isinstance(width, int):
        return None
    inner = _first(vision, "intermediate_size", "mlp_dim") or (_first(vision, "mlp_ratio") or 4) * width
    return Stack(layers=layers, hidden=width, inner=int(inner), queries=width, keys=width)


def _patch(vision: Any) -> int:
    side = _first(vision, "patch_size") or 1
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    frames = _first(vision, "temporal_patch_size") or 1
    return int(height * width * frames * (_first(vision, "num_channels", "in_channels") or 3))


def _first(config: Any, *names: str) -> Any:
    """The first of these values that a config has."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)
