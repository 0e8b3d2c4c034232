"""The images of rows as paths: files below the image folder stay where they are, bytes are kept once by their content.

So that problems are small whatever the data set is, and an image that several rows share is one file. Images are looked
at in threads (Pillow decodes without the interpreter's lock): who asks first and takes the answers later, in the order
of the questions, gets the same answers sooner.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from mstar_engine.data.checked_images import CheckedImages
from mstar_engine.data.flaw import Flaw, shown
from mstar_engine.data.image_integrity import ImageError
from mstar_engine.data.images import ImageLimits, check, image_size, read_bytes
from mstar_engine.data.pixel_room import PixelRoom

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,")
_HELD = 200_000
"""Verdicts kept: an image is judged once, however many rows show it."""
_MOST_THREADS = 8
Asked = Callable[[], Path]
"""An answer to come: the file of an image, or its Flaw."""


class ImageFiles:
    """Finds and checks the images of rows.

    `folder`: where paths are looked up, and outside of which none may lead; `kept`: where bytes are written, made when
    needed; `check`: "decode" looks at every pixel once, "header" at the header only. What was found sound is noted
    beside `kept`, and not looked at again while it stays as it is. `threads` look at images (0: one a core, 8 at
    most); together they decode no more pixels at a time than the largest image may have. `waiting`: bytes of images
    that were asked for and not looked at yet.
    """

    def __init__(
        self,
        folder: Path,
        kept: Path,
        limits: ImageLimits,
        check: Literal["decode", "header"] = "decode",
        threads: int = 0,
    ) -> None:
        self.folder, self.kept, self.limits, self.check = Path(folder).absolute(), Path(kept), limits, check
        self._real = Path(os.path.realpath(self.folder))
        # Headers are read faster than threads are asked.
        self.threads = 1 if check == "header" else threads or min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self.waiting = 0
        self._pool: ThreadPoolExecutor | None = None
        self._room = PixelRoom(limits.pixels)
        self._counting = threading.Lock()
        self._found: dict[str, Path | Flaw | Future[Path | Flaw]] = {}
        self._checked = CheckedImages(self.kept.parent / "checked_images", limits)

    def find(self, image: Any, field: str) -> Path:
        """The file of an image that a row gives: a path, bytes, base64, or a mapping with `bytes` or `path`. Flaw."""
        return self.ask(image, field)()

    def close(self) -> None:
        """End the threads; what was asked for and not looked at has to be asked for again."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool, self.waiting = None, 0
            self._found = {name: found for name, found in self._found.items() if not isinstance(found, Future)}

    def ask(self, image: Any, field: str) -> Asked:
        """As `find`, answered when it is called."""
        try:
            return self._asked(image, field)
        except Flaw as flaw:
            return refused(flaw)

    def ask_base64(self, image: Any, field: str) -> Asked:
        """As `ask`, where text is base64 and no path."""
        if not isinstance(image, str):
            return self.ask(image, field)
        try:
            return self._ask_to_keep(_from_base64(image, field), field)
        except Flaw as flaw:
            return refused(flaw)

    def _asked(self, image: Any, field: str) -> Asked:
        if isinstance(image, Mapping):
            data = image.get("bytes")
            image = image.get("path") if data is None else data
        if isinstance(image, os.PathLike):
            image = os.fspath(image)
        if isinstance(image, (bytes, bytearray, memoryview)):
            return self._ask_to_keep(bytes(image), field)
        if image is None or image == "":
            raise Flaw("missing image", field, "no image")
        if not isinstance(image, str):
            raise Flaw("missing image", field, f"{shown(image)} is no image; allowed: a path, bytes or base64")
        if (prefix := _DATA_URI.match(image)) is not None:
            return self._ask_to_keep(_from_base64(image[prefix.end() :], field), field)
        if _URL.match(image):
            raise Flaw(
                "refused image", field, f"{shown(image)} is a URL; nothing is fetched: download it and give paths"
            )
        return self._ask(image, field, 0, lambda: self._checked_path(image, field))

    def _ask_to_keep(self, data: bytes, field: str) -> Asked:
        digest = hashlib.sha256(data).hexdigest()
        return self._ask(f"\0{digest}", field, len(data), lambda: self._kept(data, digest, field))

    def _ask(self, name: str, field: str, size: int, look: Callable[[], Path | Flaw]) -> Asked:
        """The answer about an image by its name; `look` finds it out, holding `size` bytes meanwhile."""
        found = self._found.get(name)
        if found is None:
            found = look() if self.threads == 1 else self._submitted(size, look)
            if len(self._found) < _HELD:
                self._found[name] = found
        if isinstance(found, Path):
            return lambda: found

        def answer() -> Path:
            said = found
            if isinstance(said, Future):
                said = said.result()
                if self._found.get(name) is found:
                    self._found[name] = said
            if isinstance(said, Flaw):
                raise Flaw(said.reason, field, str(said))
            return said

        return answer

    def _submitted(self, size: int, look: Callable[[], Path | Flaw]) -> Future[Path | Flaw]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, "images")
        with self._counting:
            self.waiting += size

        def looked() -> Path | Flaw:
            try:
                return look()
            finally:
                with self._counting:
                    self.waiting -= size

        return self._pool.submit(looked)

    def _checked_path(self, name: str, field: str) -> Path | Flaw:
        try:
            path = self.folder / name
            real = os.path.realpath(path)
        except (ValueError, OSError):  # a zero byte, characters that no file name has
            return Flaw("missing image", field, f"{shown(name)} is no file name")
        # By both: neither ".." nor a link may lead out.
        if not Path(real).is_relative_to(self._real) or ".." in Path(name).parts:
            return Flaw("refused image", field, f"{shown(name)} is outside of the image folder {self.folder}")
        try:
            self._look(path, real)
        except ValueError as error:
            return _flaw(error, field, f"{shown(name)} in {self.folder}")
        return path

    def _look(self, path: Path, real: str) -> None:
        """Judge a file, unless it was found sound as it is now. ValueError."""
        try:
            line = self._checked.line_of(real)
        except OSError:
            line = b""
        if line not in self._checked:
            self._judge(read_bytes(path, self.limits))
            if line and self.check == "decode":
                self._checked.add(line)

    def _kept(self, data: bytes, digest: str, field: str) -> Path | Flaw:
        """Where the bytes are, under the name of their content."""
        try:
            self._judge(data)
        except ImageError as error:
            return _flaw(error, field, f"{len(data):,} bytes")
        return self._written(data, digest)

    def _written(self, data: bytes, digest: str) -> Path:
        path = self.kept / digest[:2] / digest[2:]
        # Read back rather than waited for: a file that a crash spoiled is written anew.
        try:
            if not (path.is_file() and path.read_bytes() == data):
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
                temporary.write_bytes(data)
                os.replace(temporary, path)
        except OSError as error:  # of the disk, not of the row
            raise ValueError(
                f"images of rows cannot be kept in {self.kept}: {error.strerror or error}; "
                "needed: a folder that can be written to (data.cache_dir), and room"
            ) from None
        return path.absolute()

    def _judge(self, data: bytes) -> None:
        if self.check == "decode":
            check(data, self.limits, self._room)
        else:
            image_size(data, self.limits)


def refused(flaw: Flaw) -> Asked:
    """The answer that an image is no good."""

    def answer() -> Path:
        raise flaw

    return answer


def _flaw(error: ValueError, field: str, what: str) -> Flaw:
    if "no such file" in str(error):
        return Flaw("missing image", field, f"{what}: no such file")
    oversized = isinstance(error, ImageError) and error.oversized
    return Flaw("oversized image" if oversized else "unreadable image", field, f"{what}: {error}")


def _from_base64(text: str, field: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Flaw("unreadable image", field, f"not base64: {error}") from None
