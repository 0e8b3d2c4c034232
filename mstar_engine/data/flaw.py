"""What can be wrong with a row of a data set: it is set aside with the field and the reason, and no other is lost."""

from __future__ import annotations

from typing import Any, Literal, get_args

Reason = Literal[
    "unreadable row",
    "bad id",
    "bad question",
    "several questions",
    "bad gold",
    "bad choices",
    "bad type",
    "unknown category",
    "placeholders",
    "missing image",
    "refused image",
    "unreadable image",
    "oversized image",
    "conflicting id",
    "conflicting gold",
]
REASONS: tuple[str, ...] = get_args(Reason)
_SHOWN = 60


class Flaw(ValueError):
    """One thing wrong with one row: `reason` is counted, `field` is the row's own name, the message says what."""

    def __init__(self, reason: Reason, field: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.field = reason, field


def shown(value: Any) -> str:
    """A value as a message may hold it: one short line."""
    text = value if isinstance(value, str) else repr(value) if not isinstance(value, bytes) else f"{len(value)} bytes"
    text = text.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")
    return repr(text) if len(text) <= _SHOWN else repr(text[: _SHOWN - 3] + "...")
