"""The process that compares LaTeX with math-verify: a line of JSON [answer, gold] in, a line with the outcome out.

Run by file (`reward/latex.py`), it imports nothing of this package. Its memory is bounded; its time, by who asks.
"""

from __future__ import annotations

import json
import os
import sys

MEMORY = 4 << 30


def main() -> None:
    """Answer until the input ends."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass
    from math_verify import parse, verify

    def outcome(answer: str, gold: str) -> str:
        wanted = _parsed(parse, gold)
        given = _parsed(parse, answer)
        if not wanted or not given:
            return "unreadable LaTeX"
        # Without its own limits: they are signals, which do not stop everything.
        return "match" if verify(wanted, given, timeout_seconds=None) else "mismatch"

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            said = outcome(*json.loads(line))
        except (MemoryError, RecursionError):
            return
        except Exception:
            said = "unreadable LaTeX"
        print(said, file=answers, flush=True)


def _parsed(parse, text: str) -> list:
    return parse(f"${text}$", parsing_timeout=None, fallback_mode="no_fallback")


if __name__ == "__main__":
    main()
