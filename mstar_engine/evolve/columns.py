"""Columns of plain text for the terminal, aligned."""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]], aligned: str) -> list[str]:
    """One line a row, indented. `aligned` has "<" or ">" for each column; columns that are empty throughout are left
    out."""
    kept = [place for place in range(len(aligned)) if any(row[place] for row in rows[1:] or rows)]
    widths = {place: max(len(row[place]) for row in rows) for place in kept}
    lines = []
    for row in rows:
        cells = [f"{row[place]:{aligned[place]}{widths[place]}}" for place in kept]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
