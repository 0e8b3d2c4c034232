"""The scheduler's specification: the same decisions as `mstar_kernels._C.Scheduler`, in the plainest Python.

Nothing is incremental. Every step looks at all groups anew and recomputes what it needs; a rollback restores a copy
taken before the plan. Blocks are handed out lowest id first, so plans agree to the last integer. A plan is a dict of
lists under the names of the contract, except for the nodes: `nodes` is a list of
(row_begin, row_end, start, length, blocks), since which table row holds a node's blocks is no decision.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

IDLE, PREFILL, EXTEND, DECODE = range(4)
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
    """A prompt and its rows. `prompt` are the prompt's full blocks, None while they are not resident."""

    handle: int
    prompt_length: int
    max_tokens: int
    seed: int
    problem: int
    params: dict[str, list]
    rows: list[Row] = field(default_factory=list)
    admitted: bool = False
    prompt: list[int] | None = None


class Oracle:
    """See the module. The constructor and the methods take what the C++ class takes, lists instead of arrays."""

    def __init__(
        self, num_blocks, block_size, max_rows, max_prefill_tokens, max_sequence_length, stop_ids,
        policy="auto", watermark=0.05, record_width=4, admit_rows=1,
    ):  # fmt: skip
        self.num_blocks, self.block_size, self.max_rows = num_blocks, block_size, max_rows
        self.max_prefill_tokens, self.max_sequence_length = max_prefill_tokens, max_sequence_length
        self.stop_ids, self.record_width, self.admit_rows = set(stop_ids), record_width, admit_rows
        self.evicts, self.switches = policy == "watermark", policy == "auto"
        self.reserve = math.ceil(watermark * num_blocks)
        self.free = list(range(num_blocks))
        self.users = [0] * num_blocks
        self.live: list[Group] = []  # not ended, in order of submission
        self.ended: dict[int, Group] = {}
        self.unreported: list[int] = []
        self.next_handle = self.next_row = 0
        self.plan: dict | None = None
        self.saved: tuple | None = None
        self.pending_aborts: list[int] = []
        self.totals = dict.fromkeys(
            ("prefill_tokens", "extend_tokens", "decode_tokens", "sampled_tokens", "preemptions", "copies"), 0
        )

    # --- groups ---

    def worst_case(self, prompt_length: int, max_tokens: int, rows: int) -> int:
        """Blocks a group comes to hold if every row runs to its end; the last token drawn is never stored."""
        if max_tokens == 1:
            return math.ceil(prompt_length / self.block_size)
        full, tail = divmod(prompt_length, self.block_size)
        return full + rows * math.ceil((tail + max_tokens - 1) / self.block_size)

    def submit(self, prompt_length, max_tokens, seed, problem, samples, temperature, top_k, top_p, min_p) -> int:
        """Queue a group. ValueError when it can never run."""
        n = len(samples)
        if not 1 <= n <= self.max_rows or prompt_length < 1 or max_tokens < 1:
            raise ValueError
        if prompt_length + max_tokens > self.max_sequence_length:
            raise ValueError
        if self.worst_case(prompt_length, max_tokens, 1) > self.num_blocks:
            raise ValueError
        if self.worst_case(prompt_length, max_tokens, n) > self.num_blocks and not self.evicts:
            if not self.switches:
                raise ValueError
            self.evicts = True
        params = {"sample": samples, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        group = Group(self.next_handle, prompt_length, max_tokens, seed, problem, params)
        group.rows = [Row(self.next_row + i, i) for i in range(n)]
        self.next_handle += 1
        self.next_row += n
        self.live.append(group)
        return group.handle

    def abort(self, handle: int) -> None:
        """End a group now, or when the outstanding step ends."""
        if self.plan is not None:
            self.pending_aborts.append(handle)
            return
        for group in [group for group in self.live if group.handle == handle]:
            for row in group.rows:
                if row.state != "done":
                    self.end_row(group, row, ABORT)

    def finished(self) -> list[int]:
        """Handles that ended since the last call."""
        reported, self.unreported = self.unreported, []
        return reported

    def take(self, handle: int) -> dict[str, list]:
        """Results of an ended group, which is forgotten."""
        rows = self.ended.pop(handle).rows
        self.unreported = [other for other in self.unreported if other != handle]
        return {
            "lengths": [len(row.tokens) for row in rows],
            "tokens": [token for row in rows for token in row.tokens],
            "records": [record for row in rows for record in row.records],
            "reasons": [row.reason for row in rows],
        }

    def end_row(self, group: Group, row: Row, reason: int) -> None:
        """Give back what the row held; with the last row the group ends."""
        self.drop(group, row)
        row.state, row.reason = "done", reason
        if all(other.state == "done" for other in group.rows):
            self.live.remove(group)
            self.ended[group.handle] = group
            self.unreported.append(group.handle)

    def has_work(self) -> bool:
        """Whether any group has not ended."""
        return bool(self.live)

    def rows_in(self, state: str) -> list[tuple[Group, Row]]:
        """All rows in a state, oldest first."""
        return [(group, row) for group in self.live for row in group.rows if row.state == state]

    def stats(self) -> dict[str, int]:
        """Totals of committed steps and the state now."""
        return self.totals | {
            "free_blocks": len(self.free),
            "used_blocks": self.num_blocks - len(self.free),
            "waiting": sum(not group.admitted for group in self.live),
            "running": len(self.rows_in("running")),
            "preempted": len(self.rows_in("preempted")),
        }

    # --- blocks ---

    def acquire(self) -> int:
        """Take the lowest free block."""
        block = heapq.heappop(self.free)
        assert self.users[block] == 0
        self.users[block] = 1
        return block

    def release(self, block: int) -> None:
        """One user less."""
        self.users[block] -= 1
        if self.users[block] == 0:
            heapq.heappush(self.free, block)

    def drop(self, group: Group, row: Row) -> None:
        """Release the row's blocks, and the prompt's when no row of the group holds any."""
        if row.blocks is None:
            return
        for block in row.blocks:
            self.release(block)
        row.blocks = None
        if all(other.blocks is None for other in group.rows):
            for block in group.prompt:
                self.release(block)
            group.prompt = None

    def tail(self, group: Group) -> int:
        """Prompt tokens in the partial last block."""
        return group.prompt_length % self.block_size

    def slot(self, group: Group, row: Row, position: int) -> int:
        """Where the token with this sequence index is stored."""
        blocks = group.prompt + row.blocks
        return blocks[position // self.block_size] * self.block_size + position % self.block_size

    # --- steps ---

    def next_plan(self, undoable: bool = True) -> int:
        """Plan a step into `self.plan`; its kind. `undoable=False` skips the copy that rollback needs."""
        assert self.plan is None
        self.saved = self.copy() if undoable else None
        self.plan = self.resume() or self.admit() or self.decode()
        return IDLE if self.plan is None else self.plan["kind"]

    def copy(self) -> tuple:
        """What a plan changes: blocks, and for each group and row what it holds."""
        groups = []
        for group in self.live:
            rows = [(row.state, None if row.blocks is None else row.blocks[:]) for row in group.rows]
            groups.append((group, group.admitted, group.prompt, rows))
        return self.free[:], self.users[:], groups

    def rollback(self) -> None:
        """Forget the outstanding plan."""
        assert self.plan is not None
        self.free, self.users, groups = self.saved
        for group, admitted, prompt, rows in groups:
            group.admitted, group.prompt = admitted, prompt
            for row, (state, blocks) in zip(group.rows, rows, strict=True):
                row.state, row.blocks = state, blocks
        self.settle()

    def settle(self) -> None:
        """The step is over: aborts asked for meanwhile happen."""
        self.plan = None
        aborts, self.pending_aborts = self.pending_aborts, []
        for handle in aborts:
            self.abort(handle)

    def commit(self, tokens: list[int], records: list[list[float]]) -> None:
        """The step ran and drew these."""
        plan = self.plan
        assert len(tokens) == len(records) == len(plan["drawing"])
        kind = {PREFILL: "prefill_tokens", EXTEND: "extend_tokens", DECODE: "decode_tokens"}[plan["kind"]]
        self.totals[kind] += len(plan["slots"])
        self.totals["sampled_tokens"] += len(tokens)
        self.totals["copies"] += len(plan["copy_src"])
        self.totals["preemptions"] += plan["preempted"]
        for (group, row), token, record in zip(plan["drawing"], tokens, records, strict=True):
            row.tokens.append(token)
            row.records.append(record)
            if token in self.stop_ids:
                self.end_row(group, row, STOP)
            elif len(row.tokens) == group.max_tokens:
                self.end_row(group, row, LENGTH)
        self.settle()

    def describe(self, kind: int, rows: list[tuple[Group, Row]], logit_rows: list[int]) -> dict:
        """A plan with its row arrays, the rest empty."""
        plan = {
            "kind": kind,
            "row_ids": [row.id for _, row in rows],
            "row_groups": [group.handle for group, _ in rows],
            "logit_rows": logit_rows,
            "seed": [group.seed for group, _ in rows],
            "problem": [group.problem for group, _ in rows],
            "position": [len(row.tokens) for _, row in rows],
            "token_ids": [], "positions": [], "slots": [], "nodes": [], "copy_src": [], "copy_dst": [],
            "group_ids": [], "token_begin": [0], "drawing": rows if kind != EXTEND else [], "preempted": 0,
        }  # fmt: skip
        for name in ("sample", "temperature", "top_k", "top_p", "min_p"):
            plan[name] = [group.params[name][row.index] for group, row in rows]
        return plan

    def tree(self, rows: list[tuple[Group, Row]], unfed: int) -> list[tuple]:
        """Prompts with a full block, then the rows' own parts."""
        prompts: dict[int, list] = {}
        leaves = []
        for r, (group, row) in enumerate(rows):
            start = len(group.prompt) * self.block_size
            if group.prompt:
                prompts.setdefault(group.handle, [r, r, 0, start, group.prompt])[1] = r + 1
            leaves.append((r, r + 1, start, group.prompt_length + len(row.tokens) - unfed - start, row.blocks))
        return [tuple(node) for node in prompts.values()] + leaves

    def prefill(self, groups: list[Group], rows: list[tuple[Group, Row]]) -> dict:
        """The plan that computes these prompts and draws for these rows."""
        index = {group.handle: g for g, group in enumerate(groups)}
        plan = self.describe(PREFILL, rows, [index[group.handle] for group, _ in rows])
        for group in groups:
            holder = next(row for row in group.rows if row.blocks is not None)
            plan["token_ids"] += [-1] * group.prompt_length
            plan["positions"] += range(group.prompt_length)
            plan["slots"] += [self.slot(group, holder, i) for i in range(group.prompt_length)]
            plan["group_ids"].append(group.handle)
            plan["token_begin"].append(len(plan["slots"]))
        return plan

    def hold_prompt(self, group: Group) -> list[int]:
        """Take the prompt's blocks; its tail block, or none, as a list."""
        group.prompt = [self.acquire() for _ in range(group.prompt_length // self.block_size)]
        return [self.acquire()] if self.tail(group) else []

    def may_resume(self, group: Group, row: Row) -> bool:
        """Whether the row's blocks and one more leave the reserve free; always when nothing runs."""
        running = len(self.rows_in("running"))
        if running in (0, self.max_rows):
            return running == 0
        need = math.ceil((self.tail(group) + len(row.tokens) - 1) / self.block_size) + 1 - len(row.blocks or [])
        if group.prompt is None:
            need += group.prompt_length // self.block_size
        return len(self.free) - need >= self.reserve

    def resume(self) -> dict | None:
        """Bring back preempted rows, oldest first; a prompt that is gone is prefilled first, alone."""
        waiting = self.rows_in("preempted")
        rows: list[tuple[Group, Row]] = []
        copies, tokens, begin = [], [], [0]
        for group, row in waiting:
            if not self.may_resume(group, row):
                break
            if group.prompt is None:
                if rows:
                    break
                row.blocks = self.hold_prompt(group)
                return self.prefill([group], [])
            if rows and len(tokens) + len(row.tokens) - 1 > self.max_prefill_tokens:
                break
            if row.blocks is None:
                row.blocks = []
                if self.tail(group):
                    source = next(other for other in group.rows if other.blocks)
                    row.blocks.append(self.acquire())
                    copies.append((source.blocks[0], row.blocks[0]))
            stored = self.tail(group) + len(row.tokens) - 1
            while len(row.blocks) * self.block_size < stored:
                row.blocks.append(self.acquire())
            row.state = "running"
            rows.append((group, row))
            for i, token in enumerate(row.tokens[:-1]):
                position = group.prompt_length + i
                tokens.append((token, position, self.slot(group, row, position)))
            begin.append(len(tokens))
        if not rows:
            return None
        plan = self.describe(EXTEND, rows, [-1] * len(rows))
        for i, name in enumerate(("token_ids", "positions", "slots")):
            plan[name] = [token[i] for token in tokens]
        plan["copy_src"], plan["copy_dst"] = [src for src, _ in copies], [dst for _, dst in copies]
        plan["group_ids"], plan["token_begin"] = [group.handle for group, _ in rows], begin
        plan["nodes"] = self.tree(rows, unfed=1)
        return plan

    def may_admit(self, group: Group, chosen: list[Group]) -> bool:
        """Room for all rows, for the prompt in this plan, and for the blocks by the policy."""
        n, running = len(group.rows), self.rows_in("running")
        prompts = sum(other.prompt_length for other in chosen)
        if len(running) + n > self.max_rows:
            return False
        if chosen and prompts + group.prompt_length > self.max_prefill_tokens:
            return False
        if self.evicts:
            left = len(self.free) - math.ceil(group.prompt_length / self.block_size) - n
            return not running or left >= self.reserve
        worst = 0
        for other in self.live:
            if other.admitted or other is group:
                rows = sum(row.state != "done" for row in other.rows)
                worst += self.worst_case(other.prompt_length, other.max_tokens, rows)
        return worst <= self.num_blocks

    def admit(self) -> dict | None:
        """Start waiting groups in order, unless a preempted row waits too."""
        running = len(self.rows_in("running"))
        if self.rows_in("preempted") or (running and self.max_rows - running < self.admit_rows):
            return None
        chosen: list[Group] = []
        for group in [group for group in self.live if not group.admitted]:
            if not self.may_admit(group, chosen):
                break
            tail = self.hold_prompt(group)
            for row in group.rows:
                row.state, row.blocks = "running", tail[:]
            for block in tail:
                self.users[block] = len(group.rows)
            group.admitted = True
            chosen.append(group)
        return self.prefill(chosen, [(group, row) for group in chosen for row in group.rows]) if chosen else None

    def write_index(self, group: Group, row: Row) -> int:
        """Which of the row's own blocks its last token goes to."""
        return (self.tail(group) + len(row.tokens) - 1) // self.block_size

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

    def decode(self) -> dict | None:
        """Every running row feeds its last token; the youngest rows go when blocks lack."""
        preempted = 0
        while self.lacking() > 0:
            group, row = self.rows_in("running")[-1]
            self.drop(group, row)
            row.state = "preempted"
            preempted += 1
        rows = self.rows_in("running")
        if not rows:
            return None
        plan = self.describe(DECODE, rows, list(range(len(rows))))
        plan["preempted"] = preempted
        for group, row in rows:
            index = self.write_index(group, row)
            if index == len(row.blocks):
                row.blocks.append(self.acquire())
            elif self.users[row.blocks[index]] > 1:
                source, row.blocks[index] = row.blocks[index], self.acquire()
                self.release(source)
                plan["copy_src"].append(source)
                plan["copy_dst"].append(row.blocks[index])
            position = group.prompt_length + len(row.tokens) - 1
            plan["token_ids"].append(row.tokens[-1])
            plan["positions"].append(position)
            plan["slots"].append(self.slot(group, row, position))
        plan["nodes"] = self.tree(rows, unfed=0)
        return plan
