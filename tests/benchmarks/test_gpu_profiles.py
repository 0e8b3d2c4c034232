"""The arithmetic of both profiles, on events made by hand."""

import pytest
import torch

from benchmarks.gpu import kernel_profile, step_profile

STEP = [(0, 400, "product"), (100, 200, "attend"), (500, 100, "norm"), (700, 100, "draw_kernel")]


def events(steps: int) -> list[step_profile.Event]:
    return [(begin + 1000 * i, duration, name) for i in range(steps) for begin, duration, name in STEP]


def test_time_is_busy_once_however_many_kernels_run() -> None:
    assert step_profile.busy(STEP) == 400 + 100 + 100
    assert step_profile.busy([(0, 10, "a"), (2, 3, "b"), (5, 10, "c")]) == 15


def test_whole_steps_before_the_last_are_taken() -> None:
    found = step_profile.last_steps(events(5), 3)
    assert found == events(4)[len(STEP) :]
    with pytest.raises(ValueError, match="4 decode steps were seen; wanted: 5"):
        step_profile.last_steps(events(4), 3)


def test_the_table_counts_by_step() -> None:
    lines = step_profile.table(events(10)[len(STEP) :], 9)
    assert lines[0] == "a step: 1 us, the device busy for 1 us, 4 kernels"
    assert lines[2].split() == ["0.4", "1.0", "0.40", "product"] and "attend" in lines[3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures on a device")
def test_without_a_device_it_says_so() -> None:
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        step_profile.main([])


def test_kernels_by_name_in_order_of_first_calls() -> None:
    events = [("b", 3000), ("a", 1000), ("b", 5000), ("b", 4000)]
    assert kernel_profile.medians(events) == [("b", 3, 4.0), ("a", 1, 1.0)]


def test_an_unknown_op_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kernel_profile.main(["attention"])
    assert "attention; allowed: sampling, step_rewards, tree_attention" in capsys.readouterr().err
