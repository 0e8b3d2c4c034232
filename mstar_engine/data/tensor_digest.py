"""The digest that an entry of the tensor cache carries, so that bits which a disk or a crash changed are noticed.

Reading an entry should cost little more than reading memory: bytes are summed as 64-bit words in blocks, and only the
sums are hashed. One flipped bit, a cut, a block of zeros and exchanged blocks all change it; it is no protection
against someone who means harm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1024  # words: 8 KiB


def entry_digest(key: str, said: str, tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal digest of an entry: its key, what is said of its values, and its tensors (names, types, shapes)."""
    digest = hashlib.blake2b(f"{key}\n{said}".encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        blocks = len(data) // (8 * _BLOCK)
        whole = data[: 8 * _BLOCK * blocks].view(np.uint64).reshape(blocks, _BLOCK)
        digest.update(whole.sum(axis=1, dtype=np.uint64).tobytes())
        digest.update(data[8 * _BLOCK * blocks :].tobytes())
    return digest.hexdigest()
