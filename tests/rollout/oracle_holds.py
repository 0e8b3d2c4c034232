"""The specification's holds: stems that stay in the cache, and the groups forked from them.

Nothing is split here: the nodes that forks share follow from the declared offsets whenever a plan is described.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

from tests.rollout.oracle_blocks import Blocks, Group, Row


@dataclass(slots=True, eq=False)
class Hold(Group):
    """A held group. Its rows are stems, whose tokens reach to the last offset; they do not run."""

    offsets: list[list[int]] = field(default_factory=list)
    fork_rows: int = 0
    worst: int = 0
    ready: bool = False

    @property
    def nodes(self) -> int:
        """Nodes of the tree it may need: the prompt, each stem, each offset."""
        return 1 + sum(1 + len(offsets) for offsets in self.offsets)


class Holds(Blocks):
    """Held groups beside the others."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self.unreported_ready: list[int] = []

    def hold(self, prompt_length, stems, offsets, fork_rows, max_tokens) -> int:
        """Queue a held group. ValueError when it can never be held."""
        if self.evicts or not stems or len(stems) != len(offsets):
            raise ValueError
        for stem, allowed in zip(stems, offsets, strict=True):
            if not allowed or sorted(set(allowed)) != list(allowed) or allowed[0] < 1 or allowed[-1] > len(stem):
                raise ValueError
            if any(token < 0 for token in stem):
                raise ValueError
        if prompt_length < 1 or max_tokens < 1 or not 1 <= fork_rows <= self.max_rows:
            raise ValueError
        if prompt_length + max(map(len, stems)) + max_tokens > self.max_sequence_length:
            raise ValueError
        size, tail = self.block_size, prompt_length % self.block_size
        stored = sum(math.ceil((tail + allowed[-1] - 1) / size) for allowed in offsets)
        worst = prompt_length // size + stored + fork_rows * math.ceil((size - 1 + max_tokens) / size)
        n = len(stems)
        params = {
            "sample": list(range(n)), "temperature": [1.0] * n, "top_k": [0] * n, "top_p": [1.0] * n,
            "min_p": [0.0] * n,
        }  # fmt: skip
        hold = Hold(
            self.next_handle, prompt_length, max_tokens, 0, 0, params,
            offsets=offsets, fork_rows=fork_rows, worst=worst,
        )  # fmt: skip
        if worst > self.num_blocks or hold.nodes > self.max_held_nodes:
            raise ValueError
        for i, stem in enumerate(stems):
            hold.rows.append(Row(self.next_row + i, i, tokens=list(stem[: offsets[i][-1]])))
        self.next_handle += 1
        self.next_row += n
        self.live.append(hold)
        return hold.handle

    def ready(self) -> list[int]:
        """Holds that have become ready since the last call."""
        reported, self.unreported_ready = self.unreported_ready, []
        return reported

    def fork(
        self, hold, stem, offset, max_tokens, seed, problem, samples, temperature, top_k, top_p, min_p
    ) -> int:  # fmt: skip
        """Start a group below the first `offset` tokens of a stem. ValueError when the hold does not allow it."""
        assert self.plan is None
        root = next((other for other in self.holds() if other.handle == hold and other.ready), None)
        n = len(samples)
        if root is None or not 0 <= stem < len(root.rows) or offset not in root.offsets[stem]:
            raise ValueError
        if not 1 <= max_tokens <= root.max_tokens or not 1 <= n <= root.fork_rows - self.alive_rows(root):
            raise ValueError
        params = {"sample": samples, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        length = root.prompt_length + offset
        whole, tokens_left = divmod(length - 1, self.block_size)
        path = root.prompt + root.rows[stem].blocks
        group = Group(
            self.next_handle, length, max_tokens, seed, problem, params, admitted=True, prompt=path[:whole], root=root,
            stem=stem, offset=offset, last_token=root.rows[stem].tokens[offset - 1],
        )  # fmt: skip
        for i in range(n):
            row = Row(self.next_row + i, i, state="running", blocks=path[whole : whole + 1] if tokens_left else [])
            for block in row.blocks:
                self.users[block] += 1
            group.rows.append(row)
        self.next_handle += 1
        self.next_row += n
        self.live.append(group)
        self.live.sort(key=lambda other: ((other.root or other).handle, other.stem, other.offset))
        return group.handle

    def release(self, hold: int, forced: bool = False) -> None:
        """Give the stems back. ValueError while a forked row is alive, unless `forced`: then they end."""
        assert self.plan is None
        root = next((other for other in self.holds() if other.handle == hold), None)
        if root is None or (self.alive_rows(root) and not forced):
            raise ValueError
        for group in self.forks(root):
            self.abort(group.handle)
        for row in root.rows:
            self.drop(root, row)
        self.live.remove(root)
        self.unreported_ready = [handle for handle in self.unreported_ready if handle != hold]

    def holds(self) -> list[Hold]:
        """Held groups that were not released."""
        return [group for group in self.live if isinstance(group, Hold)]

    def forks(self, hold: Hold) -> list[Group]:
        """Groups below the hold that have not ended, oldest first."""
        return sorted((group for group in self.live if group.root is hold), key=lambda group: group.handle)

    def alive_rows(self, hold: Hold) -> int:
        """Rows below the hold that have not ended."""
        return sum(row.state != "done" for group in self.forks(hold) for row in group.rows)

    # --- what admission counts ---

    def places_of(self, group: Group) -> int:
        """Row places the group takes when it is admitted."""
        return group.fork_rows if isinstance(group, Hold) else len(group.rows)

    def reserved(self) -> int:
        """Row places kept for rows that may be forked and are not."""
        return sum(hold.fork_rows - self.alive_rows(hold) for hold in self.holds() if hold.admitted)

    def held_nodes(self) -> int:
        """Nodes that the admitted holds may need."""
        return sum(hold.nodes for hold in self.holds() if hold.admitted)

    def worst_of(self, group: Group) -> int:
        """Blocks the group may come to hold from now on; a fork's are its hold's."""
        if isinstance(group, Hold):
            return group.worst
        if group.root is not None:
            return 0
        return self.worst_case(group.prompt_length, group.max_tokens, sum(row.state != "done" for row in group.rows))

    # --- steps ---

    def growing(self) -> list[tuple[Hold, Row]]:
        """Stems of admitted holds with tokens to compute; forks feed all of a stem of one token."""
        return [(hold, row) for hold in self.holds() for row in hold.rows if row.state == "stem" and row.tokens[1:]]

    def compute(self) -> dict | None:
        """Compute stems, oldest first, as many as one plan may hold."""
        rows, copies, tokens = [], [], 0
        for hold, row in self.growing():
            if rows and (len(rows) == self.max_rows or tokens + len(row.tokens) - 1 > self.max_prefill_tokens):
                break
            if self.tail(hold) and self.users[row.blocks[0]] > 1:
                copies.append((self.make_private(row, 0), row.blocks[0]))
            self.grow(hold, row)
            row.state = "resident"
            rows.append((hold, row))
            tokens += len(row.tokens) - 1
        return self.extend(rows, copies) if rows else None

    def complete(self) -> None:
        """After a step that ran: which holds have all their stems."""
        growing = [hold for hold, _ in self.growing()]
        for hold in self.holds():
            if hold.admitted and not hold.ready and hold not in growing:
                hold.ready = True
                self.unreported_ready.append(hold.handle)

    def inner_nodes(self, group: Group) -> list[tuple]:
        """The nodes above the group's rows as (name, first block, end), the lowest first.

        Below the prompt's full blocks, a stem is cut wherever a fork may begin.
        """
        root = group.root or group
        full = root.prompt_length // self.block_size
        cuts = {full, len(group.prompt)}
        if group.root is not None:
            starts = [(root.prompt_length + offset - 1) // self.block_size for offset in root.offsets[group.stem]]
            cuts |= {start for start in starts if start < len(group.prompt)}
        bounds = sorted(cuts)
        pieces = [((root.handle, group.stem, begin), begin, end) for begin, end in pairwise(bounds)]
        return pieces[::-1] + ([((root.handle, None, 0), 0, full)] if full else [])

    def tree(self, rows: list[tuple[Group, Row]], unfed: int) -> list[tuple]:
        """The nodes above the rows' own parts, in the order in which rows need them, then those."""
        inner: dict[tuple, list] = {}
        leaves = []
        size, last = self.block_size, None
        for r, (group, row) in enumerate(rows):
            if group is not last:
                last, start = group, len(group.prompt) * size
                above = [
                    inner.setdefault(name, [r, r, begin * size, (end - begin) * size, group.prompt[begin:end]])
                    for name, begin, end in self.inner_nodes(group)
                ]
            for node in above:
                node[1] = r + 1
            leaves.append((r, r + 1, start, group.prompt_length + len(row.tokens) - unfed - start, row.blocks[:]))
        return [tuple(node) for node in inner.values()] + leaves
