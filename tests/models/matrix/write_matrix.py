"""Runs the matrix and writes docs/models.md: python tests/models/matrix/write_matrix.py"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[2] / "kernels"), str(HERE.parents[1] / "rollout"), str(HERE)]

from family import FAMILIES, AbsentError  # noqa: E402
from matrix import load_families, outcome  # noqa: E402
from table import PATH, written  # noqa: E402


def main() -> None:
    """Write the page; exits with what failed, or what this transformers does not have, and writes nothing then."""
    load_families()
    outcomes, wrong = {}, []
    for name in FAMILIES:
        try:
            outcomes[name] = outcome(name)
            wrong += [f"{name}, {place}, {run}: {what}" for (place, run), what in outcomes[name].items() if what]
        except (AbsentError, ValueError) as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        sys.exit("\n".join(wrong))
    PATH.write_text(written(outcomes), encoding="utf-8")
    print(f"{PATH}: {len(outcomes)} families")


if __name__ == "__main__":
    main()
