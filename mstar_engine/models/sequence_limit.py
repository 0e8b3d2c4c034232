"""How long a prompt and its response may be together: the model's positions, or the length where they change.

Under longrope, transformers turns every position of a forward by other frequencies once the longest sequence in it
exceeds the length that the model was first trained on. Keys that are kept would stay turned by the old ones, and a
short sequence would depend on those that share its forward; below that length neither can happen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from transformers import PretrainedConfig


def sequence_limit(config: PretrainedConfig) -> int | None:
    """Tokens of a prompt and its response, at most; None where the config names no limit."""
    text = config.get_text_config(decoder=True)
    limits = [getattr(text, "max_position_embeddings", None), *_changes(text)]
    return min((int(limit) for limit in limits if limit), default=None)


def _changes(text: PretrainedConfig) -> Iterator[int | None]:
    """Lengths beyond which frequencies are others, by kind of layer where the config tells them apart."""
    named = getattr(text, "rope_parameters", None) or {}
    for rope in (named, *named.values()):
        if isinstance(rope, Mapping) and rope.get("rope_type") == "longrope":
            yield rope.get("original_max_position_embeddings") or getattr(
                text, "original_max_position_embeddings", None
            )
