"""Where a family puts the tokens behind a prompt: the rotary offset of each prompt, read off its own forward.

A family may count positions from one (PaliGemma), or give an image fewer positions than tokens on several axes
(Qwen-VL). Neither is known by name: the positions that the language model is run with are watched.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from mstar_engine.models.attention import language_configs
from mstar_engine.models.compatibility import rope_delta_modules


class PositionWatch:
    """Notes the positions [batch, length], or [axes, batch, length], that the language model's first module with such
    an argument is given in a forward: the language model itself, or its rotary embedding."""

    def __init__(self, model: PreTrainedModel) -> None:
        configs = language_configs(model)
        roots = [
            module
            for module in model.modules()
            if isinstance(module, PreTrainedModel) and any(module.config is config for config in configs)
        ]
        self._modules = [
            module
            for root in (roots[-1:] or [model])  # the innermost
            for module in root.modules()
            if not isinstance(module, nn.ModuleList) and "position_ids" in _arguments(module)
        ]
        self._caching = rope_delta_modules(model)
        self._seen: Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around one forward; then ask `offset`."""
        self._seen = None
        handles = [module.register_forward_pre_hook(self._note, with_kwargs=True) for module in self._modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def offsets(self, batch: int, length: int) -> list[int]:
        """Of each prompt of the forward: what is added to a sequence index behind it to get its position. Where the
        family keeps that itself (`rope_deltas`), as `generate` would use it."""
        for module in self._caching:
            if module.rope_deltas is not None:
                return [int(delta) for delta in module.rope_deltas.reshape(-1).tolist()]
        seen = self._seen
        if seen is None or seen.dim() < 2 or seen.shape[-1] != length:
            return [0] * batch
        ends = seen.flatten(0, -3).amax(dim=(0, 2)) if seen.dim() > 2 else seen.amax(dim=1)
        offsets = [int(end) + 1 - length for end in ends.tolist()]
        return offsets if len(offsets) == batch else offsets[:1] * batch

    def _note(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self._seen is not None:
            return
        given = named.get("position_ids")
        if given is None:
            given = dict(zip(_arguments(module), arguments)).get("position_ids")
        if isinstance(given, Tensor) and given.dim() > 1:
            self._seen = given


def _arguments(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)
