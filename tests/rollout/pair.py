"""The C++ scheduler and its specification, driven side by side and compared after every call.

`python -m tests.rollout.pair --steps 1000000` replays that many random calls and prints how many of each kind.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter

import numpy as np

from mstar_kernels import _C
from tests.rollout.oracle import DECODE, EXTEND, IDLE, PREFILL, Oracle
from tests.rollout.trace_holds import vary_holds, with_holds

STOP_IDS = (0, 1)
ROW_ARRAYS = (
    "row_ids", "row_groups", "logit_rows", "seed", "problem", "sample", "position", "temperature", "top_k", "top_p",
    "min_p",
)  # fmt: skip
TOKEN_ARRAYS = ("token_ids", "positions", "slots")
DECODE_ARRAYS = (*TOKEN_ARRAYS, "token_rows")
COPY_ARRAYS = ("copy_src", "copy_dst")
KINDS = {IDLE: "idle", PREFILL: "prefill", EXTEND: "extend", DECODE: "decode"}


class Pair:
    """Both schedulers. Every method calls both, asserts that they agree, and checks the invariants.

    `stored` is a shadow of the cache: by slot, which (group, row, sequence index) was written there last. A step may
    read a position only if the shadow says that it holds that very token. `origins` is by group: whose prompt it has,
    which stem (a row), the prompt's length, and the sequence index from which on its rows store tokens of their own.
    """

    def __init__(self, **options) -> None:
        options = {"stop_ids": list(STOP_IDS), "record_width": 2} | options
        self.ours, self.oracle = _C.Scheduler(**options), Oracle(**options)
        plan = self.ours.plan
        self.views = {name: getattr(plan, name) for name in (*ROW_ARRAYS, *DECODE_ARRAYS, *COPY_ARRAYS)}
        self.block_size, self.width = options["block_size"], options["record_width"]
        self.table, self.free = plan.block_table, options["num_blocks"]
        self.origins: dict[int, tuple] = {}
        self.stored: dict[int, tuple] = {}
        self.seen: Counter[str] = Counter()
        self.draws = 0

    def submit(self, prompt_length: int, max_tokens: int, n: int) -> int | None:
        """Submit to both; the handle, or None when both refuse."""
        handle = self.both("submit", prompt_length=prompt_length, **self.request(max_tokens, n))
        if handle is not None:
            self.origins[handle] = (handle, None, prompt_length, prompt_length)
        return handle

    def hold(self, prompt_length: int, stems: list, offsets: list, fork_rows: int, max_tokens: int) -> int | None:
        """Hold in both; the handle, or None when both refuse."""
        handle = self.both(
            "hold", prompt_length=prompt_length, stems=stems, offsets=offsets, fork_rows=fork_rows,
            max_tokens=max_tokens,
        )  # fmt: skip
        self.seen["hold" if handle is not None else "refused hold"] += 1
        if handle is not None:
            self.origins[handle] = (handle, None, prompt_length, prompt_length)
        return handle

    def fork(self, hold: int, stem: int, offset: int, max_tokens: int, n: int) -> int | None:
        """Fork in both; the handle, or None when both refuse."""
        handle = self.both("fork", hold=hold, stem=stem, offset=offset, **self.request(max_tokens, n))
        self.seen["fork" if handle is not None else "refused fork"] += 1
        if handle is not None:
            root = next(other for other in self.oracle.holds() if other.handle == hold)
            length = root.prompt_length
            self.origins[handle] = (hold, root.rows[stem].id, length, length + offset - 1)
        return handle

    def release(self, hold: int) -> bool:
        """Release in both; False when both refuse."""
        held = len(self.oracle.holds())
        self.both("release", hold=hold)
        released = len(self.oracle.holds()) < held
        self.seen["release" if released else "refused release"] += 1
        return released

    def request(self, max_tokens: int, n: int) -> dict:
        """What a group of n rows is submitted or forked with."""
        index = self.oracle.next_handle
        return dict(
            max_tokens=max_tokens, seed=2**64 - 1 - index, problem=index, samples=list(range(3, 3 + n)),
            temperature=[0.5 * (i % 3) for i in range(n)], top_k=[index] * n,
            top_p=[1.0 - 0.25 * (i % 2) for i in range(n)], min_p=[0.125] * n,
        )  # fmt: skip

    def both(self, method: str, **given) -> int | None:
        """Call a method of both; what they return, or None when both refuse."""
        try:
            wanted = getattr(self.oracle, method)(**given)
        except ValueError:
            try:
                getattr(self.ours, method)(**given)
            except ValueError:
                return None
            raise AssertionError("the oracle refuses, the scheduler does not") from None
        assert getattr(self.ours, method)(**given) == wanted
        return wanted

    def next(self) -> int:
        """Plan in both; the kind."""
        kind = self.ours.next_plan()
        assert kind == self.oracle.next_plan(), KINDS[kind]
        self.seen[KINDS[kind]] += 1
        if kind != IDLE:
            self.compare_plan(kind, self.oracle.plan)
        return kind

    def plan_ahead(self) -> bool:
        """Plan the next decode step before this one ends, in both; whether they did."""
        planned = self.ours.plan_ahead()
        assert planned == self.oracle.plan_ahead()
        self.seen["ahead" if planned else "not ahead"] += 1
        if planned:
            alive = self.oracle.ahead["row_ids"] != self.oracle.plan["row_ids"]
            self.seen["ahead of a thinned step"] += alive
            self.compare_plan(DECODE, self.oracle.ahead)
        return planned

    def compare_plan(self, kind: int, wanted: dict) -> None:
        """Every array of the plan equals the specification's."""
        plan = self.ours.plan
        assert plan.kind == kind
        counts = (plan.num_rows, plan.num_tokens, plan.num_copies)
        tokens = DECODE_ARRAYS if kind == DECODE else TOKEN_ARRAYS
        for names, count in zip((ROW_ARRAYS, tokens, COPY_ARRAYS), counts):
            for name in names:
                assert self.views[name][:count].tolist() == wanted[name], name
        assert plan.num_draws == len(wanted["drawing"])
        if kind != DECODE:
            assert plan.group_ids[: plan.num_groups].tolist() == wanted["group_ids"]
            assert plan.token_begin[: plan.num_groups + 1].tolist() == wanted["token_begin"]
        assert self.nodes() == wanted["nodes"]
        self.seen["dropped prompt"] += kind == PREFILL and plan.num_rows == 0
        self.seen["preempting step"] += wanted["preempted"] > 0
        held = {hold.handle for hold in self.oracle.holds()}
        self.seen["stems"] += bool(held & set(wanted["row_groups"]))
        above = [sum(begin <= r < end for begin, end, *_ in wanted["nodes"]) for r in range(plan.num_rows)]
        self.seen["deep tree"] += max(above, default=0) > 3

    def nodes(self) -> list[tuple]:
        """The plan's nodes in the oracle's form."""
        plan, size = self.ours.plan, self.block_size
        count = plan.num_nodes
        names = ("node_row_begin", "node_row_end", "node_start", "node_length", "node_table")
        return [
            (begin, end, start, length, self.table[table, : -(-length // size)].tolist())
            for begin, end, start, length, table in zip(*(getattr(plan, name)[:count].tolist() for name in names))
        ]

    def run_step(self) -> None:
        """Play the model: copy, write and read the shadow cache as the plan says. Only a committed step writes."""
        plan, size = self.oracle.plan, self.block_size
        copied = {}
        for src, dst in zip(plan["copy_src"], plan["copy_dst"]):
            assert dst not in copied and src != dst
            copied[dst] = [self.stored.get(src * size + i) for i in range(size)]
        assert not copied.keys() & set(plan["copy_src"]), "a copy reads what another one writes"
        for dst, tokens in copied.items():
            self.stored.update({dst * size + i: token for i, token in enumerate(tokens)})
        assert len(set(plan["slots"])) == len(plan["slots"]), "two tokens in one slot"
        begin = plan["token_begin"]
        for i, (slot, position) in enumerate(zip(plan["slots"], plan["positions"])):
            if plan["kind"] == DECODE:
                owner, handle = plan["row_ids"][i], plan["row_groups"][i]
            else:
                g = next(g for g in range(len(begin) - 1) if begin[g] <= i < begin[g + 1])
                handle = plan["group_ids"][g]
                owner = plan["row_ids"][g] if plan["kind"] == EXTEND else None
            self.stored[slot] = self.token(handle, owner, position)
        rows = list(zip(plan["row_ids"], plan["row_groups"]))
        owners: dict[int, tuple] = {}
        for row_begin, row_end, start, length, blocks in plan["nodes"]:
            for block in blocks:
                assert owners.setdefault(block, (row_begin, row_end)) == (row_begin, row_end), "a block in two nodes"
            for offset in range(length):
                token = self.stored[blocks[offset // size] * size + offset % size]
                for row, handle in rows[row_begin:row_end]:
                    assert token == self.token(handle, row, start + offset)

    def token(self, handle: int, row: int | None, position: int) -> tuple:
        """Which token a row of a group has at a sequence index: whose it is, and the index."""
        root, stem, prompt_length, own = self.origins[handle]
        if position < own:
            return root, None if position < prompt_length else stem, position
        return handle, row, position

    def commit(self, stop_share: float, rng: random.Random, shadow: bool = True) -> None:
        """Commit made-up tokens, each a stop id with this probability."""
        if shadow:
            self.run_step()
        count = len(self.oracle.plan["drawing"])
        tokens = [rng.choice(STOP_IDS) if rng.random() < stop_share else rng.randrange(2, 99) for _ in range(count)]
        records = [[float(self.draws + i)] * self.width for i in range(count)]
        self.draws += count
        self.ours.commit(np.array(tokens, np.int32), np.array(records, np.float32).reshape(count, self.width))
        self.oracle.commit(tokens, records)

    def rollback(self) -> None:
        """Undo in both."""
        if self.oracle.ahead is not None or "grown" in self.oracle.plan:
            self.seen["rollback of a step ahead"] += 1
            self.ours.rollback()
            return self.oracle.rollback()
        held = {hold.handle for hold in self.oracle.holds()}
        self.seen["rollback of stems"] += bool(held & set(self.oracle.plan["row_groups"]))
        forks = {group.handle for group, row in self.oracle.rows_in("running") if group.root and not row.tokens}
        self.seen["rollback of forks"] += bool(forks & set(self.oracle.plan["row_groups"]))
        self.ours.rollback()
        self.oracle.rollback()
        self.seen["rollback"] += 1

    def abort(self, handle: int) -> None:
        """End a group in both."""
        self.ours.abort(handle)
        self.oracle.abort(handle)
        self.seen["abort"] += 1

    def collect(self) -> None:
        """Take what ended and compare."""
        ready = self.ours.ready()
        assert ready == self.oracle.ready()
        self.seen["ready"] += len(ready)
        ended = self.ours.finished()
        assert ended == self.oracle.finished()
        for handle in ended:
            result = self.ours.take(handle)
            assert {name: array.tolist() for name, array in result.items()} == self.oracle.take(handle)

    def check(self, audit: bool = True) -> None:
        """Counts and invariants."""
        assert self.ours.stats() == self.oracle.stats()
        assert self.ours.has_work() == self.oracle.has_work()
        if audit:
            self.ours.audit()
        if not self.oracle.live:
            assert self.ours.stats()["free_blocks"] == self.free


def random_options(rng: random.Random) -> dict:
    """A small scheduler; mostly with a pool hardly larger than one row needs, so that rows are preempted."""
    block_size, length = rng.choice((1, 2, 3, 4, 8)), rng.randint(8, 48)
    max_rows = rng.randint(1, 8)
    return dict(
        num_blocks=-(-length // block_size) + rng.choice((0, 2, 5, 20)), block_size=block_size,
        max_rows=max_rows, max_prefill_tokens=rng.randint(1, 40), max_sequence_length=length,
        policy=rng.choice(("auto", "no_evict", "watermark", "watermark")), watermark=rng.choice((0.0, 0.05, 0.3)),
        admit_rows=rng.choice((1, 1, rng.randint(1, max_rows))),
    )  # fmt: skip


def replay(
    steps: int, seed: int, shadow: bool = True, calls_per_scheduler: int = 400, holds: bool = False
) -> Counter[str]:
    """Random calls until `steps` plans were made, on ever new schedulers; what was seen."""
    rng, total = random.Random(seed), Counter()
    while total["plans"] < steps:
        pair = Pair(**(with_holds(random_options(rng), rng) if holds else random_options(rng)))
        size, limit = pair.block_size, pair.oracle.max_sequence_length
        stop_share, waiting = rng.choice((0.0, 0.05, 0.3)), rng.choice((2, 6))
        for _ in range(calls_per_scheduler):
            if len(pair.oracle.live) < waiting and rng.random() < 0.5:
                prompt = rng.choice((rng.randint(1, limit), size * rng.randint(1, 4), rng.randint(1, 6)))
                pair.submit(prompt, rng.randint(1, max(1, limit - prompt)), rng.randint(1, pair.oracle.max_rows))
            if holds:
                vary_holds(pair, rng)
            step(pair, rng, stop_share, shadow)
        while pair.oracle.live:
            for hold in pair.oracle.holds():
                pair.release(hold.handle)
            step(pair, rng, stop_share, shadow)
        pair.check()
        pair.collect()
        assert pair.ours.stats()["free_blocks"] == pair.free
        total += pair.seen
        total["preempted rows"] += pair.ours.stats()["preemptions"]
        total["plans"] = sum(total[kind] for kind in KINDS.values())
    return total


def step(pair: Pair, rng: random.Random, stop_share: float, shadow: bool) -> None:
    """One plan, mostly committed, now and then rolled back; aborts between and during steps."""
    fate = rng.random()
    if fate < 0.01 and pair.oracle.live:
        pair.abort(rng.choice(pair.oracle.live).handle)
    if pair.next() != IDLE:
        if fate > 0.99 and pair.oracle.live:
            pair.abort(rng.choice(pair.oracle.live).handle)
        if 0.5 < fate < 0.55:
            pair.rollback()
        elif 0.6 < fate < 0.8:
            run_ahead(pair, rng, stop_share, shadow)
        else:
            pair.commit(stop_share, rng, shadow)
    pair.check(audit=shadow)
    pair.collect()


def run_ahead(pair: Pair, rng: random.Random, stop_share: float, shadow: bool) -> None:
    """Steps planned each before the one in front of it has ended, until one may not be, or by chance."""
    while True:
        planned = pair.plan_ahead()
        fate = rng.random()
        if fate < 0.03 and pair.oracle.live:
            pair.abort(rng.choice(pair.oracle.live).handle)
        if fate > 0.95 and planned:
            pair.rollback()
            planned = pair.plan_ahead() if fate > 0.97 else False
        if not planned:
            break
        pair.commit(stop_share, rng, shadow)
        pair.check(audit=shadow)
        pair.collect()
        if 0.1 < fate < 0.15:
            pair.submit(rng.randint(1, 6), rng.randint(1, 4), 1)
        if 0.2 < fate < 0.3:
            break
    if rng.random() < 0.1:
        pair.rollback()
    else:
        pair.commit(stop_share, rng, shadow)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--holds", action="store_true", help="stems are held and forked as well")
    parser.add_argument("--shadow", action="store_true", help="also play the model on a shadow cache (slower)")
    args = parser.parse_args()
    for name, count in sorted(replay(args.steps, args.seed, args.shadow, holds=args.holds).items()):
        print(f"{name:16} {count}")


if __name__ == "__main__":
    main()
