"""Image files whose pixels are fewer than their header promises, or are not those that were written.

Viewers show such files with something made up in place of what is missing, and Pillow does so too for three formats:
PNG (it checks neither the number nor the checksum of pixels), JPEG and GIF.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"
_INFLATE = 1 << 20  # bytes inflated at a time
# Any bytes that are no marker: as pixels they are noise, behind the pixels decoders skip them.
_NOISE = bytes(np.random.default_rng(0).integers(1, 255, 64, dtype=np.uint8))
# A decoder between two restart intervals skips all up to the marker of the next.
_NOISE += b"".join(bytes((0xFF, 0xD0 + number)) + _NOISE for number in range(8))
MOST_SCANS = 100
"""Of a JPEG file; programs write some ten (libtiff has the same limit)."""
_LONG = 12  # bits of a GIF code at most


class ImageError(ValueError):
    """An image that cannot be used; `oversized` when it is only larger than the limits allow."""

    def __init__(self, message: str, *, oversized: bool = False) -> None:
        super().__init__(message)
        self.oversized = oversized


def check_png(data: bytes) -> None:
    """Hold a PNG file to its checksums and its pixels to their number, which Pillow does not do. ImageError."""
    pixels, header = [], None
    for kind, start, end in _png_chunks(data):
        content = memoryview(data)[start:end]
        (wanted,) = struct.unpack_from(">I", data, end)
        if zlib.crc32(content, zlib.crc32(kind)) != wanted:
            raise ImageError(f"damaged: the checksum of its chunk {kind.decode('latin-1')!r} is wrong")
        if kind == b"IHDR" and len(content) == 13:
            header = struct.unpack(">IIBBBBB", content)
        elif kind == b"IDAT":
            pixels.append(content)
    if header is None:
        raise ImageError("damaged: no header")
    wanted, inflate, found = _png_length(*header), zlib.decompressobj(), 0
    try:
        for content in pixels:
            while found < wanted and content:
                found += len(inflate.decompress(content, _INFLATE))
                content = inflate.unconsumed_tail
    except zlib.error as error:
        raise ImageError(f"damaged: {error}") from None
    if found < wanted:
        raise ImageError(f"damaged: {found:,} bytes of pixels; its header promises {wanted:,}")


def tells_behind_pixels(data: bytes) -> bool:
    """Whether a PNG file has chunks that may tell its orientation behind its pixels; not so in one that is cut."""
    try:
        kinds = [kind for kind, _, _ in _png_chunks(data)]
    except ImageError:
        return False
    behind = kinds[kinds.index(b"IDAT") :] if b"IDAT" in kinds else []
    return not {b"eXIf", b"iTXt", b"tEXt", b"zTXt"}.isdisjoint(behind)


def _png_length(width: int, height: int, depth: int, colour: int, *rest: int) -> int:
    """Bytes that the pixels of a PNG file of this header inflate to."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    passes = [(0, 0, 1, 1)]
    if rest[-1]:  # interlaced: seven images, of these first columns and rows and these distances
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    length = 0
    for left, top, across, down in passes:
        columns, rows = max(0, -(-(width - left) // across)), max(0, -(-(height - top) // down))
        length += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    return length


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start and end of the content) of each chunk up to the last. ImageError when the file ends before it."""
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise ImageError("damaged: the file ends early")
        length, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        at = start + length + 4
        if at > len(data):
            raise ImageError("damaged: the file ends early")
        yield kind, start, start + length


def check_scans(data: bytes) -> None:
    """Refuse a JPEG file of more scans than any picture has. ImageError.

    Each may cost a pass over all pixels and take less than a hundred bytes: a small file could be decoded for hours.
    """
    if data.count(b"\xff\xda") <= MOST_SCANS:  # where every scan begins, and other bytes may look alike
        return
    at, scans = 2, 0
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        kind = data[at + 1]
        if kind == 0xD9:
            return
        if kind == 0xFF:  # fill
            at += 1
        elif kind <= 0x01 or 0xD0 <= kind <= 0xD8:  # a stuffed byte of a scan, or a marker without a length
            at += 2
        else:
            scans += kind == 0xDA
            at += 2 + max(2, struct.unpack_from(">H", data, at + 2)[0])
        if scans > MOST_SCANS:
            raise ImageError(f"more than {MOST_SCANS} scans", oversized=True)


def check_jpeg(data: bytes, image: Image.Image) -> None:
    """Whether a JPEG file's scans reach the last row of the decoded `image`. ImageError.

    Where pixels are missing decoders show grey, which may be a picture's own. Told apart by noise behind every scan: it
    changes only pixels that are not there.
    """
    corner = image.crop((max(0, image.width - 8), max(0, image.height - 8), image.width, image.height))
    if not np.isin(np.asarray(corner), (127, 128)).all():
        return
    noisy = Image.open(io.BytesIO(_with_noise(data)), formats=("JPEG",))
    noisy.load()
    if noisy.mode != image.mode or noisy.tobytes() != image.tobytes():
        raise ImageError("damaged: fewer pixels than its header promises")


def _with_noise(data: bytes) -> bytes:
    """A JPEG file with some more bytes behind each scan."""
    parts, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        (length,) = struct.unpack_from(">H", data, at + 2)
        kind, end = data[at + 1], at + 2 + length
        if kind == 0xDA:
            end = _scan_end(data, end)
        parts.append(data[at:end])
        if kind == 0xDA:
            parts.append(_NOISE)
            if data[end : end + 2] == b"\xff\xd9":
                break
        at = end
    return b"".join([*parts, b"\xff\xd9"])


def _scan_end(data: bytes, at: int) -> int:
    """Where the entropy-coded bytes from `at` on end: before a marker that is neither a restart nor a stuffed byte."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        if data[at + 1] == 0xFF:  # fill
            at += 1
        elif data[at + 1] == 0 or 0xD0 <= data[at + 1] <= 0xD7:
            at += 2
        else:
            return at
    return len(data)


def check_gif(data: bytes) -> None:
    """Whether a GIF file's first frame has as many pixels as its header promises. ImageError."""
    try:
        at = 13 + _table(data[10])
        while data[at] != 0x2C:
            if data[at] != 0x21:
                raise ImageError("damaged: no frame")
            _, at = _blocks(data, at + 2)
        width, height = struct.unpack_from("<HH", data, at + 5)
        at += 10 + _table(data[at + 9])
        codes, _ = _blocks(data, at + 1)
        found = _lzw_length(codes, data[at], width * height)
    except (IndexError, struct.error):
        raise ImageError("damaged: the file ends early") from None
    if found < width * height:
        raise ImageError(f"damaged: {found:,} pixels; its header promises {width * height:,}")


def _table(flags: int) -> int:
    """Bytes of the colour table that a GIF header's flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _blocks(data: bytes, at: int) -> tuple[bytes, int]:
    """The content of a chain of GIF sub-blocks, and where it ends."""
    parts = []
    while data[at]:
        parts.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return b"".join(parts), at + 1


def _lzw_length(codes: bytes, width: int, wanted: int) -> int:
    """How many pixels LZW codes stand for; at least `wanted` if there are as many, and not much more is read."""
    if not 1 <= width <= 11:
        raise ImageError(f"damaged: codes of {width} bits")
    clear, end = 1 << width, (1 << width) + 1
    lengths, bits, found, before = [1] * (end + 1), width + 1, 0, 0
    buffer = held = 0
    for byte in codes:
        buffer |= byte << held
        held += 8
        while held >= bits:
            code, buffer, held = buffer & (1 << bits) - 1, buffer >> bits, held - bits
            if code == clear:
                lengths, bits, before = [1] * (end + 1), width + 1, 0
                continue
            if code == end or code > len(lengths) or (code == len(lengths) and not before):
                return found
            length = before + 1 if code == len(lengths) else lengths[code]
            if before and len(lengths) < 1 << _LONG:
                lengths.append(before + 1)
            if len(lengths) == 1 << bits and bits < _LONG:
                bits += 1
            before, found = length, found + length
            if found >= wanted:
                return found
    return found
