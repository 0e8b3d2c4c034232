"""What processors do that the engine cannot put to a model: said in one line, before anything is sampled.

A checkpoint's processor and its chat template are code of others. Most of what is foreign in them raises errors of some
kind; two things do not: a template for text alone quotes the parts of a message as Python writes them, and images that
come in lists would be left out, and the model would answer without having seen them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from mstar_engine.types import Problem

QUOTED = "'type':'text'"


def refused(processor: Any, error: Exception, system: str | None) -> str:
    """Words for an error that a processor raised on a conversation, and what to change."""
    said = str(error).strip().partition("\n")[0]
    words = f"{type(processor).__name__} cannot make its prompt ({type(error).__name__}: {said})"
    if system is not None and "system" in said.lower():
        return f"{words}; its chat template takes no system message: leave prompts.system empty"
    return f"{words}; {_wanted()}"


def refuse_quoted(processor: Any, tokenizer: Any, input_ids: Tensor, problem: Problem) -> None:
    """ValueError where the chat template has written a message's parts as Python does."""
    read, asked = ("".join(text.split()) for text in (tokenizer.decode(input_ids.tolist()), problem.question))
    if QUOTED in read and QUOTED not in asked:
        raise ValueError(f"the chat template of {type(processor).__name__} reads content as plain text; {_wanted()}")


def refuse_nested(outputs: Mapping[str, Any]) -> None:
    """ValueError for an output that holds arrays and is no tensor: they would not reach the model."""
    for name, value in outputs.items():
        if not isinstance(value, Tensor) and _holds_arrays(value):
            raise ValueError(f"{name} is a {type(value).__name__} with arrays in it, where a model is given tensors")


def _holds_arrays(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_arrays(one) for one in value)
    return isinstance(value, (Tensor, np.ndarray))


def _wanted() -> str:
    return 'its processor must turn {"type": "image"} and {"type": "text"} content into tensors for these images'
