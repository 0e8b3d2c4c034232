"""Tensors kept on disk under the hash of what they were computed from, and mapped into memory when asked for again.

So that an image is decoded and preprocessed once, whoever needs it how often: rollout, process rewards and training,
in this run and the next, in one process and several. An entry is a safetensors file that appears whole or not at all;
one that is damaged (its digest tells) or gone counts as never made. What is mapped costs memory only while the system
has it to spare.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mstar_engine.data.tensor_digest import entry_digest
from mstar_engine.data.tensor_file import SMALL, TensorFileError, read_tensors

Values = Mapping[str, Any]
"""Tensors, numbers, texts, and lists of them, by name."""
_KNOWN = 100_000
"""Entries whose digest this process wrote or saw to be right: not computed again while they stay as they are."""
_ABANDONED = 3600
"""Seconds after which an entry that is not finished has lost its writer."""


class TensorCache:
    """A folder of entries, each some named values under a key of hexadecimal digits.

    `max_bytes` bounds the folder: the entries that were not asked for longest go first (0 keeps all). Other processes
    may use the folder at the same time; each bounds it by what it last saw. Thread-safe.
    """

    def __init__(self, folder: Path, max_bytes: int = 0) -> None:
        self.folder, self.max_bytes = Path(folder), max_bytes
        self.hits = self.misses = 0
        self._lock = threading.Lock()
        self._held: int | None = None
        self._sound: dict[int, int] = {}

    def get(self, key: str) -> dict[str, Any] | None:
        """The values of an entry, tensors mapped and not to be written to; None when there is none."""
        path = self._path(key)
        try:
            told, tensors, status = read_tensors(path)
            known = self._sound.get(hash(key)) == _stamp(status, status.st_mtime_ns)
            if not known and entry_digest(key, told["values"], tensors) != told["digest"]:
                raise TensorFileError("damaged")
        # Missing, cut by a full disk or a crash, damaged, or of another making: made again.
        except (TensorFileError, LookupError, TypeError):
            self.misses += 1
            return None
        time_ns = status.st_mtime_ns
        if self.max_bytes:
            with suppress(OSError):  # gone by another process, or another user's
                now = time.time_ns()
                os.utime(path, ns=(now, now))  # what was asked for last stays longest
                time_ns = now
        if status.st_size > SMALL:
            self._note_sound(key, _stamp(status, time_ns))
        self.hits += 1
        return {name: _restored(value, tensors) for name, value in json.loads(told["values"]).items()}

    def put(self, key: str, values: Values) -> bool:
        """Keep the values of an entry; False when they are of a kind that is not kept, or the disk is full."""
        tensors: dict[str, Tensor] = {}
        try:
            shape = {name: _flattened(value, name, tensors) for name, value in values.items()}
        except TypeError:
            return False
        path = Path(self._path(key))
        temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
        said = json.dumps(shape)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, temporary, {"values": said, "digest": entry_digest(key, said, tensors)})
            # Finer than the clock of file systems: whoever writes to it later gives it another time.
            now = time.time_ns()
            os.utime(temporary, ns=(now, now))
            status = temporary.stat()
            os.replace(temporary, path)
        except (OSError, SafetensorError):
            with suppress(OSError):
                temporary.unlink()
            return False
        if status.st_size > SMALL:
            self._note_sound(key, _stamp(status, status.st_mtime_ns))
        if self.max_bytes:
            self._make_room(status.st_size)
        return True

    def _path(self, key: str) -> str:
        return f"{self.folder}/{key[:2]}/{key[2:]}.safetensors"

    def _note_sound(self, key: str, stamp: int) -> None:
        """Keep that a large entry, as it is now, need not be read to the end again by this process."""
        if len(self._sound) >= _KNOWN:
            self._sound.clear()
        self._sound[hash(key)] = stamp

    def _make_room(self, size: int) -> None:
        with self._lock:
            if self._held is not None:
                self._held += size
            if self._held is None or self._held > self.max_bytes:
                self._evict()

    def _evict(self) -> None:
        """Count the folder, and drop its oldest entries down to nine tenths of the bound."""
        self._held = sum(size for _, size, _ in self._entries())
        if self._held <= self.max_bytes:
            return
        for _, size, path in sorted(self._entries()):
            if self._held <= 0.9 * self.max_bytes:
                return
            # Who has it mapped goes on reading it.
            with suppress(OSError):
                os.unlink(path)
            self._held -= size

    def _entries(self) -> Iterator[tuple[int, int, str]]:
        """Time, bytes and path of each entry; what writers that were killed left behind is removed on the way."""
        abandoned = time.time_ns() - _ABANDONED * 10**9
        for folder in self.folder.glob("??"):
            entries = []
            with suppress(OSError):
                entries = list(os.scandir(folder))
            for entry in entries:
                with suppress(OSError):  # gone by another process
                    stat = entry.stat()
                    if entry.name.endswith(".safetensors"):
                        yield stat.st_mtime_ns, stat.st_size, entry.path
                    elif entry.name.endswith(".tmp") and stat.st_mtime_ns < abandoned:
                        os.unlink(entry.path)


def _stamp(status: os.stat_result, time_ns: int) -> int:
    """What changes when a file is replaced or written to."""
    return hash((status.st_ino, status.st_size, time_ns))


def _flattened(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON, its tensors put into `tensors` under names that stand for them. TypeError for other kinds."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.integer | np.floating):
        return value.item()
    if isinstance(value, tuple):
        return {"tuple": _flattened(list(value), name, tensors)}
    if isinstance(value, list):
        return [_flattened(item, f"{name}.{place}", tensors) for place, item in enumerate(value)]
    raise TypeError(type(value))


def _restored(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return tuple(_restored(value["tuple"], tensors)) if "tuple" in value else tensors[value["tensor"]]
    return [_restored(item, tensors) for item in value] if isinstance(value, list) else value
