"""Learning-rate schedules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstar_engine.train.schedule import KINDS, Schedule


@given(st.sampled_from(KINDS), st.integers(0, 20), st.integers(1, 200), st.floats(0, 1), st.floats(0.01, 1))
def test_rises_to_the_peak_then_never_rises(kind, warmup, extra, floor, decay):
    schedule = Schedule(peak=2.0, kind=kind, warmup=warmup, horizon=warmup + extra, floor=floor, decay=decay)
    rates = [schedule(step) for step in range(warmup + extra + 5)]
    assert all(0 <= rate <= 2.0 + 1e-12 for rate in rates)
    assert rates[:warmup] == pytest.approx([2.0 * (i + 1) / warmup for i in range(warmup)])
    assert rates[warmup] == pytest.approx(2.0)
    assert all(b <= a + 1e-12 for a, b in zip(rates[warmup:], rates[warmup + 1 :]))
    assert rates[-1] == pytest.approx(2.0 if kind == "constant" else 2.0 * floor)


def test_shapes():
    cosine = Schedule(peak=1.0, kind="cosine", horizon=100, floor=0.2)
    assert cosine(50) == pytest.approx(0.6) and cosine(100) == pytest.approx(0.2)
    linear = Schedule(peak=1.0, kind="linear", warmup=10, horizon=110)
    assert linear(60) == pytest.approx(0.5)
    stable = Schedule(peak=1.0, kind="wsd", horizon=100, decay=0.2)
    assert stable(80) == 1.0 and stable(90) == pytest.approx(0.5) and stable(100) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cosine"}, "horizon"),
        ({"kind": "step"}, "'step'"),
        ({"peak": 0.0}, "peak"),
        ({"warmup": -1}, "warmup"),
        ({"warmup": 10, "horizon": 10}, "horizon=10"),
        ({"floor": 1.5}, "floor"),
        ({"decay": 0.0}, "decay"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**{"peak": 1.0, **options})
