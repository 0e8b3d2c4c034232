"""The summary: written whole, read back equal, refused with the key."""

import pytest

from mstar_engine.config_parse import load_config
from mstar_engine.run_directory import RunDirectory
from mstar_engine.summary import FinalSummary, IterationSummary, Summary, WarmupSummary, read_summary
from mstar_engine.types import Estimate

HALF = Estimate(value=0.5, items=10, low=0.2, high=0.8)


def test_round_trip(tmp_path):
    row = IterationSummary(iteration=1, greedy=HALF, kept=3, sampled=16, temperature=1.0, seconds=2.5)
    summary = Summary(
        warmup=WarmupSummary(greedy=HALF, pass_at_k=HALF),
        evolve=(row,),
        final=FinalSummary(greedy=HALF),
        seconds={"evolve": 2.5},
    )
    with RunDirectory.create_or_resume(load_config(None, [f"output_dir={tmp_path}"])) as run:
        for some in (Summary(), summary):
            run.write_summary(some)
            assert read_summary(tmp_path / "summary.json") == some


def test_refusals_name_the_key(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text('{"final": {"greedy": {"value": 0.5, "items": 2, "low": 0.1}}}')
    with pytest.raises(ValueError, match=r"final\.greedy\.high: Field required"):
        read_summary(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="the file: Invalid JSON"):
        read_summary(path)
    path.write_text('{"later": 3}')
    assert read_summary(path) == Summary()
