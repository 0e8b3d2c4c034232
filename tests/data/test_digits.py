"""The default data set: disjoint scans, right golds, determinism."""

import re

import numpy as np
import pytest

from mstar_engine.data import digits, tiles
from mstar_engine.data.digits import FAMILIES, captions, demonstrations, digits_problems
from mstar_engine.data.tiles import CELL, COLOURS, GRID, Tile, render, scans


def same(a, b):
    return (a.id, a.question, a.gold, a.source, a.response) == (b.id, b.question, b.gold, b.source, b.response) and (
        a.images[0].tobytes() == b.images[0].tobytes()
    )


def read_tiles(image, split):
    """Oracle: colour -> digit, by comparing every cell with every rendered tile of a split."""
    pixels = np.asarray(image).astype(int)
    found = {}
    for cell in range(GRID * GRID):
        y, x = cell // GRID * CELL, cell % GRID * CELL
        patch = pixels[y : y + CELL, x : x + CELL]
        if (patch == tiles.PAPER).all():
            continue
        colour = min(COLOURS, key=lambda name: np.abs(patch[1:-1, 1:-1] - np.array(COLOURS[name])).sum())
        for scan in scans(split):
            drawn = np.asarray(render([Tile(colour, tiles.digit_of(scan), scan, cell)])).astype(int)
            if np.array_equal(drawn[y : y + CELL, x : x + CELL], patch):
                found[colour] = tiles.digit_of(scan)
                break
    return found


def test_scans_of_the_splits_never_overlap():
    parts = [set(scans(split)) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    strokes = [{tiles._digits()[0][scan].tobytes() for scan in part} for part in parts]
    assert not (strokes[0] & strokes[1] or strokes[0] & strokes[2] or strokes[1] & strokes[2])
    for part in parts:
        assert {tiles.digit_of(scan) for scan in part} == set(range(10))


@pytest.mark.parametrize(
    ("split", "pool"), [("train", "train"), ("validation", "validation"), ("test", "test"), ("ood", "test")]
)
def test_gold_follows_from_the_image(split, pool):
    for problem in digits_problems(split, 6, seed=3):
        held = read_tiles(problem.images[0], pool)
        operands = [held[word] for word in re.findall("|".join(COLOURS), problem.question)]
        if "difference" in problem.source:
            operands[-1] *= -1
        assert problem.gold == str(sum(operands))
        assert problem.images[0].size == (64, 64)
        assert len(held) == 6 if problem.source.endswith("6-tiles") else 3 <= len(held) <= 5


@pytest.mark.parametrize("split", digits.SPLITS)
def test_a_problem_depends_on_split_seed_and_index_only(split):
    few, many = digits_problems(split, 3, seed=5), digits_problems(split, 8, seed=5)
    assert all(same(a, b) for a, b in zip(few, many))
    assert not any(same(a, b) for a, b in zip(many, digits_problems(split, 8, seed=6)))
    assert many[7].id == f"{split}-000007"


def test_ood_families_and_tile_counts_are_never_trained_on():
    trained = {problem.source for problem in digits_problems("train", 300) + demonstrations(300)}
    ood = {problem.source for problem in digits_problems("ood", 300)}
    assert trained == set(FAMILIES)
    assert ood == {digits.OOD_FAMILY} | {f"{family}-6-tiles" for family in FAMILIES}


def test_demonstrations_end_in_the_gold_answer():
    for problem in demonstrations(50, seed=1):
        steps = problem.response.split("\n\n")
        assert steps[-1] == f"# Answer {problem.gold}"
        for equation in (step for step in steps if "=" in step):
            left, right = equation.split(" = ")
            assert eval(left) == int(right)
    assert any(problem.gold.startswith("-") for problem in demonstrations(50, seed=1))


def test_captions_read_every_tile():
    for problem in captions(4, seed=2):
        held = read_tiles(problem.images[0], "train")
        assert problem.response == "\n\n".join(
            f"{colour} {held[colour]}" for colour in re.findall("|".join(COLOURS), problem.question)
        )
        assert len(held) == problem.response.count("\n\n") + 1


def test_refusals_name_the_value():
    with pytest.raises(ValueError, match="'dev'"):
        digits_problems("dev", 1)
    with pytest.raises(ValueError, match="count=-1"):
        captions(-1)
