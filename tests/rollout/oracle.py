"""The scheduler's specification: the same decisions as `mstar_kernels._C.Scheduler`, in the plainest Python.

Nothing is incremental. Every step looks at all groups anew and recomputes what it needs; a rollback restores a copy
taken before the plan. Blocks are handed out lowest id first, so plans agree to the last integer. A plan is a dict of
lists under the names of the contract, except for the nodes: `nodes` is a list of
(row_begin, row_end, start, length, blocks), since which table row holds a node's blocks is no decision.
"""

from __future__ import annotations

import math

from tests.rollout.oracle_ahead import Ahead
from tests.rollout.oracle_blocks import ABORT, LENGTH, STOP, Group, Row
from tests.rollout.oracle_holds import Hold

IDLE, PREFILL, EXTEND, DECODE = range(4)


class Oracle(Ahead):
    """See the module. The constructor and the methods take what the C++ class takes, lists instead of arrays."""

    def __init__(
        self, num_blocks, block_size, max_rows, max_prefill_tokens, max_sequence_length, stop_ids,
        policy="auto", watermark=0.05, record_width=4, admit_rows=1, max_held_nodes=0,
    ):  # fmt: skip
        super().__init__(num_blocks, block_size)
        self.max_rows, self.max_held_nodes = max_rows, max_held_nodes
        self.max_prefill_tokens, self.max_sequence_length = max_prefill_tokens, max_sequence_length
        self.stop_ids, self.record_width, self.admit_rows = set(stop_ids), record_width, admit_rows
        self.filling = False  # the last step was a prefill: admission goes on
        self.evicts, self.switches = policy == "watermark", policy == "auto"
        self.reserve = math.ceil(watermark * num_blocks)
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
            if not self.switches or self.holds():
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
            if isinstance(group, Hold):
                self.release(handle, forced=True)
                continue
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
        """Whether any group has not ended, apart from stems that only wait to be forked."""
        return any(not (isinstance(group, Hold) and group.ready) for group in self.live)

    def stats(self) -> dict[str, int]:
        """Totals of committed steps and the state now."""
        return self.totals | {
            "free_blocks": len(self.free),
            "used_blocks": self.num_blocks - len(self.free),
            "waiting": sum(not group.admitted for group in self.live),
            "running": len(self.rows_in("running")),
            "preempted": len(self.rows_in("preempted")),
            "held": sum(len(hold.rows) for hold in self.holds() if hold.ready),
        }

    # --- steps ---

    def next_plan(self, undoable: bool = True) -> int:
        """Plan a step into `self.plan`; its kind. `undoable=False` skips the copy that rollback needs."""
        assert self.plan is None
        self.saved = self.copy() if undoable else None
        self.plan = self.resume() or self.compute() or self.admit() or self.decode()
        return IDLE if self.plan is None else self.plan["kind"]

    def copy(self) -> tuple:
        """What a plan changes: blocks, and for each group and row what it holds."""
        groups = []
        for group in self.live:
            rows = [(row.state, None if row.blocks is None else row.blocks[:]) for row in group.rows]
            groups.append((group, group.admitted, group.prompt, rows))
        return self.free[:], self.users[:], groups

    def rollback(self) -> None:
        """Forget the newest outstanding plan."""
        assert self.plan is not None
        if self.ahead is not None:
            self.undo(self.ahead)
            self.ahead = None
            return
        if "grown" in self.plan:
            self.undo(self.plan)
            return self.settle()
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
        self.filling = plan["kind"] == PREFILL
        kind = {PREFILL: "prefill_tokens", EXTEND: "extend_tokens", DECODE: "decode_tokens"}[plan["kind"]]
        self.totals[kind] += len(plan["slots"])
        self.totals["copies"] += len(plan["copy_src"])
        self.totals["preemptions"] += plan["preempted"]
        for (group, row), token, record in zip(plan["drawing"], tokens, records, strict=True):
            if row.state == "done":  # it stopped when this step was planned already
                continue
            self.totals["sampled_tokens"] += 1
            row.tokens.append(token)
            row.records.append(record)
            if token in self.stop_ids:
                self.end_row(group, row, STOP)
            elif len(row.tokens) == group.max_tokens:
                self.end_row(group, row, LENGTH)
        if self.ahead is not None:
            self.plan, self.ahead = self.ahead, None
            return
        self.complete()
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
            "position": [group.offset + len(row.tokens) for group, row in rows],
            "token_ids": [], "positions": [], "slots": [], "nodes": [], "copy_src": [], "copy_dst": [],
            "token_rows": [-1] * len(rows), "group_ids": [], "token_begin": [0],
            "drawing": rows if kind != EXTEND else [], "preempted": 0,
        }  # fmt: skip
        for name in ("sample", "temperature", "top_k", "top_p", "min_p"):
            plan[name] = [group.params[name][row.index] for group, row in rows]
        return plan

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
        copies, tokens = [], 0
        for group, row in waiting:
            if not self.may_resume(group, row):
                break
            if group.prompt is None:
                if rows:
                    break
                row.blocks = self.hold_prompt(group)
                return self.prefill([group], [])
            if rows and tokens + len(row.tokens) - 1 > self.max_prefill_tokens:
                break
            if row.blocks is None:
                row.blocks = []
                if self.tail(group):
                    source = next(other for other in group.rows if other.blocks)
                    row.blocks.append(self.acquire())
                    copies.append((source.blocks[0], row.blocks[0]))
            self.grow(group, row)
            row.state = "running"
            rows.append((group, row))
            tokens += len(row.tokens) - 1
        return self.extend(rows, copies) if rows else None

    def extend(self, rows: list[tuple[Group, Row]], copies: list[tuple[int, int]]) -> dict:
        """The plan that computes all tokens of these rows but the last of each."""
        plan = self.describe(EXTEND, rows, [-1] * len(rows))
        for group, row in rows:
            positions = range(group.prompt_length, group.prompt_length + len(row.tokens) - 1)
            plan["token_ids"] += row.tokens[:-1]
            plan["positions"] += positions
            plan["slots"] += [self.slot(group, row, position) for position in positions]
            plan["group_ids"].append(group.handle)
            plan["token_begin"].append(len(plan["slots"]))
        plan["copy_src"], plan["copy_dst"] = [src for src, _ in copies], [dst for _, dst in copies]
        plan["nodes"] = self.tree(rows, unfed=1)
        return plan

    def may_admit(self, group: Group, chosen: list[Group]) -> bool:
        """Room for all rows, for the prompt in this plan, and for the blocks by the policy."""
        running = self.rows_in("running")
        prompts = sum(other.prompt_length for other in chosen)
        if len(running) + self.reserved() + self.places_of(group) > self.max_rows:
            return False
        if isinstance(group, Hold) and self.held_nodes() + group.nodes > self.max_held_nodes:
            return False
        if chosen and prompts + group.prompt_length > self.max_prefill_tokens:
            return False
        if self.evicts:
            left = len(self.free) - math.ceil(group.prompt_length / self.block_size) - len(group.rows)
            return not running or left >= self.reserve
        return sum(self.worst_of(other) for other in self.live if other.admitted or other is group) <= self.num_blocks

    def admit(self) -> dict | None:
        """Start waiting groups in order, unless a preempted row waits too."""
        if not self.admits():
            return None
        chosen: list[Group] = []
        for group in [group for group in self.live if not group.admitted]:
            if not self.may_admit(group, chosen):
                break
            tail = self.hold_prompt(group)
            for row in group.rows:
                row.state, row.blocks = "stem" if isinstance(group, Hold) else "running", tail[:]
            for block in tail:
                self.users[block] = len(group.rows)
            group.admitted = True
            chosen.append(group)
        drawing = [(group, row) for group in chosen for row in group.rows if row.state == "running"]
        return self.prefill(chosen, drawing) if chosen else None

    def decode(self) -> dict | None:
        """Every running row feeds its last token; the youngest rows go when blocks lack."""
        preempted = 0
        while self.lacking() > 0:
            assert not self.holds()
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
                source = self.make_private(row, index)
                plan["copy_src"].append(source)
                plan["copy_dst"].append(row.blocks[index])
            position = group.prompt_length + len(row.tokens) - 1
            plan["token_ids"].append(row.tokens[-1] if row.tokens else group.last_token)
            plan["positions"].append(position)
            plan["slots"].append(self.slot(group, row, position))
        plan["nodes"] = self.tree(rows, unfed=0)
        return plan
