"""The specification of a decode step planned before it is known what the one in front of it draws."""

from __future__ import annotations

from tests.rollout.oracle_holds import Holds

DECODE = 3


class Ahead(Holds):
    """`ahead` is the plan behind the outstanding `plan`, or None."""

    ahead: dict | None = None

    def plan_ahead(self) -> bool:
        """Plan the decode step behind the outstanding one, as if no row of that one stopped, if it must come next."""
        assert self.plan is not None
        running = self.rows_in("running")
        if self.ahead is not None or self.plan["kind"] != DECODE or not running or self.pending_aborts:
            return False
        if self.rows_in("preempted") or any(hold.admitted and not hold.ready for hold in self.holds()):
            return False
        if self.admits() or any(len(row.tokens) + 1 == group.max_tokens for group, row in running):
            return False
        for _, row in running:
            row.tokens.append(-1)
        before = {row.id: len(row.blocks) for _, row in running}
        if self.lacking() <= 0:
            self.ahead = self.decode()
            self.ahead["grown"] = [row for _, row in running if len(row.blocks) > before[row.id]]
            self.ahead["token_rows"] = [self.plan["row_ids"].index(row.id) for _, row in running]
        for _, row in running:
            row.tokens.pop()
        return self.ahead is not None

    def admits(self) -> bool:
        """Whether the oldest waiting group would be admitted now."""
        running = len(self.rows_in("running"))
        waiting = [group for group in self.live if not group.admitted]
        if not waiting or self.rows_in("preempted"):
            return False
        if running and not self.filling and self.max_rows - running - self.reserved() < self.admit_rows:
            return False
        return self.may_admit(waiting[0], [])

    def undo(self, plan: dict) -> None:
        """Give back the blocks that a plan made ahead took; rows that ended have given theirs back."""
        for row in plan["grown"]:
            if row.state == "running":
                self.give_back(row.blocks.pop())
