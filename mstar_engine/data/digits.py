"""The default data set: arithmetic on handwritten digits that the question names by the colour of their tile.

Small enough to train on a laptop in minutes, yet the real problem in little: the policy must look (which patch is
red?), read (a scan it has never seen) and reason (steps, then an answer), and the gold answers are known. Every problem
is a pure function of (split, seed, index): asking for more problems never changes those already drawn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from mstar_engine.data.tiles import Tile, render, scans, scatter
from mstar_engine.types import Problem

FAMILIES = ("sum", "difference", "three-sum")
OOD_FAMILY = "sum-difference"
SPLITS = ("train", "validation", "test", "ood")
TILES = (3, 5)
OOD_TILES = 6


def _question(family: str, colours: Sequence[str]) -> str:
    """The question of a family about tiles of these colours, in order."""
    if family == "difference":
        return f"What is the {colours[0]} tile minus the {colours[1]} tile?"
    if family == OOD_FAMILY:
        return f"What is the sum of the {colours[0]} and {colours[1]} tiles minus the {colours[2]} tile?"
    return f"What is the sum of the {' and '.join(colours)} tiles?"


def _signs(family: str) -> tuple[int, ...]:
    """The sign of each operand after the first."""
    return {"sum": (1,), "difference": (-1,), "three-sum": (1, 1), OOD_FAMILY: (1, -1)}[family]


def _solve(family: str, operands: Sequence[Tile]) -> tuple[list[str], int]:
    """The steps of a worked solution (readings, then equations) and the answer."""
    steps = [f"{tile.colour} {tile.digit}" for tile in operands]
    total = operands[0].digit
    for sign, tile in zip(_signs(family), operands[1:]):
        result = total + sign * tile.digit
        steps.append(f"{total} {'+' if sign > 0 else '-'} {tile.digit} = {result}")
        total = result
    return steps, total


def _compose(rng: random.Random, *, id: str, split: str, family: str, tiles: int, worked: bool) -> Problem:
    """Draw one problem of a family on an image of `tiles` tiles with scans of `split`."""
    drawn = scatter(rng, tiles, scans(split))
    operands = drawn[: len(_signs(family)) + 1]
    asked = [tile.colour for tile in operands]
    if worked and all(sign > 0 for sign in _signs(family)):  # a sum in any order: it has several right solutions
        rng.shuffle(operands)
    steps, answer = _solve(family, operands)
    return Problem(
        id=id,
        question=_question(family, asked),
        images=(render(drawn),),
        gold=str(answer),
        source=family if tiles <= TILES[1] else f"{family}-{tiles}-tiles",
        response="\n\n".join([*steps, f"# Answer {answer}"]) if worked else None,
    )


def _stream(name: str, count: int, seed: int) -> list[tuple[str, random.Random]]:
    """Ids and generators of `count` problems: each generator depends on (name, seed, index) only."""
    if count < 0:
        raise ValueError(f"{name}: count={count}; allowed: 0 or more")
    return [(f"{name}-{i:06d}", random.Random(f"{name}/{seed}/{i}")) for i in range(count)]


def digits_problems(split: str, count: int, seed: int = 0) -> list[Problem]:
    """The first `count` problems of a split: "train", "validation", "test" or "ood".

    `source` is the question family. "ood" uses test scans and alternates between a family that is never trained on and
    images with more tiles than any trained on.
    """
    if split not in SPLITS:
        raise ValueError(f"digits: no split {split!r}; allowed: {', '.join(SPLITS)}")
    problems = []
    for i, (id, rng) in enumerate(_stream(split, count, seed)):
        if split != "ood":
            family, tiles = rng.choice(FAMILIES), rng.randint(*TILES)
        elif i % 2 == 0:
            family, tiles = OOD_FAMILY, rng.randint(*TILES)
        else:
            family, tiles = rng.choice(FAMILIES), OOD_TILES
        pool = "test" if split == "ood" else split
        problems.append(_compose(rng, id=id, split=pool, family=family, tiles=tiles, worked=False))
    return problems


def demonstrations(count: int, seed: int = 0) -> list[Problem]:
    """Worked problems (`response` set) of the trained families on training scans, for the warm-up."""
    return [
        _compose(rng, id=id, split="train", family=rng.choice(FAMILIES), tiles=rng.randint(*TILES), worked=True)
        for id, rng in _stream("demonstration", count, seed)
    ]


def captions(count: int, seed: int = 0) -> list[Problem]:
    """Reading without arithmetic (`response` set): every tile's colour and digit, in the order that the prompt asks."""
    problems = []
    for id, rng in _stream("caption", count, seed):
        drawn = scatter(rng, rng.randint(*TILES), scans("train"))
        problems.append(
            Problem(
                id=id,
                question=f"Read the {' and '.join(tile.colour for tile in drawn)} tiles.",
                images=(render(drawn),),
                source="caption",
                response="\n\n".join(f"{tile.colour} {tile.digit}" for tile in drawn),
            )
        )
    return problems
