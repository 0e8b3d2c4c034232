"""Progress: plain lines without a terminal, a bar with one, and the same last line in both."""

import io

import pytest
from rich.console import Console

from mstar_engine.report.progress import Progress
from mstar_engine.types import Estimate


def shown(terminal: bool, every: float = 1e9, error: type[BaseException] | None = None) -> str:
    output = io.StringIO()
    progress = Progress(Console(file=output, force_terminal=terminal, width=160), every=every)
    progress.greedy = Estimate(value=0.412, items=100, low=0.3, high=0.5)
    try:
        with progress.phase("evolve [3/8]", total=4, unit="problems") as phase:
            for _ in range(4):
                phase.advance(tokens=100, sampled=16, accepted=4)
                if error:
                    raise error
    except (ValueError, KeyboardInterrupt):
        pass
    return output.getvalue()


def test_plain_output_is_one_line_without_control_codes():
    text = shown(terminal=False)
    assert text.count("\n") == 1 and "\x1b" not in text
    assert text.startswith("evolve [3/8]  4/4 problems") and "tokens/s" in text
    assert "accepted 16/64 (25%)" in text and text.endswith("greedy 41.2%\n")


def test_plain_output_repeats_now_and_then():
    assert shown(terminal=False, every=0.0).count("\n") == 5


def test_a_terminal_gets_a_bar_and_the_same_last_line():
    text = shown(terminal=True)
    assert "\x1b" in text and "evolve [3/8]  4/4 problems" in text


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_phase_says_how_far_it_came(terminal, error):
    assert "evolve [3/8]  1/4 problems" in shown(terminal, error=error)


def test_unknown_totals():
    output = io.StringIO()
    with Progress(Console(file=output, width=160)).phase("pretrain") as phase:
        phase.advance(3, note="loss 1.20")
    assert output.getvalue().startswith("pretrain  3  0.0 s  loss 1.20")
