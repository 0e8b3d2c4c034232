"""Which image files were looked at pixel by pixel and found sound, so that the next run need not look again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import PIL

from mstar_engine.data.images import ImageLimits

_LINE = 33  # 32 hexadecimal digits and a line break


class CheckedImages:
    """A file of digests, a line each, that several processes may add to: a line is written at once, a torn one is none.

    A digest is of a file's place, size and time, of the limits, and of the version of what decoded it.
    """

    def __init__(self, path: Path, limits: ImageLimits) -> None:
        self._path, self._about = path, f"{limits}\0{PIL.__version__}"
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except OSError:
            lines = []
        self._known = {line for line in lines if len(line) == _LINE}

    def line_of(self, real: str) -> bytes:
        """What stands for a file as it is now. OSError when it is not there."""
        stat = os.stat(real)
        said = f"{real}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}\0{self._about}"
        return hashlib.blake2b(said.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest().encode() + b"\n"

    def __contains__(self, line: bytes) -> bool:
        """Whether a file was found sound."""
        return line in self._known

    def add(self, line: bytes) -> None:
        """Keep that a file was found sound; on a disk that is full only for this process."""
        self._known.add(line)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError:
            return
        try:
            os.write(handle, line)
        except OSError:
            pass
        finally:
            os.close(handle)
