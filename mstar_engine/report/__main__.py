"""The reports of runs that are there: `python -m mstar_engine.report RUN [RUN ...] [--output FILE]`.

python -m mstar_engine.report runs/digits                     writes runs/digits/report.html anew
python -m mstar_engine.report runs/digits runs/other          compares them in compare.html
python -m mstar_engine.report runs/* --output all.html        the same, elsewhere

Unfinished runs are shown as far as they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mstar_engine.durable import replace_text
from mstar_engine.report.compare import write_comparison
from mstar_engine.report.html import build_report


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit status: 0 written, 1 not writable, 2 a run that is none or cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m mstar_engine.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run directory")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where to write instead")
    options = parser.parse_args(argv)
    single = len(options.runs) == 1
    path = options.output or (options.runs[0] / "report.html" if single else Path("compare.html"))
    try:
        if single:
            replace_text(path, build_report(options.runs[0]))
        else:
            write_comparison(options.runs, path)
    except ValueError as error:
        print(f"mstar_engine.report: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"mstar_engine.report: {path}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
