"""Device memory, handed between the phases that share a device: what one phase holds, the next cannot have."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel


def give_back(device: torch.device) -> None:
    """Return freed memory to the device, where an allocator keeps it: the next phase asks how much is free."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def checkpoint_activations(model: nn.Module) -> None:
    """Compute the activations of each layer again in the backward pass instead of keeping them, from now on.

    ValueError for a family that does not offer it.
    """
    whole = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    if not whole.supports_gradient_checkpointing:
        family = whole.config.model_type
        raise ValueError(f"train.gradient_checkpointing=true: model family {family!r} has none; allowed: false")
    kwargs = {"use_reentrant": False}
    if hasattr(whole, "activation_checkpointing_enable"):  # transformers' newer name for it
        whole.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    else:
        whole.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
