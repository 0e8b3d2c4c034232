"""The command line end to end: every stage with the smoke recipe, interruption at every kind of place, refusals."""

import json
import math
import os
import shutil
import subprocess
import sys
import zlib
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from mstar_engine.evolve import loop, pipeline, process_reward
from mstar_engine.evolve.evaluate import Evaluation
from mstar_engine.evolve.pipeline import Pipeline
from mstar_engine.evolve.sweep import Sweep
from mstar_engine.journal import read_events
from mstar_engine.reward import annotate, answers
from mstar_engine.reward.answers import Verdict
from mstar_engine.reward.label_file import LabelWriter
from mstar_engine.reward.prm_checkpoint import load_prm
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.rollout_file import RolloutWriter, read_rollouts
from mstar_engine.run import main
from mstar_engine.summary import read_summary
from mstar_engine.table_file import TableWriter
from mstar_engine.train.trainer import Trainer

ROOT = Path(__file__).parent.parent
PATHS = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
TIMED = {"seconds", "sample_seconds", "tokens_per_second", "time"}


def run(directory: Path, *arguments: str) -> int:
    return main(["smoke", f"output_dir={directory}", "threads=1", *arguments])


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("run") / "whole"
    assert run(directory) == 0
    return directory


def outcome(directory: Path) -> dict:
    """Everything a run decides: weights, moments, what was sampled, what was measured; times aside."""
    summary = json.loads((directory / "summary.json").read_text())
    for entry in summary["evolve"]:
        for key in TIMED & set(entry):
            del entry[key]
        if entry["sweep"]:
            del entry["sweep"]["seconds"]
    del summary["seconds"]
    del summary["prm"]["annotation"]  # what it cost: an interruption costs what was in flight
    rollouts = {
        path.name: pq.read_table(path).to_pylist()
        for folder in ("rollouts", "annotations")
        for path in sorted((directory / folder).glob("*.parquet"))
    }
    tensors = {
        f"{name}/{key}": value
        for name in ("prm/model.safetensors", "final/model.safetensors", "final/optimizer.safetensors")
        for key, value in load_file(directory / "checkpoints" / name).items()
    }
    return {"summary": summary, "rollouts": rollouts, "tensors": tensors}


def assert_alike(a: object, b: object) -> None:
    """Equal, floats up to rounding."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_alike(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b):
            assert_alike(one, other)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    else:
        assert a == b


def assert_same_outcome(one: Path, other: Path) -> None:
    """Weights and moments bit for bit; tokens and verdicts exactly. A log-probability may differ in its last bits where
    the rest of a phase was sampled in other batches: matrix products round by batch size."""
    a, b = outcome(one), outcome(other)
    assert_alike(a["summary"], b["summary"])
    assert_alike(a["rollouts"], b["rollouts"])
    assert a["tensors"].keys() == b["tensors"].keys()
    for name, tensor in a["tensors"].items():
        assert torch.equal(tensor, b["tensors"][name]), name


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


def annotations(directory: Path, name: str) -> list[dict]:
    return pq.read_table(directory / "annotations" / f"{name}.parquet").to_pylist()


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge by whom an untrained policy succeeds: a response is right by the parity of its text's checksum."""

    def verdict(response, gold: str) -> Verdict:
        return Verdict(zlib.crc32(response.text.encode()) % 2 == 0, response.text, "checksum")

    for module in (answers, annotate):
        monkeypatch.setattr(module, "judge_response", verdict)


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prm.model_name_or_path=/no/such"], "prm.model_name_or_path=/no/such"),
        (["prm.form=bogus"], "prm.form=bogus"),
        (["stages=[pretrain,warmup,prm]"], "add annotate"),
    ],
)
def test_what_the_process_reward_lacks_is_said_before_work(tmp_path: Path, arguments, said, capsys) -> None:
    """One line, and the directory is not taken."""
    assert run(tmp_path / "new", *arguments) == 1
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_given_process_reward_model_scores_as_it_is(finished: Path, tmp_path: Path) -> None:
    """Without the stages annotate and prm, the checkpoint that the configuration names does the scoring."""
    directory, checkpoints = tmp_path / "given", finished / "checkpoints"
    given = f"prm.model_name_or_path={checkpoints / 'prm'}"
    policy = f"model.model_name_or_path={checkpoints / 'warmup'}"
    assert run(directory, policy, given, "stages=[evolve,evaluate,report]") == 0
    assert json.loads((directory / "summary.json").read_text())["prm"] is None
    groups = read_rollouts(directory / "rollouts" / "iteration_0001.parquet")
    assert all(response.score is not None for group in groups for response in group.responses)


def test_selection_by_score_needs_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said before the directory is taken, with what would do."""
    assert run(tmp_path / "new", "stages=[pretrain,warmup,evolve]") == 1
    message = capsys.readouterr().err
    assert "select.kind=top_k" in message and "prm.model_name_or_path" in message and message.count("\n") == 1
    assert not (tmp_path / "new").exists()


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


def test_resuming_a_finished_run_does_nothing_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = outcome(finished)
    journal = (finished / "journal.jsonl").read_text().count('"iteration"')
    assert run(finished, "--resume") == 0
    assert "report" in capsys.readouterr().out
    assert (finished / "journal.jsonl").read_text().count('"iteration"') == journal
    assert outcome(finished)["summary"] == before["summary"]


def interrupt_after(
    monkeypatch: pytest.MonkeyPatch, owner: object, method: str, calls: int, error: BaseException
) -> None:
    """Let `method` work `calls` times and then raise."""
    original = getattr(owner, method)
    left = calls

    def wrapped(*args: object, **kwargs: object) -> object:
        nonlocal left
        if left == 0:
            raise error
        left -= 1
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, wrapped)


INTERRUPTIONS = {
    "before the policy is warm": [
        ("pretraining", "pretrain", Trainer, "step", 1),
        ("warm-up", "warmup", Trainer, "step", 3),
        ("rollouts of the warm-up's measurement", "warmup", RolloutWriter, "write", 1),
        ("measuring the warm-up", "warmup", Pipeline, "_measure", 1),
        ("between two measurements", "warmup", RolloutWriter, "finish", 1),
    ],
    "before there is a process reward model": [
        ("solutions to label", "annotate", RolloutWriter, "finish", 3),
        ("labelling steps", "annotate", LabelWriter, "write", 1),
        ("between the two label files", "annotate", LabelWriter, "finish", 1),
        ("fitting the process reward model", "prm", Trainer, "step", 1),
        ("judging the process reward model", "prm", process_reward, "step_quality", 0),
        ("before the process reward model's journal entry", "prm", process_reward.ProcessReward, "fitted", 0),
    ],
    "while it evolves": [
        ("sweeping temperatures", "evolve", Sweep, "_keep", 1),
        ("between a sweep and its choice", "evolve", TableWriter, "finish", 0),
        ("between a choice of temperature and rollouts", "evolve", loop.Evolution, "_generate", 0),
        ("between rollouts and training", "evolve", loop.Evolution, "_improve", 0),
        ("measuring the second iteration", "evolve", loop, "measure_policy", 1),
        ("final measurement", "evaluate", Evaluation, "_measure", 1),
        ("between the final measurement and its journal entry", "evaluate", pipeline, "final_of", 0),
    ],
}
"""Places of one run after another, by their stage: each sitting ends there, behind so many calls that went well."""


@pytest.mark.parametrize("when", INTERRUPTIONS)
def test_interrupted_equals_uninterrupted(
    when: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, kept = tmp_path / "cut", {}
    for place, stage, owner, method, calls in INTERRUPTIONS[when]:
        with monkeypatch.context() as patch:
            sampled = sampling_log(patch)
            interrupt_after(patch, owner, method, calls, KeyboardInterrupt())
            assert run(cut, "--resume") == 130, place
        assert_none_again(kept, sampled, place)
        kept = {name: read_ids(cut, name) for name in ("iteration_0001", "iteration_0002")}
        assert [one["stage"] for one in read_events(cut / "journal.jsonl") if one.get("state") == "stopped"][
            -1
        ] == stage
    sampled = sampling_log(monkeypatch)
    assert run(cut, "--resume") == 0
    assert_none_again(kept, sampled, "the end")
    assert_same_outcome(finished, cut)


def assert_none_again(kept: dict[str, set[str]], sampled: dict[int, set[str]], place: str) -> None:
    for name, ids in kept.items():
        again = sampled.get(int(name[-4:]), set()) & ids
        assert not again, f"sampled again on the way to {place}: {again}"


@pytest.mark.parametrize("controller", ["racing", "continuous"])
def test_a_controllers_memory_survives_interruptions(controller: str, tmp_path: Path, lenient, monkeypatch) -> None:
    """A choice before every iteration, each depending on the earlier ones; cut in a sweep, behind it, between the
    rounds of one, and in measuring."""
    changes = [
        f"temperature.controller={controller}", "temperature.every=1", "temperature.problems=0",
        "temperature.budget=1.0", "evolve.iterations=3",
    ]  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(whole, *changes) == 0
    places = [(Sweep, "_keep", 1), (loop.Evolution, "_improve", 0), (Sweep, "_values", 1), (loop, "measure_policy", 0)]
    for owner, method, calls in places:
        with monkeypatch.context() as patch:
            interrupt_after(patch, owner, method, calls, KeyboardInterrupt())
            assert run(cut, *changes, "--resume") == 130
    assert run(cut, *changes, "--resume") == 0
    assert_same_outcome(whole, cut)
    entries = json.loads((whole / "summary.json").read_text())["evolve"]
    assert [entry["sweep"]["present"] for entry in entries] == [1.0, *(e["temperature"] for e in entries[:-1])]
    assert all(entry["sweep"]["drawn"] <= 8 * 3 * 4 and entry["sweep"]["model"] for entry in entries)


def test_temperature_by_step_scores_needs_a_scorer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said before the directory is taken; another metric, or a fixed temperature, asks for no scores."""
    stages = ["stages=[pretrain,warmup,evolve]", "select.kind=random"]
    assert run(tmp_path / "new", *stages) == 1
    message = capsys.readouterr().err
    assert "temperature.metric=reward_pass_at_k" in message and message.count("\n") == 1
    assert not (tmp_path / "new").exists()
    for number, change in enumerate(("temperature.metric=balance", "temperature.controller=fixed")):
        assert run(tmp_path / str(number), *stages, change) == 0


def read_ids(directory: Path, name: str) -> set[str]:
    return {group.problem.id for group in read_rollouts(directory / "rollouts" / f"{name}.parquet")}


def sampling_log(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[str]]:
    """Problem ids that the engine samples for training from here on, by iteration."""
    seen: dict[int, set[str]] = {}
    original = RolloutEngine.generate_batches

    def logged(self, problems, params, **options):
        if not options and problems:
            seen.setdefault(params.seed, set()).update(problem.id for problem in problems)
        return original(self, problems, params, **options)

    monkeypatch.setattr(RolloutEngine, "generate_batches", logged)
    return seen


def test_disk_full_keeps_what_was_finished(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    full = OSError(28, "No space left on device", "rollouts")
    with monkeypatch.context() as patch:
        interrupt_after(patch, RolloutWriter, "write", 2, full)
        assert run(tmp_path / "full") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert run(tmp_path / "full", "--resume") == 0
    assert_same_outcome(finished, tmp_path / "full")


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A file size limit of the process stands for the disk: a real short write in the middle of a checkpoint."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from mstar_engine.run import main; import mstar_engine.evolve.session;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000));"
        f"sys.exit(main(['smoke', 'output_dir={tmp_path / 'full'}', 'threads=1']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": PATHS}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "earlier ones are intact" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "full" / "checkpoints").glob("*.part"))


def test_a_typo_does_not_take_the_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "new", "model.model_name_or_path=/no/such/model") == 1
    assert "model.model_name_or_path=/no/such/model" in capsys.readouterr().err
    assert run(tmp_path / "new", "rollout.max_completion_length=600") == 1
    assert "rollout.max_completion_length=600" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_crash_between_checkpoint_and_journal(finished: Path, tmp_path: Path) -> None:
    """The journal ends behind the first iteration's checkpoint: that iteration is measured, not trained, again."""
    cut = tmp_path / "cut"
    shutil.copytree(finished, cut)
    lines = (cut / "journal.jsonl").read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if '"event":"iteration"' in line)
    (cut / "journal.jsonl").write_text("".join(lines[:first]))
    for name in ("checkpoints/iteration_0002", "checkpoints/final"):
        shutil.rmtree(cut / name)
    for path in cut.glob("rollouts/*_0002.parquet"):
        path.unlink()
    assert run(cut, "--resume") == 0
    assert_same_outcome(finished, cut)
    assert run(cut, "--resume") == 0
    assert_same_outcome(finished, cut)


def test_full_disk_while_saving_a_checkpoint(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from mstar_engine.train import checkpoint

    with monkeypatch.context() as patch:
        interrupt_after(patch, checkpoint, "save_file", 2, OSError(28, "No space left on device"))
        assert run(tmp_path / "full") == 1
    assert "earlier ones are intact" in capsys.readouterr().err
    assert run(tmp_path / "full", "--resume") == 0
    assert_same_outcome(finished, tmp_path / "full")


def test_another_configuration_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(finished, "--resume", "train.learning_rate=0.123") == 1
    message = capsys.readouterr().err
    assert "train.learning_rate" in message and "output_dir" in message
    assert run(finished) == 1
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("rollout.temprature=1", "rollout.temperature"),
        ("rollout.n=0", "rollout.n"),
        ("rollout.n=many", "rollout.n"),
        ("rollout.max_rows=2", "rollout.max_rows"),
        ("evaluate.pass_at_k_n=500", "evaluate"),
        ("select.kind=best", "select.kind"),
        ("select.kind=threshold", "select.alpha"),
        ("annotate.mode=easy", "annotate.mode"),
        ("prm.reduction=max", "prm.reduction"),
        ("data.dataset_name=foo", "data.dataset_name"),
        ("model.attn_implementation=flash", "model.attn_implementation"),
        ("rollout.temperature=-1", "rollout.temperature"),
        ("train.lr_scheduler_type=cosine", "train.max_steps"),
        ("nosuch.yaml", "nosuch.yaml"),
    ],
)
def test_bad_arguments_stop_in_one_line(argument: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smoke", argument] if "=" in argument else [argument]) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


def test_print_config_and_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smoke", "--print_config", "rollout.n=5"]) == 0
    assert "n: 5" in capsys.readouterr().out
    assert main(["smoke", "--dry_run", f"output_dir={tmp_path / 'none'}"]) == 0
    assert "responses" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_refusals_do_not_wait_for_torch() -> None:
    """A misspelt key must not cost the seconds that importing torch takes."""
    code = "import sys; from mstar_engine.run import main; main(['x=1']); sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment, capture_output=True)
