"""Random holds, forks and releases for the traces that compare the scheduler with its specification."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.rollout.pair import Pair


def with_holds(options: dict, rng: random.Random) -> dict:
    """Options under which stems can mostly be held: no eviction, longer sequences, more blocks, some nodes."""
    length = options["max_sequence_length"] + rng.choice((0, 30))
    return options | dict(
        max_sequence_length=length, max_rows=options["max_rows"] + rng.choice((0, 8)),
        num_blocks=-(-length // options["block_size"]) * rng.choice((1, 2, 6)) + rng.choice((0, 20)),
        max_held_nodes=rng.choice((0, 6, 20, 60, 60)),
        policy=rng.choice(("auto", "no_evict", "no_evict", options["policy"])),
    )  # fmt: skip


def random_stems(rng: random.Random, count: int, longest: int) -> tuple[list[list[int]], list[list[int]]]:
    """Stems of up to `longest` tokens and where they may fork: often everywhere, often in one place only."""
    stems, offsets = [], []
    for _ in range(count):
        length = rng.randint(1, longest)
        stems.append([rng.randrange(2, 99) for _ in range(length)])
        offsets.append(sorted(rng.sample(range(1, length + 1), rng.choice((1, length, rng.randint(1, length))))))
    return stems, offsets


def vary_holds(pair: Pair, rng: random.Random) -> None:
    """Between two steps: now and then something is held, forked or released, sometimes against the rules."""
    holds, limit, most = pair.oracle.holds(), pair.oracle.max_sequence_length, pair.oracle.max_rows
    if len(holds) < 3 and rng.random() < 0.2:
        prompt = rng.choice((rng.randint(1, limit // 2), rng.randint(1, 8), pair.block_size))
        count, longest = rng.choice((1, 1, 2, 4, 9)), max(1, rng.randint(1, limit - 1) - prompt)
        stems, offsets = random_stems(rng, count, longest)
        left = max(1, limit - prompt - max(map(len, stems)))
        pair.hold(prompt, stems, offsets, rng.randint(1, rng.choice((2, most))), rng.randint(1, rng.choice((left, 9))))
    for hold in holds:
        if rng.random() < (0.3 if hold.ready else 0.02):
            stem = rng.randrange(len(hold.rows))
            declared = hold.offsets[stem]
            offset = rng.choice(declared) if rng.random() < 0.9 else rng.randint(1, limit)
            places = rng.randint(1, max(1, hold.fork_rows - pair.oracle.alive_rows(hold)))
            n = rng.choice((places, places, places, rng.randint(1, most + 1)))
            pair.fork(hold.handle, stem, offset, rng.randint(1, hold.max_tokens + rng.choice((0, 0, 0, 1))), n)
    if holds and rng.random() < 0.03:
        pair.release(rng.choice(holds).handle)
