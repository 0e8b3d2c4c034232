"""The summary: written whole, read back equal, refused with the key."""

import json

import pytest

from mstar_engine.config_parse import load_config
from mstar_engine.run_directory import RunDirectory
from mstar_engine.summary import (
    AnnotationSummary,
    FinalSummary,
    HeldOutSummary,
    IterationSummary,
    PrmSummary,
    Summary,
    VerifierSummary,
    WarmupSummary,
    read_summary,
)
from mstar_engine.types import Estimate

HALF = Estimate(value=0.5, items=10, low=0.2, high=0.8)


VOTES = VerifierSummary(best_of_n=HALF, weighted=HALF, majority=HALF)
HELD_OUT = {"f1": 0.6, "accuracy_on_erroneous": 0.5, "accuracy_on_correct": 0.7, "macro_f1": 0.8, "threshold": 0.5}
PRM = PrmSummary(
    model="tiny",
    head="scalar",
    targets="soft",
    labels=30,
    problems=4,
    responses=10,
    balance=0.6,
    held_out=HeldOutSummary(steps=10, balance=1.0, auc=None, **HELD_OUT),
    annotation=AnnotationSummary(
        mode="soft", completions=8, drawn=240, prefill_tokens=900, decode_tokens=4800, seconds=1.5
    ),
)


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


def test_round_trip_with_a_process_reward_model(tmp_path):
    row = {"iteration": 1, "greedy": HALF, "kept": 3, "sampled": 16, "temperature": 1.0, "seconds": 2.5}
    summary = Summary(
        warmup=WarmupSummary(greedy=HALF, reward_pass_at_2=HALF, verifier={1: VOTES}),
        prm=PRM,
        evolve=(IterationSummary(**row, reward_pass_at_2=HALF, verifier={1: VOTES, 16: VOTES}),),
    )
    with RunDirectory.create_or_resume(load_config(None, [f"output_dir={tmp_path}"])) as run:
        run.write_summary(summary)
    assert '"16": {' in (tmp_path / "summary.json").read_text()
    assert read_summary(tmp_path / "summary.json") == summary


def test_dynamics_are_kept_in_order_and_missing_in_old_summaries(tmp_path):
    """With every metric by name; and as earlier versions wrote it, without."""
    row = {"iteration": 1, "greedy": HALF, "kept": 3, "sampled": 16, "temperature": 1.0, "seconds": 2.5}
    below = Estimate(value=-0.25, items=10, low=-0.5, high=0.0)
    dynamics = {"greedy": HALF, "pass_at_k_minus_greedy": below, "length": Estimate(value=31, items=10, low=9, high=40)}
    summary = Summary(
        warmup=WarmupSummary(greedy=HALF, dynamics=dynamics),
        evolve=(IterationSummary(**row, correct=5, problems=4, dynamics=dynamics),),
    )
    with RunDirectory.create_or_resume(load_config(None, [f"output_dir={tmp_path}"])) as run:
        run.write_summary(summary)
    again = read_summary(tmp_path / "summary.json")
    assert again == summary and list(again.evolve[0].dynamics) == list(dynamics)
    old = json.loads((tmp_path / "summary.json").read_text())
    for place, keys in ((old["warmup"], ["dynamics"]), (old["evolve"][0], ["dynamics", "correct", "problems"])):
        for key in keys:
            del place[key]
    (tmp_path / "summary.json").write_text(json.dumps(old))
    again = read_summary(tmp_path / "summary.json")
    assert again.warmup.dynamics == again.evolve[0].dynamics == {} and again.evolve[0].correct is None


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
