"""Low-rank adapters (LoRA, by peft) on the linear layers of a model, which stays the same object and class.

Adapters are injected in place, so rollout, training and every hook find the model that they know. `LoraMerge` makes of
it, for a while, the plain model with the adapters added to its weights; afterwards its weights are the same bits.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"
ADAPTER = "default"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts before the names of a model in an adapter's file."""
KEY = "model.lora_target_modules"


def refuse_without_peft(rank: int) -> None:
    """ValueError where adapters are asked for and peft is not installed."""
    if rank and importlib.util.find_spec("peft") is None:
        raise ValueError(f"model.lora_r={rank}: peft is not installed (pip install 'mstar_engine[peft]'); allowed: 0")


def target_layers(model: PreTrainedModel, targets: str | Sequence[str]) -> list[str]:
    """The dotted names of the linear layers that `targets` names: parts of a dotted name ("q_proj", "language_model",
    "layers.0.mlp"), or "all-linear".

    Frozen layers (a vision tower) and the output head take no adapter. ValueError names the nearest modules.
    """
    head = model.get_output_embeddings()
    layers = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not head and module.weight.requires_grad
    ]
    if not layers:
        family = type(model).__name__
        raise ValueError(f"{KEY}: {family} has no linear layer that is not frozen; allowed: model.lora_r=0")
    if targets == ALL_LINEAR:
        return layers
    chosen = []
    for target in [targets] if isinstance(targets, str) else targets:
        found = [name for name in layers if f".{target}." in f".{name}."]
        if not found:
            raise ValueError(_unknown(target, layers))
        chosen += found
    return [name for name in layers if name in set(chosen)]


def _unknown(target: str, layers: Sequence[str]) -> str:
    """The refusal of a target that names no layer, with the nearest part of a name."""
    parts = dict.fromkeys(part for name in layers for part in name.split(".") if not part.isdigit())
    nearest = difflib.get_close_matches(target, parts, n=1, cutoff=0.0)[0]
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    shown = ", ".join(ends[:12]) + (", ..." if len(ends) > 12 else "")
    return (
        f"{KEY}: {target!r} names no linear layer that can be adapted (frozen ones and the output head cannot); did "
        f"you mean {nearest}? allowed: {ALL_LINEAR}, or parts of the layers' names: {shown}"
    )


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: float = 32.0,
    dropout: float = 0.0,
    targets: str | Sequence[str] = ALL_LINEAR,
    seed: int = 0,
) -> None:
    """Put adapters of `rank` on the layers that `targets` names and freeze everything else. What they add is zero at
    first; `seed` draws their inner halves. Their type is that of the weights beside them."""
    import peft

    layers = target_layers(model, targets)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=layers)
    _inject(model, config, seed)
    assert list(lora_layers(model)) == layers, "peft took other layers than it was given"


def _inject(model: PreTrainedModel, config: Any, seed: int = 0) -> None:
    import peft

    training = model.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model)
        # On every device and in every type the same draws, and peft's own distribution.
        for layer in lora_layers(model).values():
            inner = layer.lora_A[ADAPTER].weight
            drawn = torch.empty(inner.shape)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
            inner.data.copy_(drawn)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    model.train(training)


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with adapters by name; none while they are merged."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "base_layer") and ADAPTER in getattr(module, "lora_A", {})
    }


def has_lora(model: nn.Module) -> bool:
    """Whether a model has adapters."""
    return bool(lora_layers(model))


class LoraMerge:
    """Merging of a model's adapters into its weights and back.

    The frozen weights are copied once, to host memory, and put back from there: what is subtracted would not come back
    to the same bits. Weights stay where they lie, so graphs captured over them stay valid.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._kept: dict[str, tuple[Tensor, int]] = {}  # by layer: the frozen weight, and its version when it was read

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within, `model` is the plain model with merged weights: no adapter is among its modules."""
        layers = lora_layers(self.model)
        done: list[str] = []
        try:
            for name, layer in layers.items():
                self._keep(name, layer.base_layer.weight)
                done.append(name)
                merge_layer(layer)
                _put(self.model, name, layer.base_layer)
            yield
        finally:
            with torch.no_grad():
                for name in done:
                    weight = layers[name].base_layer.weight
                    weight.copy_(self._kept[name][0])
                    self._kept[name] = (self._kept[name][0], weight._version)
                    _put(self.model, name, layers[name])

    def _keep(self, name: str, weight: Tensor) -> None:
        """Have a copy of a frozen weight; a new one if it was written to since the last."""
        if name not in self._kept or self._kept[name][1] != weight._version:
            copy = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=weight.is_cuda)
            self._kept[name] = (copy.copy_(weight.detach()), weight._version)


@torch.no_grad()
def merge_layer(layer: Any) -> None:
    """Add what the adapters of a layer do to its weight, in float32 and rounded once."""
    weight = layer.base_layer.weight
    inner, outer = (getattr(layer, half)[ADAPTER].weight.float() for half in ("lora_A", "lora_B"))
    weight.copy_(weight.float() + layer.scaling[ADAPTER] * (outer @ inner))


def merge_for_good(model: PreTrainedModel) -> None:
    """Merge the adapters and take them off: what is left is an ordinary model, trainable whole."""
    for name, layer in lora_layers(model).items():
        merge_layer(layer)
        _put(model, name, layer.base_layer)
    if hasattr(model, "peft_config"):
        del model.peft_config
    model.requires_grad_(True)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent)._modules[last] = module


# ---- on disk, as peft writes it


def save_lora(model: PreTrainedModel, path: Path, base: str | Path) -> None:
    """Write the adapters to `path` as peft does; `base` is the checkpoint that they belong to, relative to `path` or
    a name."""
    config = model.peft_config[ADAPTER]
    config.base_model_name_or_path = os.fspath(base)
    config.save_pretrained(path)
    tensors = {key: value.detach().cpu().contiguous() for key, value in _tensors(model).items()}
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})


def load_lora(model: PreTrainedModel, path: Path) -> None:
    """Copy saved adapters into those of `model`. ValueError when they are others, or damaged."""
    try:
        saved = load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint {path} is damaged ({error}); remove it to go on from the one before") from error
    own = _tensors(model)
    shapes = {key: tuple(value.shape) for key, value in own.items()}
    differing = {key: tuple(value.shape) for key, value in saved.items()}.items() ^ shapes.items()
    if differing:
        raise ValueError(f"checkpoint {path}: its adapters are others than the model's, at {sorted(differing)[0][0]}")
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(saved[key])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' parameters by the names that peft gives them in a file."""
    parameters = ((name, value) for name, value in model.named_parameters() if ".lora_" in name)
    return {PREFIX + name.replace(f".{ADAPTER}.", "."): value for name, value in parameters}


def is_lora(path: str | Path) -> bool:
    """Whether a directory holds adapters."""
    return (Path(path) / CONFIG).is_file()


def base_of(path: str | Path) -> str | Path:
    """The checkpoint that saved adapters belong to. ValueError where they do not say."""
    try:
        named = json.loads((Path(path) / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: {CONFIG} is damaged or names no base_model_name_or_path") from error
    if not isinstance(named, str):
        raise ValueError(f"{path}: {CONFIG}: base_model_name_or_path={named!r}; allowed: a directory or name")
    beside = Path(path) / named
    return beside if beside.is_dir() else named


def inject_saved(model: PreTrainedModel, path: str | Path) -> None:
    """Put saved adapters on a model of their base."""
    import peft

    config = peft.LoraConfig.from_pretrained(os.fspath(path))
    if not isinstance(config, peft.LoraConfig) or config.use_dora or config.modules_to_save or config.bias != "none":
        raise ValueError(f"{path}: {CONFIG}: allowed: plain LoRA, without use_dora, modules_to_save and bias")
    config.inference_mode = False
    _inject(model, config)
    load_lora(model, Path(path))
