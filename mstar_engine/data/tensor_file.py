"""Safetensors files read in some ten microseconds: large ones mapped into memory, small ones copied.

The library's own reader takes ten times as long, which for a second pass over kept prompts is most of the time. What is
read here is believed only where a digest agrees (`tensor_cache.py`); a file that is wrong raises, whatever is wrong.
"""

from __future__ import annotations

import json
import os

import torch
from torch import Tensor

SMALL = 64 << 10
"""Files up to this many bytes are copied: a process may map some 65,000, and may keep many prompts."""
_TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class TensorFileError(Exception):
    """A file that is not there, cut, or no safetensors file of these types."""


def read_tensors(path: str) -> tuple[dict[str, str], dict[str, Tensor], os.stat_result]:
    """The metadata, the tensors (mapped where the file is large: to be read only), the status. TensorFileError."""
    try:
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            data = file.read(SMALL)
            length = 8 + int.from_bytes(data[:8], "little")
            if not 8 < length <= size:
                raise TensorFileError("cut")
            if length > len(data):
                data += file.read(length - len(data))
            # By the open file, which another process may be replacing under this path.
            flat = _bytes(data, f"/dev/fd/{file.fileno()}", size)[length:]
        header = json.loads(data[8:length])
        metadata = header.pop("__metadata__")
        return metadata, {name: _tensor(flat, **told) for name, told in header.items()}, status
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise TensorFileError(str(error)) from None


def _bytes(data: bytes, path: str, size: int) -> Tensor:
    if size == len(data):
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)
    # Private to this process: what someone writes into it does not reach the file.
    storage = torch.UntypedStorage.from_file(path, False, size)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _tensor(flat: Tensor, dtype: str, shape: list[int], data_offsets: tuple[int, int]) -> Tensor:
    begin, end = data_offsets
    return flat[begin:end].view(_TYPES[dtype]).reshape(shape)
