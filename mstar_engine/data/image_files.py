"""The images of rows as paths: files below the image folder stay where they are, bytes are kept once by their content.

So that problems are small whatever the data set is, and an image that several rows share is one file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mstar_engine.data.checked_images import CheckedImages
from mstar_engine.data.flaw import Flaw, shown
from mstar_engine.data.image_integrity import ImageError
from mstar_engine.data.images import ImageLimits, decode, image_size, read_bytes

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,")
_HELD = 200_000
"""Verdicts kept: an image is judged once, however many rows show it."""


class ImageFiles:
    """Finds and checks the images of rows.

    `folder`: where paths are looked up, and outside of which none may lead; `kept`: where bytes are written, made when
    needed; `check`: "decode" looks at every pixel once, "header" at the header only. What was found sound is noted
    beside `kept`, and not looked at again while it stays as it is.
    """

    def __init__(
        self, folder: Path, kept: Path, limits: ImageLimits, check: Literal["decode", "header"] = "decode"
    ) -> None:
        self.folder, self.kept, self.limits, self.check = Path(folder).absolute(), Path(kept), limits, check
        self._real = Path(os.path.realpath(self.folder))
        self._found: dict[str, Path | Flaw] = {}
        self._checked = CheckedImages(self.kept.parent / "checked_images", limits)

    def find(self, image: Any, field: str) -> Path:
        """The file of an image that a row gives: a path, bytes, base64, or a mapping with `bytes` or `path`. Flaw."""
        if isinstance(image, Mapping):
            data = image.get("bytes")
            image = image.get("path") if data is None else data
        if isinstance(image, os.PathLike):
            image = os.fspath(image)
        if isinstance(image, (bytes, bytearray, memoryview)):
            return self._keep(bytes(image), field)
        if image is None or image == "":
            raise Flaw("missing image", field, "no image")
        if not isinstance(image, str):
            raise Flaw("missing image", field, f"{shown(image)} is no image; allowed: a path, bytes or base64")
        if (prefix := _DATA_URI.match(image)) is not None:
            return self._keep(_from_base64(image[prefix.end() :], field), field)
        if _URL.match(image):
            raise Flaw(
                "refused image", field, f"{shown(image)} is a URL; nothing is fetched: download it and give paths"
            )
        return self._path(image, field)

    def find_base64(self, image: Any, field: str) -> Path:
        """As `find`, where text is base64 and no path."""
        return self._keep(_from_base64(image, field), field) if isinstance(image, str) else self.find(image, field)

    def _path(self, name: str, field: str) -> Path:
        found = self._found.get(name)
        if found is None:
            try:
                found = self._checked_path(name, field)
            except Flaw as flaw:
                found = flaw
            if len(self._found) < _HELD:
                self._found[name] = found
        if isinstance(found, Flaw):
            raise Flaw(found.reason, field, str(found))
        return found

    def _checked_path(self, name: str, field: str) -> Path:
        try:
            path = self.folder / name
            real = os.path.realpath(path)
        except (ValueError, OSError):  # a zero byte, characters that no file name has
            raise Flaw("missing image", field, f"{shown(name)} is no file name") from None
        # By both: neither ".." nor a link may lead out.
        if not Path(real).is_relative_to(self._real) or ".." in Path(name).parts:
            raise Flaw("refused image", field, f"{shown(name)} is outside of the image folder {self.folder}")
        try:
            self._look(path, real)
        except ValueError as error:
            raise _flaw(error, field, shown(name)) from None
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

    def _keep(self, data: bytes, field: str) -> Path:
        """Write the bytes under the name of their content, unless they are there."""
        digest = hashlib.sha256(data).hexdigest()
        found = self._found.get(f"\0{digest}")
        if found is None:
            try:
                self._judge(data)
                found = self._written(data, digest)
            except ImageError as error:
                found = _flaw(error, field, f"{len(data):,} bytes")
            if len(self._found) < _HELD:
                self._found[f"\0{digest}"] = found
        if isinstance(found, Flaw):
            raise Flaw(found.reason, field, str(found))
        return found

    def _written(self, data: bytes, digest: str) -> Path:
        path = self.kept / digest[:2] / digest[2:]
        # Read back rather than waited for: a file that a crash spoiled is written anew.
        if not (path.is_file() and path.read_bytes() == data):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            temporary.write_bytes(data)
            os.replace(temporary, path)
        return path.absolute()

    def _judge(self, data: bytes) -> None:
        if self.check == "decode":
            decode(data, self.limits)
        else:
            image_size(data, self.limits)


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
