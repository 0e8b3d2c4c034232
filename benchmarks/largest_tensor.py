"""The memory of a piece of work as the largest tensor that any operation in it makes: the same on every device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation and look at what it made; views make nothing."""
        result = func(*args, **(kwargs or {}))
        known = {one.untyped_storage().data_ptr() for one in args if isinstance(one, torch.Tensor)}
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in known:
                self.bytes = max(self.bytes, one.numel() * one.element_size())
        return result


def largest_mib(call: Callable[[], object]) -> float:
    """MiB of the largest tensor that `call` makes."""
    with LargestTensor() as seen:
        call()
    return seen.bytes / 2**20
