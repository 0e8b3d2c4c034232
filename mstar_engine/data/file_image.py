"""An image that knows its content and size from its file and has no pixels until someone asks for them."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from functools import cache
from pathlib import Path
from threading import Lock

from PIL import Image

from mstar_engine.data.image_integrity import ImageError
from mstar_engine.data.images import ImageLimits, decode, image_size, read_bytes

_KNOWN = 100_000
_YOUNG = 2_000_000_000
"""Nanoseconds within which a file may be written twice with one time, as far as file systems tell the time."""


class FileImage(Image.Image):
    """A file as an RGB image, upright. `digest` is the SHA-256 of the file; pixels are decoded at their first use.

    ImageError, when it is made or when its pixels are asked for, as in `images.decode`.
    """

    def __init__(self, path: Path, digest: str, size: tuple[int, int], limits: ImageLimits) -> None:
        super().__init__()
        self._mode, self._size = "RGB", size
        self.path, self.digest, self._limits = path, digest, limits

    def load(self) -> object:
        """Decode the file, once."""
        if self._im is None:
            data = read_bytes(self.path, self._limits)
            if hashlib.sha256(data).hexdigest() != self.digest:
                raise ImageError("changed since it was first read")
            self.im = decode(data, self._limits).im
        return super().load()


class FileImages:
    """Opens files as `FileImage`s; a file whose size and time have not changed is not read again. Thread-safe."""

    def __init__(self, limits: ImageLimits | None = None) -> None:
        self.limits = limits or ImageLimits()
        self._known: OrderedDict[tuple, tuple[str, tuple[int, int]]] = OrderedDict()
        self._lock = Lock()

    def open(self, path: Path | str) -> FileImage:
        """The image of a file. ImageError when it is missing, too large or damaged."""
        path = Path(path)
        try:
            stat = path.stat()
        except OSError:
            raise ImageError("no such file") from None
        key = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        known = self._known.get(key)
        if known is None:
            data = read_bytes(path, self.limits)
            known = (hashlib.sha256(data).hexdigest(), image_size(data, self.limits))
            if time.time_ns() - stat.st_mtime_ns > _YOUNG:
                with self._lock:
                    self._known[key] = known
                    if len(self._known) > _KNOWN:
                        self._known.popitem(last=False)
        return FileImage(path, *known, self.limits)


@cache
def file_images(limits: ImageLimits) -> FileImages:
    """This process's `FileImages` within the limits: rollout, process rewards and training read each file once."""
    return FileImages(limits)
