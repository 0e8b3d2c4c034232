"""The process that compares LaTeX with math-verify: a line of JSON in, a line with the outcome out.

[answer, gold] asks whether they match, [gold] whether it can be read (then it is said to match).

Run by file (`reward/latex.py`), it imports nothing of this package. Who asks bounds its time; memory and processor time
are bounded here, so that one that nobody waits for any more ends as well.
"""

from __future__ import annotations

import json
import os
import sys
import time

MEMORY = 4 << 30
"""Bytes of address space."""
CPU_SECONDS = 600
"""Of one comparison."""


def main() -> None:
    """Answer until the input ends."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _limit("RLIMIT_AS", MEMORY)
    _limit("RLIMIT_CORE", 0)
    from math_verify import parse, verify

    def outcome(*formulas: str) -> str:
        parsed = [_parsed(parse, formula) for formula in formulas]
        if not all(parsed):
            return "unreadable LaTeX"
        if len(parsed) == 1:
            return "match"
        given, wanted = parsed
        # Without its own limits: they are signals, which do not stop everything.
        return "match" if verify(wanted, given, timeout_seconds=None) else "mismatch"

    print("ready", file=answers, flush=True)
    for line in sys.stdin.buffer:
        _limit("RLIMIT_CPU", int(time.process_time()) + CPU_SECONDS)
        try:
            said = outcome(*json.loads(line))
        except (MemoryError, RecursionError):
            return
        except Exception:
            said = "unreadable LaTeX"
        print(said, file=answers, flush=True)


def _limit(name: str, value: int) -> None:
    """Bound what this process may use, where that can be bounded."""
    try:
        import resource

        hard = resource.getrlimit(getattr(resource, name))[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(getattr(resource, name), (value, hard))
    except (ImportError, ValueError, OSError):
        pass


def _parsed(parse, text: str) -> list:
    return parse(f"${text}$", parsing_timeout=None, fallback_mode="no_fallback")


if __name__ == "__main__":
    main()
