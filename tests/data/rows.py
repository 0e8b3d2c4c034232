"""Small data sets on disk, for the tests of reading."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mstar_engine.data.image_files import ImageFiles
from mstar_engine.data.images import ImageLimits
from mstar_engine.data.quarantine import Quarantine
from mstar_engine.data.reader import Source, read_problems
from mstar_engine.types import Problem


def picture(seed: int = 0, size: tuple[int, int] = (12, 8)) -> Image.Image:
    """A random RGB image, width x height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int = 0, size: tuple[int, int] = (12, 8)) -> bytes:
    """The bytes of its PNG file."""
    file = io.BytesIO()
    picture(seed, size).save(file, format="PNG")
    return file.getvalue()


def image_folder(folder: Path, count: int = 4) -> Path:
    """A folder with images 0.png, 1.png ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(png(i))
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSON or JSON Lines file, by the ending."""
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path | str, images: Path | None = None, **said: Any) -> tuple[list[Problem], Quarantine]:
    """The problems of a source and what was set aside."""
    quarantine = Quarantine()
    folder = images or Path(path).parent
    check = said.pop("check", "decode")
    files = ImageFiles(folder, folder / "cache" / "kept", said.pop("limits", ImageLimits()), check)
    return list(read_problems(Source(path=str(path), **said), files, quarantine)), quarantine


def reasons(quarantine: Quarantine) -> list[tuple[int, str, str]]:
    """(row, field, reason) of each row that was set aside."""
    return [(one.row, one.field, one.reason) for one in quarantine.listed]
