"""Rows set aside: counted by reason, listed in a file, and few enough for the run to start, or it does not."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mstar_engine.data.flaw import Flaw
from mstar_engine.durable import replace_file

_SHOWN = 3
_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class SetAside:
    """One row that was set aside: where it stands, its id as far as it has one, and what is wrong with which field."""

    file: str
    row: int
    id: str | None
    field: str
    reason: str
    detail: str

    def __str__(self) -> str:
        """One line."""
        name = f" (id {self.id})" if self.id is not None else ""
        field = f", {self.field}" if self.field else ""
        return f"{self.file}, row {self.row}{name}{field}: {self.reason}: {self.detail}"


@dataclass(slots=True)
class Quarantine:
    """What was set aside among `rows` rows read; `left_out` were not asked for, `repeated` were there twice alike."""

    rows: int = 0
    left_out: int = 0
    repeated: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    listed: list[SetAside] = field(default_factory=list)

    def add(self, file: str, row: int, id: str | None, flaw: Flaw) -> None:
        """Set one row aside."""
        self.counts[flaw.reason] += 1
        if len(self.listed) < _MOST:
            self.listed.append(SetAside(file, row, id, flaw.field, flaw.reason, str(flaw)))

    @property
    def total(self) -> int:
        """Rows set aside."""
        return self.counts.total()

    def in_words(self) -> str:
        """The counts by reason."""
        counts = ", ".join(f"{reason} {count}" for reason, count in self.counts.most_common())
        return (
            f"{self.total} of {self.rows} rows set aside ({counts})" if counts else f"{self.rows} rows, none set aside"
        )

    def write(self, path: Path) -> None:
        """Write the list, a JSON object a row, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, self._write)

    def _write(self, path: Path) -> None:
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            for one in self.listed:
                line = {name: getattr(one, name) for name in SetAside.__slots__}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def settle(self, what: str, limit: float, where: str = "") -> None:
        """ValueError, with the counts and the first rows, when more than the share `limit` was set aside."""
        if self.total > limit * self.rows:
            first = "; ".join(map(str, self.listed[:_SHOWN])) + ("; ..." if self.total > _SHOWN else "")
            listed = f" All are in {where}." if where else ""
            raise ValueError(
                f"{what}: {self.in_words()}, {self.total / self.rows:.2%}; allowed: data.max_quarantined={limit:g}."
                f"{listed} The first: {first}"
            )
