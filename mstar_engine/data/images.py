"""Image files to RGB images, safely: size and shape are judged by the header, before a pixel is decoded.

Files come from anywhere. What is larger than the limits, not of a known format, damaged or of a kind that has no
plain meaning as RGB is refused in words; nothing is guessed. EXIF orientation is applied, transparency is laid on
white, an animation is its first frame, 16 bits become 8.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from mstar_engine.data.image_integrity import (
    ImageError,
    check_gif,
    check_jpeg,
    check_png,
    check_scans,
    tells_behind_pixels,
)
from mstar_engine.data.pixel_room import PixelRoom

# Formats that decode in Pillow itself: none that runs another program (EPS) or fetches. A Pillow may lack WebP.
Image.init()
FORMATS = tuple(name for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM") if name in Image.OPEN)
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N")
# Pillow's own warning of bombs (the limits here say more), and those about odd metadata.
warnings.filterwarnings("ignore", module=r"PIL\.")
# What Pillow raises for damaged files, beside OSError: its plugins let errors of struct, zlib and indexing through.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    ArithmeticError,
    AssertionError,
    NotImplementedError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """The largest image file, in `bytes`, and the largest image, in `pixels` (width times height)."""

    bytes: int = 64 << 20
    pixels: int = 50_000_000


@dataclass(slots=True)
class DecodeCount:
    """How many image files this process has decoded."""

    images: int = 0
    _adding: threading.Lock = field(default_factory=threading.Lock)

    def add(self) -> None:
        """Count one; from any thread."""
        with self._adding:
            self.images += 1


DECODED = DecodeCount()


def read_bytes(image: Path | str, limits: ImageLimits) -> bytes:
    """The bytes of an image file within the limits. ImageError when it is larger, missing or cannot be read."""
    try:
        path = Path(image)
        if not path.is_file():  # not a device or a pipe, whose reading would not end
            raise ImageError("no such file")
        _refuse_long(path.stat().st_size, limits)
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from None


def image_size(data: bytes, limits: ImageLimits) -> tuple[int, int]:
    """Width and height in pixels, upright, from the header alone. ImageError when it is damaged or over the limits."""
    with _opened(data, limits) as image:
        width, height = image.size
        # Of a PNG file Pillow would decode the pixels, to read what may stand behind them.
        read = image.getexif if image.format != "PNG" or tells_behind_pixels(data) else partial(_plain_exif, image)
        return (height, width) if _orientation(read) >= 5 else (width, height)


def decode(data: bytes, limits: ImageLimits) -> Image.Image:
    """The RGB image in the bytes of a file. ImageError when it is damaged, unknown or over the limits."""
    with _opened(data, limits) as image:
        return _decoded(image, data)


def check(data: bytes, limits: ImageLimits, room: PixelRoom) -> None:
    """ImageError as `decode` has it. The image is decoded where there is `room`, and forgotten."""
    with _opened(data, limits) as image, room.of(image.width * image.height):
        _decoded(image, data, wanted=False)


def _decoded(image: Image.Image, data: bytes, wanted: bool = True) -> Image.Image:
    try:
        if image.format in ("PNG", "GIF"):
            {"PNG": check_png, "GIF": check_gif}[image.format](data)
        image.load()
        DECODED.add()
        if image.format in ("JPEG", "MPO"):
            check_jpeg(data, image)
        upright = _upright(image)
        # A copy of pixels that are RGB already takes a third of the time of a large JPEG file's.
        return _rgb(upright) if wanted or upright.mode != "RGB" else upright
    except ImageError:
        raise
    except _DAMAGE as error:
        raise ImageError(f"damaged: {_reason(error)}") from None


def read_image(image: Path | str, limits: ImageLimits | None = None) -> Image.Image:
    """The RGB image of a file. ImageError as in `read_bytes` and `decode`."""
    limits = limits or ImageLimits()
    return decode(read_bytes(image, limits), limits)


def _refuse_long(length: int, limits: ImageLimits) -> None:
    if length > limits.bytes:
        raise ImageError(f"{length:,} bytes; allowed: at most {limits.bytes:,}", oversized=True)
    if not length:
        raise ImageError("an empty file")


def _opened(data: bytes, limits: ImageLimits) -> Image.Image:
    """The image with its header read and judged, its pixels not."""
    _refuse_long(len(data), limits)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise ImageError(f"not an image of a known format; allowed: {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"too many pixels; allowed: at most {limits.pixels:,}", oversized=True) from None
    except _DAMAGE as error:
        raise ImageError(f"damaged header: {_reason(error)}") from None
    width, height = image.size
    if width * height > limits.pixels:
        image.close()
        raise ImageError(
            f"{width} x {height} = {width * height:,} pixels; allowed: at most {limits.pixels:,}", oversized=True
        )
    if not width * height:
        raise ImageError(f"{width} x {height} pixels")
    if image.format in ("JPEG", "MPO"):
        check_scans(data)
    return image


def _plain_exif(image: Image.Image) -> Image.Exif:
    """The EXIF data that has been read with the header."""
    return Image.Image.getexif(image)


def _orientation(read: Callable[[], Image.Exif]) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none that can be read: it is no part of the pixels."""
    try:
        value = read().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        return 1
    return value if value in range(1, 9) else 1


def _upright(image: Image.Image) -> Image.Image:
    if _orientation(image.getexif) == 1:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGE as error:
        raise ImageError(f"damaged EXIF data: {_reason(error)}") from None


def _rgb(image: Image.Image) -> Image.Image:
    """The image in 8 bits of red, green and blue."""
    if image.mode in _DEEP or (image.mode == "I" and image.format in ("PNG", "PPM", None)):
        return _from_16_bits(image)
    if image.mode in ("I", "F"):
        raise ImageError(f"pixels of 32 bits (mode {image.mode}); allowed: 8 or 16 bits a channel")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        straight = image.convert("RGBA")
        white = Image.new("RGBA", straight.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, straight).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError("grey values beyond 16 bits")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
