"""Pictures of coloured tiles that each bear one handwritten digit, the raw material of the default data set.

The digits are scikit-learn's bundled scans (1,797 real 8x8 images, no download). Scans are divided among the splits
before anything is composed, so no stroke of a validation or test picture was ever seen in training. A picture is a 4x4
grid of 16-pixel cells: a vision tower with 16-pixel patches sees each tile as exactly one patch.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

COLOURS = {
    "red": (208, 32, 40),
    "blue": (36, 72, 208),
    "green": (28, 136, 52),
    "gold": (214, 160, 8),
    "purple": (128, 44, 168),
    "teal": (0, 140, 152),
}
CELL = 16
GRID = 4
SIZE = CELL * GRID
INK = (255, 255, 255)
PAPER = (232, 230, 224)
SPLIT_SCANS = {"train": (0, 1397), "validation": (1397, 1597), "test": (1597, 1797)}


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile: its colour word, the digit on it, the scan (index in scikit-learn's set) and its cell (0 to 15)."""

    colour: str
    digit: int
    scan: int
    cell: int


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """The scans, uint8 [1797, 8, 8] scaled to 0..255, and their labels, int [1797]."""
    bunch = load_digits()
    return np.round(bunch.images * (255 / 16)).astype(np.uint8), bunch.target


@lru_cache(maxsize=1)
def _order() -> tuple[int, ...]:
    """A fixed permutation of the scans, so that every split holds every writer and digit."""
    order = list(range(len(_digits()[1])))
    random.Random("scans").shuffle(order)
    return tuple(order)


def scans(split: str) -> tuple[int, ...]:
    """The indices of the scans that belong to a split: "train", "validation" or "test"; the three are disjoint."""
    if split not in SPLIT_SCANS:
        raise ValueError(f"scans: no split {split!r}; allowed: {', '.join(SPLIT_SCANS)}")
    first, last = SPLIT_SCANS[split]
    return _order()[first:last]


def digit_of(scan: int) -> int:
    """The digit, 0 to 9, that a scan shows."""
    return int(_digits()[1][scan])


@lru_cache(maxsize=4096)
def _mask(scan: int) -> Image.Image:
    """The strokes of a scan at tile size: how much ink lies on each pixel."""
    return Image.fromarray(_digits()[0][scan]).resize((CELL - 2, CELL - 2), Image.Resampling.BILINEAR)


def render(tiles: tuple[Tile, ...] | list[Tile]) -> Image.Image:
    """Draw tiles on paper: an RGB image of 64x64 pixels."""
    image = Image.new("RGB", (SIZE, SIZE), PAPER)
    for tile in tiles:
        x, y = tile.cell % GRID * CELL + 1, tile.cell // GRID * CELL + 1
        image.paste(COLOURS[tile.colour], (x, y, x + CELL - 2, y + CELL - 2))
        image.paste(INK, (x, y), _mask(tile.scan))
    return image


def scatter(rng: random.Random, count: int, pool: tuple[int, ...]) -> list[Tile]:
    """Draw `count` tiles (at most six: colours do not repeat) with random scans of `pool` on random cells."""
    colours = rng.sample(list(COLOURS), count)
    cells = rng.sample(range(GRID * GRID), count)
    picked = [rng.choice(pool) for _ in range(count)]
    return [Tile(colour=c, digit=digit_of(s), scan=s, cell=cell) for c, s, cell in zip(colours, picked, cells)]
