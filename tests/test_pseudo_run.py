"""Runs that learn from pseudo-labels: what is voted, gated and kept; interruption in between; no leak of answers."""

import json
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_runs import assert_same_outcome, outcome, run, sampling_log

from mstar_engine.config import PromptsConfig
from mstar_engine.data.sources import DataSet, load_data
from mstar_engine.evolve import session
from mstar_engine.evolve.dynamics import wilson
from mstar_engine.evolve.pseudo_labels import passes
from mstar_engine.journal import plain
from mstar_engine.reward import annotate, answers, vote
from mstar_engine.reward.answers import Verdict, normalise
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.rollout_file import RolloutWriter, read_rollouts
from mstar_engine.run import main
from mstar_engine.types import Group

MIXED = ("iteration_0002", "iteration_0003")
SHARE = 0.55
PSEUDO = [
    "data.unlabelled_problems=16",
    "prompts.unlabelled=pseudo",
    "prompts.mix_in_from=0.3",
    f"prompts.min_share={SHARE}",
    "evolve.iterations=3",
    "temperature.controller=fixed",
]


def lenient(patch: pytest.MonkeyPatch) -> None:
    """Answers that an untrained policy can agree on: the checksum of a text by 3, compared with the gold by 3."""

    def answer(response) -> str:
        return str(zlib.crc32(response.text.encode()) % 3)

    def verdict(response, gold: str) -> Verdict:
        return Verdict(int(answer(response)) == int(gold) % 3, answer(response), "checksum")

    for module in (answers, annotate):
        patch.setattr(module, "judge_response", verdict)
    patch.setattr(vote, "_answer", answer)


@pytest.fixture(autouse=True)
def _lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    lenient(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that nothing disturbed: one iteration of labelled problems, two mixed ones."""
    directory = tmp_path_factory.mktemp("pseudo") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        lenient(patch)
        assert run(directory, *PSEUDO) == 0
    yield directory


def rollouts(directory: Path, name: str) -> list[Group]:
    return read_rollouts(directory / "rollouts" / f"{name}.parquet")


def entries(directory: Path) -> list[dict]:
    return json.loads((directory / "summary.json").read_text())["evolve"]


def test_pseudo_labels_are_what_the_responses_vote_for(whole: Path) -> None:
    """Every mixed group is told apart, labelled by its own scores, gated, judged by its label, and learned from."""
    gate = PromptsConfig(unlabelled="pseudo", min_share=SHARE)
    assert {group.problem.label for group in rollouts(whole, "iteration_0001")} == {"gold"}
    seen = []
    for name in MIXED:
        for group in rollouts(whole, name):
            if group.problem.label == "gold":
                assert group.problem.id < "train-000016" and group.problem.truth is None
                continue
            assert group.problem.label == "pseudo" and group.problem.id >= "train-000016"
            assert all(response.score is not None for response in group.responses)
            elected = vote.weighted_vote(group)
            assert group.problem.gold == (elected.answer if passes(elected, gate) else None)
            seen += [group]
            for response in group.responses:
                agrees = None if group.problem.gold is None else response.answer == group.problem.gold
                assert response.correct is agrees and (agrees or not response.selected)
    refused = sum(group.problem.gold is None for group in seen)
    assert len(seen) >= 4 and 0 < refused < len(seen)
    assert any(response.selected for group in seen for response in group.responses)


def test_the_summary_says_how_pseudo_labels_did(whole: Path) -> None:
    """Counts and accuracy from the rollouts, by the true answers, which the data has."""
    data = load_data(session_config(*PSEUDO).data, seed=0)
    truths = {problem.id: problem.gold for problem in data.unlabelled}
    assert entries(whole)[0]["pseudo"] is None
    for name, entry in zip(MIXED, entries(whole)[1:], strict=True):
        groups = [group for group in rollouts(whole, name) if group.problem.label == "pseudo"]
        assert {group.problem.id: group.problem.truth for group in groups}.items() <= truths.items()
        passed = [group.problem for group in groups if group.problem.gold is not None]
        right = sum(normalise(problem.gold) == normalise(truths[problem.id]) for problem in passed)
        assert entry["pseudo"] == {
            "problems": len(groups),
            "voted": len(groups),
            "passed": len(passed),
            "accuracy": plain(wilson(right, len(passed))),
        }
        assert entry["problems"] == 8 and entry["sampled"] == 32 and entry["kept"] > 0 and entry["loss"] > 0
    assert "pseudo-label" in (whole / "report.html").read_text()


def session_config(*arguments: str):
    from mstar_engine.config_parse import load_config

    return load_config("smoke", list(arguments))


def test_interrupted_in_the_middle_of_a_pseudo_labelled_iteration(whole: Path, tmp_path: Path, monkeypatch) -> None:
    """Finished groups come back with the labels that they had; the run ends with the bits of the undisturbed one."""
    original, left = RolloutWriter.write, 1

    def write(self: RolloutWriter, *groups: Group) -> None:
        nonlocal left
        if self.path.stem == "iteration_0002":
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
        original(self, *groups)

    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(RolloutWriter, "write", write)
        patch.setattr(RolloutEngine, "generate_batches", _pseudo_first(RolloutEngine.generate_batches))
        assert run(cut, *PSEUDO) == 130
    kept = {group.problem.id: group.problem for group in rollouts(cut, "iteration_0002")}
    assert len(kept) < 8 and any(problem.gold for problem in kept.values() if problem.label == "pseudo")
    sampled = sampling_log(monkeypatch)
    assert run(cut, *PSEUDO, "--resume") == 0
    assert not sampled[2] & kept.keys()
    assert_same_outcome(whole, cut)


def _pseudo_first(original):
    """Those to be pseudo-labelled are sampled first, so that some are kept when the interruption comes."""

    def generate(self, problems, params, **options):
        problems = sorted(problems, key=lambda problem: problem.label != "pseudo")
        return original(self, problems, params, **options)

    return generate


def with_golds(change) -> object:
    """`load_data` with the unlabelled problems' golds changed."""

    def load(*arguments, **options) -> DataSet:
        data = load_data(*arguments, **options)
        return replace(data, unlabelled=[replace(problem, gold=change(problem.gold)) for problem in data.unlabelled])

    return load


@pytest.mark.parametrize("change", [lambda gold: "1234", lambda gold: None], ids=["false", "none"])
def test_true_answers_of_unlabelled_problems_change_nothing(whole: Path, tmp_path: Path, monkeypatch, change) -> None:
    """Rollouts, labels, selection and weights are the same to the bit; only what is said of the labels differs."""
    monkeypatch.setattr(session, "load_data", with_golds(change))
    assert run(tmp_path / "other", *PSEUDO) == 0
    one, other = outcome(whole), outcome(tmp_path / "other")
    for found in (one, other):
        for rows in found["rollouts"].values():
            for row in rows:
                row.pop("truth", None)
    assert one["rollouts"] == other["rollouts"]
    assert all(tensor.equal(other["tensors"][name]) for name, tensor in one["tensors"].items())
    for entry in entries(tmp_path / "other")[1:]:
        accuracy = entry["pseudo"]["accuracy"]
        assert accuracy is None if change("1") is None else accuracy["value"] == 0


def evolved(whole: Path, directory: Path, *more: str) -> int:
    """The evolution alone, from the whole run's warmed-up policy, without a process reward model."""
    policy = f"model.model_name_or_path={whole / 'checkpoints' / 'warmup'}"
    return run(directory, *PSEUDO, policy, "stages=[evolve]", "select.kind=all", *more)


def test_a_majority_needs_no_process_reward_model(whole: Path, tmp_path: Path) -> None:
    assert evolved(whole, tmp_path / "majority", "prompts.vote=majority") == 0
    groups = [group for name in MIXED for group in rollouts(tmp_path / "majority", name)]
    for group in groups:
        assert all(response.score is None for response in group.responses)
        if group.problem.label == "pseudo":
            elected = vote.majority_vote(group)
            assert group.problem.gold == (elected.answer if elected.share >= SHARE else None)


def test_a_weighted_vote_scores_what_it_needs(whole: Path, tmp_path: Path) -> None:
    """Where selection asks for no scores, the responses that vote have them and no others."""
    prm = f"prm.model_name_or_path={whole / 'checkpoints' / 'prm'}"
    assert evolved(whole, tmp_path / "weighted", prm) == 0
    for group in (group for name in MIXED for group in rollouts(tmp_path / "weighted", name)):
        assert {response.score is not None for response in group.responses} == {group.problem.label == "pseudo"}


def test_an_oracle_judges_by_true_answers(whole: Path, tmp_path: Path) -> None:
    """The same problems as with pseudo-labels, judged by their golds; nothing is said of pseudo-labels."""
    assert evolved(whole, tmp_path / "oracle", "prompts.unlabelled=oracle") == 0
    truths = {problem.id: problem.gold for problem in load_data(session_config(*PSEUDO).data, seed=0).unlabelled}
    for name in MIXED:
        groups = rollouts(tmp_path / "oracle", name)
        assert [group.problem.id for group in groups] == [group.problem.id for group in rollouts(whole, name)]
        mixed = {group.problem.id: group.problem for group in groups if group.problem.label != "gold"}
        assert mixed and all(one.label == "oracle" and one.gold == truths[key] for key, one in mixed.items())
    assert all(entry["pseudo"] is None for entry in events(tmp_path / "oracle"))


def events(directory: Path) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "iteration"]


def test_a_weighted_vote_needs_scores_before_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said by a run and by a dry run, and the directory is not taken."""
    for flag in ([], ["--dry_run"]):
        said = [*PSEUDO, "select.kind=all", "stages=[pretrain,warmup,evolve]", *flag]
        assert run(tmp_path / "new", *said) == 1
        message = capsys.readouterr().err
        assert "prompts.vote=weighted" in message and "prompts.vote=majority" in message and message.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_leaks_are_refused_before_work(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    def leaky(*arguments, **options) -> DataSet:
        data = load_data(*arguments, **options)
        return replace(data, validation=data.validation[:-1] + data.unlabelled[-1:])

    monkeypatch.setattr(session, "load_data", leaky)
    for flag in ([], ["--dry_run"]):
        assert run(tmp_path / "new", *PSEUDO, *flag) == 1
        message = capsys.readouterr().err
        assert "validation set: 1 of 8 problems" in message and message.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_dry_run_says_what_is_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["smoke", f"output_dir={tmp_path / 'none'}", "--dry_run"]
    assert main([*arguments, *PSEUDO]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("prompts:")]
    assert said and "from iteration 2 on 16 unlabelled with pseudo-labels by weighted vote" in said[0]
    assert main(arguments) == 0
    assert "prompts:" not in capsys.readouterr().out


def test_older_rollouts_of_this_run_are_read(whole: Path, tmp_path: Path) -> None:
    """Files from before pseudo-labels lack their columns."""
    table = pq.read_table(whole / "rollouts" / "iteration_0001.parquet")
    pq.write_table(table.drop_columns(["label", "truth"]), tmp_path / "old.parquet")
    old, new = read_rollouts(tmp_path / "old.parquet"), rollouts(whole, "iteration_0001")
    assert [group.problem for group in old] == [group.problem for group in new]
