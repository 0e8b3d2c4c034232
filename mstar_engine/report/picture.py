"""A problem's image for the page: PNG as it is while small, else shrunk, so that a page of many stays light."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

SMALL = 24_000
_SIDE = 420
_PNG = b"\x89PNG\r\n\x1a\n"


def picture(path: Path) -> str | None:
    """The PNG file as a data URI; None when there is none, or it holds something else or nothing that can be read."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    if not data.startswith(_PNG):
        return None
    if len(data) <= SMALL:
        return _uri("png", data)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.thumbnail((_SIDE, _SIDE))
            seen = image.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    paper = Image.new("RGB", seen.size, "white")
    paper.paste(seen, mask=seen.getchannel("A"))
    out = io.BytesIO()
    paper.save(out, format="JPEG", quality=80)
    return _uri("jpeg", out.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
