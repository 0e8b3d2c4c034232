"""The printed table: what, ours, the floor, the peer, how they compare, the goal, and whether it is met."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

HEADINGS = ("what", "ours", "floor", "peer", "ratio", "goal", "verdict")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row (a `SuiteRow` as a dictionary) as the texts of its columns."""
    unit = row["unit"]
    floor = "" if row["floor_value"] is None else f"{row['floor_value']:.4g} {unit}"
    against_floor = row["peer"] == "floor"
    peer = "" if against_floor else f"{row['peer']}: {row['peer_value']:.4g} {unit}"
    ratio = f"{1 / row['ratio']:.2f} floors" if against_floor else f"{row['ratio']:.2f}x"
    return row["subject"], f"{row['ours_value']:.4g} {unit}", floor, peer, ratio, row["goal"], row["verdict"]


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The whole table of a result file, and below it what was skipped, what failed, and how many goals are met."""
    subjects = result["subjects"]
    rows = [row for subject in subjects.values() for row in subject["rows"]]
    body = [HEADINGS, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in body) for column in range(len(HEADINGS))]
    for line in body:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip()
    yield ""
    for row in rows:
        if row["note"]:
            yield f"note: {row['subject']} ({row['peer']}): {row['note']}"
    for subject in subjects.values():
        for one in subject["skipped"]:
            yield f"skipped: {one['peer']} beside {one['subject']}: {one['reason']}"
    for name, step in {**result["steps"], **subjects}.items():
        if step["outcome"] != "finished":
            yield f"{name}: {step['outcome']}"
            yield from (f"    {line}" for line in step.get("last_lines", ()))
    judged = [row["met"] for row in rows if row["met"] is not None]
    yield f"goals met: {sum(judged)} of {len(judged)}"
