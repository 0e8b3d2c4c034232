"""The command line end to end: every stage with the smoke recipe, and what it leaves."""

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_runs import (
    annotations,
    assert_same_outcome,
    interrupt_after,
    run,
)

from mstar_engine.journal import read_events
from mstar_engine.reward.label_file import LabelWriter
from mstar_engine.reward.prm_checkpoint import load_prm
from mstar_engine.rollout_file import read_rollouts
from mstar_engine.summary import read_summary
from mstar_engine.train.trainer import Trainer

DYNAMICS = [
    "greedy",
    "pass_at_1",
    "pass_at_k",
    "unbiased_pass_at_k",
    "pass_at_k_minus_greedy",
    "reward_pass_at_k",
    "majority",
    "weighted",
    "best_of_n",
    "entropy",
    "length",
    "steps",
    "solved_none",
    "solved_some",
    "solved_all",
    "distinct",
]


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    accuracy = {"value", "items", "low", "high"}
    for place in (summary["warmup"]["greedy"], summary["final"]["greedy"], summary["final"]["ood_greedy"]):
        assert place.keys() == accuracy and place["low"] <= place["value"] <= place["high"]
    assert [entry["iteration"] for entry in summary["evolve"]] == [1, 2]
    for entry in summary["evolve"]:
        assert entry["greedy"].keys() == entry["pass_at_k"].keys() == accuracy
        assert entry["sampled"] == 8 * 4 and entry["kept"] >= 0
        assert entry["tokens_per_second"] > 0
    sweep = summary["evolve"][0]["sweep"]
    assert sweep["temperatures"] == [0.3, 0.95, 1.6] and sweep["drawn"] == 4 * 3 * 4 and sweep["prefill_tokens"] > 0
    assert [entry["temperature"] for entry in summary["evolve"]] == [sweep["chosen"]] * 2
    assert summary["evolve"][1]["sweep"] is None and read_summary(finished / "summary.json").evolve[0].sweep.k == 2
    sampled = pq.read_table(finished / "rollouts" / "iteration_0001.parquet")["temperature"].to_pylist()
    assert sampled == pytest.approx([sweep["chosen"]] * len(sampled))
    assert {"pretrain", "warmup", "evolve", "evaluate", "report"} <= summary["seconds"].keys()
    table = pq.read_table(finished / "rollouts" / "iteration_0001.parquet")
    assert table.num_rows == 32
    assert {"problem_id", "text", "token_ids", "logprobs", "correct", "score", "selected"} <= set(table.column_names)
    assert "<html" in (finished / "report.html").read_text().lower()
    assert not list(finished.rglob("*.pt")) + list(finished.rglob("*.bin")) + list(finished.rglob("*.pkl"))


def test_process_rewards_are_where_they_are_promised(finished: Path) -> None:
    """Labels with their counts, a checkpoint that loads without being told its form, scores on every response."""
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["prm"]["labels"] == sum(len(row["labels"]) for row in annotations(finished, "train"))
    assert {"auc", "f1", "macro_f1", "balance"} <= summary["prm"]["held_out"].keys()
    annotation = summary["prm"]["annotation"]
    drawn = [row for name in ("train", "held_out") for row in annotations(finished, name)]
    assert annotation["drawn"] == sum(mc["n"] for row in drawn for mc in row["mc"][:-1])
    # The ideal: each prompt once, each distinct solution once, up to the token before its last fork.
    prompts = {row["problem_id"]: row["prompt_length"] for row in drawn if len(row["step_ends"]) > 1}
    stems = [row["step_ends"][-2] - 1 for row in drawn if len(row["step_ends"]) > 1]
    assert annotation["prefill_tokens"] == sum(prompts.values()) + sum(stems)
    for entry in summary["evolve"]:
        assert 0 <= entry["reward_pass_at_2"]["value"] <= entry["pass_at_k"]["value"]
        assert {tuple(row) for row in entry["verifier"].values()} == {("majority", "weighted", "best_of_n")}
    prm = load_prm(finished / "checkpoints" / "prm")
    groups = read_rollouts(finished / "rollouts" / "iteration_0001.parquet")
    responses = [response for group in groups for response in group.responses]
    for response in responses:
        assert len(response.step_scores) == len(prm.step_ends(response))
        assert response.score == pytest.approx(min(response.step_scores, default=0.0))
    measured = read_rollouts(finished / "rollouts" / "validation_0001.parquet")
    assert all(response.score is not None for group in measured for response in group.responses)


def test_dynamics_are_where_they_are_promised(finished: Path) -> None:
    """Every metric by name, for the warm-up and each iteration, in the summary and in the journal."""
    summary, events = read_summary(finished / "summary.json"), read_events(finished / "journal.jsonl")
    for place in (summary.warmup, *summary.evolve):
        assert list(place.dynamics) == DYNAMICS
        assert all(estimate.items == 8 for estimate in place.dynamics.values())
        assert place.dynamics["pass_at_k"] == place.pass_at_k
        assert place.dynamics["reward_pass_at_k"] == place.reward_pass_at_2
        assert 1 <= place.dynamics["length"].value <= 24 and 0 < place.dynamics["entropy"].value < 10
    assert [(row.problems, row.sampled, row.correct is None) for row in summary.evolve] == [(8, 32, False)] * 2
    assert summary.warmup.dynamics["greedy"] == summary.warmup.validation_greedy
    # Before there is a process reward model: what needs none. It has not changed by the scoring.
    (warmup,) = [event["dynamics"] for event in events if event["event"] == "warmup"]
    assert list(warmup) == [name for name in DYNAMICS if name not in ("reward_pass_at_k", "weighted", "best_of_n")]
    # Majority aside: its ties go to the larger sum of scores, where there are scores.
    assert all(warmup[name] == asdict(summary.warmup.dynamics[name]) for name in warmup if name != "majority")
    iterations = [event["dynamics"] for event in events if event["event"] == "iteration"]
    assert [list(found) for found in iterations] == [DYNAMICS] * 2


def test_a_journal_of_an_earlier_version_is_read(finished: Path, tmp_path: Path) -> None:
    """Without dynamics in any event, a run that is complete still writes its summary and report."""
    old = tmp_path / "old"
    shutil.copytree(finished, old)
    events = [json.loads(line) for line in (old / "journal.jsonl").read_text().splitlines()]
    for event in events:
        event.pop("dynamics", None)
    (old / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert run(old, "--resume") == 0
    summary = read_summary(old / "summary.json")
    assert summary.warmup.dynamics == {} and summary.warmup.reward_pass_at_2 is not None
    assert [row.dynamics for row in summary.evolve] == [{}, {}]


def test_the_best_scored_right_responses_are_learned_from(tmp_path: Path, lenient, monkeypatch) -> None:
    """With successes and failures: both labels occur, exactly the two best right responses are kept, training happens;
    and a run that is interrupted where it labels, and again where it learns, ends with the same bits."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(whole) == 0
    labels = {label for row in annotations(whole, "train") for label in row["labels"]}
    assert labels == {0.0, 1.0}
    summary = json.loads((whole / "summary.json").read_text())
    assert all(entry["kept"] > 0 and entry["loss"] > 0 for entry in summary["evolve"])
    assert summary["prm"]["held_out"]["auc"] is not None
    for group in read_rollouts(whole / "rollouts" / "iteration_0002.parquet"):
        right = {r.text.strip(): r.score for r in sorted(group.responses, key=lambda r: r.score) if r.correct}
        kept = [response.score for response in group.responses if response.selected]
        assert sorted(kept, reverse=True) == sorted(right.values(), reverse=True)[:2]
    for owner, method, calls in ((LabelWriter, "write", 1), (Trainer, "step", 8)):
        with monkeypatch.context() as patch:
            interrupt_after(patch, owner, method, calls, KeyboardInterrupt())
            assert run(cut, "--resume") == 130
    assert run(cut, "--resume") == 0
    assert_same_outcome(whole, cut)


@pytest.mark.parametrize(
    "changes",
    [
        ["annotate.mode=soft", "prm.targets=soft", "prm.head=two_class", "select.kind=threshold", "select.alpha=0.4"],
        ["annotate.mode=binary", "prm.head=scalar", "prm.reduction=product", "select.kind=random", "select.alpha=0.1"],
        [
            "steps.delimiter=' '",
            "steps.max_steps=2",
            "prm.reduction=mean",
            "rollout.max_rows=5",
            "temperature.controller=fixed",
            "evaluate.pass_at_k_n=2",
        ],
        ["rollout.decode=fixed", "rollout.image_cache_memory=1048576"],
    ],
)
def test_every_mode_head_and_selection_runs(tmp_path: Path, lenient, changes: list[str]) -> None:
    """End to end: labels of the mode's kind, scores of the reduction, only what scores above alpha is kept."""
    assert run(tmp_path / "run", *changes) == 0
    settings = dict(change.split("=", 1) for change in changes)
    labels = {label for row in annotations(tmp_path / "run", "train") for label in row["labels"]}
    assert labels <= {0.0, 0.5, 1.0} and (0.5 in labels) == (settings.get("annotate.mode") == "soft")
    reduce = {"min": min, "product": math.prod, "mean": lambda steps: sum(steps) / len(steps)}
    for group in read_rollouts(tmp_path / "run" / "rollouts" / "iteration_0001.parquet"):
        for response in group.responses:
            wanted = reduce[settings.get("prm.reduction", "min")](response.step_scores) if response.step_scores else 0
            assert response.score == pytest.approx(wanted, abs=1e-5)
            if response.selected:
                assert response.correct and response.score > float(settings.get("select.alpha", -1))


def test_a_given_process_reward_model_scores_as_it_is(finished: Path, tmp_path: Path) -> None:
    """Without the stages annotate and prm, the checkpoint that the configuration names does the scoring."""
    directory, checkpoints = tmp_path / "given", finished / "checkpoints"
    given = f"prm.model_name_or_path={checkpoints / 'prm'}"
    policy = f"model.model_name_or_path={checkpoints / 'warmup'}"
    assert run(directory, policy, given, "stages=[evolve,evaluate,report]") == 0
    assert json.loads((directory / "summary.json").read_text())["prm"] is None
    groups = read_rollouts(directory / "rollouts" / "iteration_0001.parquet")
    assert all(response.score is not None for group in groups for response in group.responses)


def test_sft_needs_no_scores(tmp_path: Path) -> None:
    """It neither samples nor selects, so what the default selection needs is no concern of it."""
    assert run(tmp_path / "sft", "evolve.method=sft", "stages=[pretrain,warmup,evolve,evaluate]") == 0
    summary = read_summary(tmp_path / "sft" / "summary.json")
    assert [(one.problems, one.sampled, one.kept) for one in summary.evolve] == [(8, 0, 8)] * 2


def test_checkpoints_are_ordinary_directories(finished: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(finished / "checkpoints" / "final")
    AutoProcessor.from_pretrained(finished / "checkpoints" / "final")
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e5
