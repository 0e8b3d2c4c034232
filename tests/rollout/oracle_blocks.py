"""The specification's groups and rows, and which blocks of the cache they hold."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

STOP, LENGTH, ABORT = range(3)


@dataclass(slots=True, eq=False)
class Row:
    """One sequence. `blocks` is its own part of the cache, None while it holds none."""

    id: int
    index: int
    state: str = "waiting"
    blocks: list[int] | None = None
    tokens: list[int] = field(default_factory=list)
    records: list[list[float]] = field(default_factory=list)
    reason: int = ABORT


@dataclass(slots=True, eq=False)
class Group:
    """A prompt and its rows. `prompt` are the prompt's full blocks, None while they are not resident.

    Of a forked group, the prompt reaches to the token `last_token` of the stem, its `offset`-th, which the rows feed
    first, and the blocks belong to the hold `root`.
    """

    handle: int
    prompt_length: int
    max_tokens: int
    seed: int
    problem: int
    params: dict[str, list]
    rows: list[Row] = field(default_factory=list)
    admitted: bool = False
    prompt: list[int] | None = None
    root: Group | None = None
    stem: int = 0
    offset: int = 0
    last_token: int = -1


class Blocks:
    """The pool and what is live. The lowest free block is handed out first."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.free = list(range(num_blocks))
        self.users = [0] * num_blocks
        self.live: list[Group] = []
        """Not ended, oldest first; forks follow their hold by stem, then by offset, then by age."""

    def rows_in(self, state: str) -> list[tuple[Group, Row]]:
        """All rows in a state, in the order of their groups."""
        return [(group, row) for group in self.live for row in group.rows if row.state == state]

    def worst_case(self, prompt_length: int, max_tokens: int, rows: int) -> int:
        """Blocks a group comes to hold if every row runs to its end; the last token drawn is never stored."""
        if max_tokens == 1:
            return math.ceil(prompt_length / self.block_size)
        full, tail = divmod(prompt_length, self.block_size)
        return full + rows * math.ceil((tail + max_tokens - 1) / self.block_size)

    def acquire(self) -> int:
        """Take the lowest free block."""
        block = heapq.heappop(self.free)
        assert self.users[block] == 0
        self.users[block] = 1
        return block

    def give_back(self, block: int) -> None:
        """One user less."""
        self.users[block] -= 1
        if self.users[block] == 0:
            heapq.heappush(self.free, block)

    def drop(self, group: Group, row: Row) -> None:
        """Give back the row's blocks, and the prompt's when no row of the group holds any."""
        if row.blocks is None:
            return
        for block in row.blocks:
            self.give_back(block)
        row.blocks = None
        if group.root is None and all(other.blocks is None for other in group.rows):
            for block in group.prompt:
                self.give_back(block)
            group.prompt = None

    def tail(self, group: Group) -> int:
        """Prompt tokens in the partial last block."""
        return group.prompt_length % self.block_size

    def slot(self, group: Group, row: Row, position: int) -> int:
        """Where the token with this sequence index is stored."""
        blocks = group.prompt + row.blocks
        return blocks[position // self.block_size] * self.block_size + position % self.block_size

    def hold_prompt(self, group: Group) -> list[int]:
        """Take the prompt's blocks; its tail block, or none, as a list."""
        group.prompt = [self.acquire() for _ in range(group.prompt_length // self.block_size)]
        return [self.acquire()] if self.tail(group) else []

    def grow(self, group: Group, row: Row) -> None:
        """Take blocks for all tokens of the row but the last."""
        stored = self.tail(group) + len(row.tokens) - 1
        while len(row.blocks) * self.block_size < stored:
            row.blocks.append(self.acquire())

    def make_private(self, row: Row, index: int) -> int:
        """Replace a shared block by a fresh one; the block to copy from."""
        source, row.blocks[index] = row.blocks[index], self.acquire()
        self.give_back(source)
        return source

    def write_index(self, group: Group, row: Row) -> int:
        """Which of the row's own blocks its last token goes to."""
        return (group.prompt_length + len(row.tokens) - 1) // self.block_size - len(group.prompt)

    def lacking(self) -> int:
        """Blocks missing for every running row to store its last token in a block of its own."""
        need, shared = 0, {}
        for group, row in self.rows_in("running"):
            index = self.write_index(group, row)
            if index == len(row.blocks):
                need += 1
            else:
                shared[row.blocks[index]] = self.users[row.blocks[index]] - 1
        return need + sum(shared.values()) - len(self.free)
