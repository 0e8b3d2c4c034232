"""A page from a template: everything inline, no script, every text from data escaped, numbers in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

import mstar_engine

_HERE = Path(__file__).parent
_STYLES = ("figure.css", "report.css")


def render(template: str, **values: Any) -> str:
    """The page of `template` (a file beside this one) with `values`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "share": share,
        "points": points,
        "duration": duration,
        "number": number,
        "score": score,
    }
    css = "".join((_HERE / name).read_text(encoding="utf-8") for name in _STYLES)
    return environment.get_template(template).render(css=css, version=mstar_engine.__version__, **values)


def share(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.1f}%"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}"


def score(value: float) -> str:
    """A score or another value near 1."""
    return f"{value:.2f}"


def number(value: float) -> str:
    """A count, its thousands apart."""
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Seconds in the two units that fit."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
