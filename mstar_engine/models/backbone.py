"""A model in two parts: the backbone, up to the final hidden states, and the output head that makes logits of them.

What needs no logits (process rewards) or not all of them at once (a likelihood over a large vocabulary) takes the
hidden states and leaves the head out. That the head is the whole way from hidden states to logits is never assumed of
a family: one probing forward shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from mstar_engine.models.compatibility import special_image_ids


def hidden_states(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """The final hidden states of a forward, [batch, length, D], with a gradient; no logit is computed. ValueError as
    `backbone_of`."""
    return backbone_of(model)(**inputs, use_cache=False).last_hidden_state


def backbone_of(model: PreTrainedModel) -> nn.Module:
    """The part of a model below its output head. ValueError naming the family where transformers has none apart: none
    at all, or a language model with its head, which has seen no image."""
    if not stands_apart(model) and model.get_output_embeddings() is not None:
        family, version = model.config.model_type, transformers.__version__
        raise ValueError(
            f"model family {family!r} has no part below its output head in transformers {version}: it cannot score "
            "steps; use a process reward model of another family"
        )
    return model.base_model


def stands_apart(model: PreTrainedModel) -> bool:
    """Whether what transformers calls the base model is all of the model below its output head."""
    base = model.base_model
    return base is not model and (not isinstance(base, PreTrainedModel) or base.get_output_embeddings() is None)


@dataclass(frozen=True, slots=True, eq=False)
class OutputHead:
    """From hidden states to logits: `linear`, then `softcap * tanh(logits / softcap)` where `softcap` is not None."""

    linear: nn.Linear
    softcap: float | None


def output_head(model: nn.Module) -> OutputHead | None:
    """The output head of a model, if logits are nothing but it applied to `hidden_states`; None otherwise.

    The probe runs two text tokens with made-up logits in place of the head's, and compares what comes out with them:
    a family that scales its logits, or feeds its head something else than the last hidden state, shows.
    """
    linear = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if type(linear) is not nn.Linear or not stands_apart(model):
        return None
    softcap = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
    images = set(special_image_ids(model.config))
    ordinary = [token for token in range(linear.out_features) if token not in images]
    # From the middle of the vocabulary: the embedding of a padding token may be zero.
    tokens = torch.tensor([[ordinary[len(ordinary) // 3], ordinary[len(ordinary) // 2]]], device=model.device)
    made_up = torch.linspace(-60.0, 60.0, 2 * linear.out_features, device=model.device).to(linear.weight.dtype)
    made_up = made_up.view(1, 2, -1)
    fed: list[Tensor] = []

    def replace(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        fed.append(arguments[0].detach())
        return made_up

    training = model.training
    model.eval()
    handle = linear.register_forward_hook(replace)
    try:
        # With a gradient: what is learned behind the head would be lost.
        logits = model(input_ids=tokens, use_cache=False).logits
        with torch.no_grad():
            hidden = hidden_states(model, input_ids=tokens)
    finally:
        handle.remove()
        model.train(training)
    if len(fed) != 1 or not torch.equal(fed[0], hidden) or logits.requires_grad or logits.shape != made_up.shape:
        return None
    rounding = 1e-5 if made_up.dtype == torch.float32 else 2e-2
    for cap in {None, softcap}:  # some families declare a cap and do not apply it
        expected = made_up.float() if cap is None else cap * torch.tanh(made_up.float() / cap)
        if torch.allclose(logits.float(), expected, rtol=rounding, atol=rounding):
            return OutputHead(linear, cap)
    return None
