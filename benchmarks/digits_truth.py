"""Which steps of a response to a digits problem are sound, by the picture itself: for auditing, never for training.

A reading is sound when it names a tile that the question asks for, not yet read, with its digit; an equation when it
follows from the readings in their order; the answer when it is the last result. A step is clean when it and all steps
before it are sound. Problems are drawn anew from their id, and the drawing is checked against their gold answer.

    python -m benchmarks.digits_truth RUN [RUN ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mstar_engine.config_parse import load_config
from mstar_engine.data.digits import FAMILIES, TILES
from mstar_engine.data.tiles import Tile, scans, scatter

_COLUMNS = ["problem_id", "source", "gold", "text", "correct", "selected", "score"]


def asked_tiles(problem_id: str, family: str, gold: str, seed: int) -> list[Tile]:
    """The tiles that a training or validation problem asks for, in the order of its question."""
    split, number = problem_id.rsplit("-", 1)
    rng = random.Random(f"{split}/{seed}/{int(number)}")
    drawn_family, count = rng.choice(FAMILIES), rng.randint(*TILES)
    tiles = scatter(rng, count, scans(split))[: 3 if family == "three-sum" else 2]
    assert drawn_family == family and str(_chain(family, [t.digit for t in tiles])[1]) == gold, problem_id
    return tiles


def _chain(family: str, digits: list[int]) -> tuple[list[str], int]:
    total, steps = digits[0], []
    for digit in digits[1:]:
        result = total - digit if family == "difference" else total + digit
        steps.append(f"{total} {'-' if family == 'difference' else '+'} {digit} = {result}")
        total = result
    return steps, total


def clean_steps(text: str, family: str, tiles: list[Tile]) -> list[bool]:
    """Whether each step of `text`, and all before it, are sound."""
    wanted = [f"{tile.colour} {tile.digit}" for tile in tiles]
    clean, read, found, rest = True, [], [], []
    for index, step in enumerate(part.strip() for part in text.split("\n\n")):
        if index < len(wanted):
            at_place = step == wanted[index] if family == "difference" else step in wanted
            clean = clean and at_place and step not in read
            read.append(step)
        else:
            if index == len(wanted) and clean:
                equations, total = _chain(family, [int(reading.split()[1]) for reading in read])
                rest = [*equations, f"# Answer {total}"]
            clean = clean and index - len(wanted) < len(rest) and step == rest[index - len(wanted)]
        found.append(clean)
    return found


def audit(files: Iterable[Path], seed: int) -> list[dict[str, Any]]:
    """For the rollouts of each iteration: the clean share of correct and of kept responses, and how often a clean
    correct text scores above an unclean correct one of the same problem (0.5 is chance; None without scores)."""
    found = []
    for file in files:
        rows = [row for row in pq.read_table(file, columns=_COLUMNS).to_pylist() if row["correct"]]
        texts: dict[str, dict[str, dict]] = {}
        for row in rows:
            tiles = asked_tiles(row["problem_id"], row["source"], row["gold"], seed)
            row["clean"] = all(clean_steps(row["text"], row["source"], tiles))
            texts.setdefault(row["problem_id"], {}).setdefault(row["text"].strip(), row)
        kept = [row["clean"] for row in rows if row["selected"]]
        pairs = [
            (good["score"] > bad["score"]) + 0.5 * (good["score"] == bad["score"])
            for distinct in texts.values()
            for good in distinct.values()
            for bad in distinct.values()
            if good["clean"] and not bad["clean"] and good["score"] is not None
        ]
        found.append(
            {
                "rollouts": file.stem,
                "clean_of_correct": sum(row["clean"] for row in rows) / len(rows),
                "clean_of_kept": sum(kept) / len(kept),
                "distinct_correct_a_problem": sum(map(len, texts.values())) / len(texts),
                "clean_above_unclean": sum(pairs) / len(pairs) if pairs else None,
            }
        )
    return found


def main() -> None:
    """Command line: a line a run, first to last iteration."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits_truth")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    print(f"{'run':<40} {'clean, of the kept':>20} {'clean above unclean':>20}")
    found = {}
    for run in options.runs:
        seed = load_config(run / "config.yaml", []).seed
        name = "/".join(run.parts[-2:])
        found[name] = audit(sorted((run / "rollouts").glob("iteration_*.parquet")), seed)
        first, last = found[name][0], found[name][-1]
        kept = f"{100 * first['clean_of_kept']:.0f} to {100 * last['clean_of_kept']:.0f}%"
        pairs = [one["clean_above_unclean"] for one in (first, last)]
        print(f"{name:<40} {kept:>20} {'' if None in pairs else '{:.2f} to {:.2f}'.format(*pairs):>20}", flush=True)
    if options.json is not None:
        command = " ".join(["python -m benchmarks.digits_truth", *map(str, options.runs)])
        record = {"runs": found, "date": datetime.date.today().isoformat(), "command": command}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
