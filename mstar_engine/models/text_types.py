"""Which value of its token inputs (token types) makes a family read a token as text: what a response is extended with.

In most families 0 is text and 1 an image; in PaliGemma 0 is a prefix that attends both ways, and 1 what follows it. A
response that is marked as a prefix sees its own tokens to come, and learns to copy them. Neither is known by name: with
the right values a few words of text have the hidden states that they have without those behind them, and the first one
what it has without token inputs, as when it is sampled.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mstar_engine.models.compatibility import forget_rope_deltas, special_image_ids

VALUES = (0, 1, 2)
"""What is tried, in this order."""
TOKENS = 6
CLOSE, CLOSE_IN_HALF = 1e-3, 0.05
"""Of hidden states, relative to their norm: above rounding, below what a token to come does."""

_known: WeakKeyDictionary[PreTrainedModel, dict[frozenset[str], dict[str, int]]] = WeakKeyDictionary()


def text_types(model: PreTrainedModel, names: Iterable[str]) -> dict[str, int]:
    """By token input, the value that stands for text; found once a model, in a few forwards of a few tokens.

    Raises ValueError naming the family where no value does.
    """
    asked = frozenset(names)
    if not asked:
        return {}
    known = _known.setdefault(model, {})
    if asked not in known:
        known[asked] = _probed(model, sorted(asked))
    return known[asked]


@torch.no_grad()
def _probed(model: PreTrainedModel, names: list[str]) -> dict[str, int]:
    images = set(special_image_ids(model.config))
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ordinary = [token for token in range(vocabulary) if token not in images]
    # From the middle of the vocabulary: the embedding of a padding token may be zero.
    first = len(ordinary) // 2
    ids = torch.tensor([ordinary[first : first + TOKENS]], device=model.device)
    close = CLOSE_IN_HALF if model.dtype.itemsize == 2 else CLOSE
    found: dict[tuple[int, ...], float] = {}
    training = model.training
    model.eval()
    try:
        sampled = _states(model, ids[:, :1], {})
        for values in product(VALUES, repeat=len(names)):
            types = dict(zip(names, values))
            whole, part = _states(model, ids, types), _states(model, ids[:, : TOKENS // 2], types)
            found[values] = max(_difference(whole, sampled), _difference(whole, part))
    finally:
        forget_rope_deltas(model)
        model.train(training)
    best = min(found, key=found.__getitem__)  # the first of equals
    if found[best] <= close:
        return dict(zip(names, best))
    raise ValueError(
        f"model family {model.config.model_type!r} cannot be trained: with {' and '.join(names)} of {VALUES} a token "
        "of text depends on those behind it; allowed: a family in which some value stands for text"
    )


def _states(model: PreTrainedModel, ids: Tensor, types: dict[str, int]) -> Tensor:
    """Final hidden states of text, float32 [length, D]."""
    forget_rope_deltas(model)
    inputs = {name: torch.full_like(ids, value) for name, value in types.items()}
    return model.base_model(input_ids=ids, **inputs, use_cache=False)[0][0].float()


def _difference(whole: Tensor, part: Tensor) -> float:
    """The most that a hidden state of the first tokens differs from that in the whole, relative to its norm."""
    difference = (whole[: len(part)] - part).norm(dim=-1) / part.norm(dim=-1)
    return float(difference.nan_to_num(torch.inf).max())
