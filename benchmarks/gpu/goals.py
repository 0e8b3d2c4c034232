"""What a row must reach, and by how much it does or does not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goal:
    """Either at most `most_floors` times the floor, or at least `least_ratio` times as good as the peer."""

    most_floors: float | None = None
    least_ratio: float | None = None

    def __str__(self) -> str:
        if self.most_floors is not None:
            return f"at most {self.most_floors:g}x the floor"
        return f"at least {self.least_ratio:g}x"

    def met(self, ratio: float) -> bool:
        """`ratio`: peer over ours where less is better, so floor over ours for a floor; above 1, ours is ahead."""
        return self._lead(ratio) >= 1

    def verdict(self, ratio: float) -> str:
        """ "met", or by how much of the goal it is missed."""
        lead = self._lead(ratio)
        reached = f"{1 / ratio:.2f}x the floor" if self.most_floors is not None else f"{ratio:.2f}x"
        if lead >= 1:
            return f"met: {reached}"
        if self.most_floors is not None:
            return f"missed by {1 / lead - 1:.0%}: {reached}"
        return f"missed by {1 - lead:.0%}: {reached}"

    def _lead(self, ratio: float) -> float:
        return ratio * self.most_floors if self.most_floors is not None else ratio / self.least_ratio
