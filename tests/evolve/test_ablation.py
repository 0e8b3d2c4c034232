"""The ablation runner with the smoke recipe: real runs in processes of their own, interrupted and broken too."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mstar_engine import presets
from mstar_engine.evolve import ablation as runner
from mstar_engine.evolve.ablation import AblationOptions, AblationRuns, run_ablation
from mstar_engine.presets import ABLATIONS, Ablation
from mstar_engine.run import main
from mstar_engine.yaml_text import ConfigError

ROOT = Path(__file__).parent.parent.parent
TWO = Ablation(title="Two rows", rows=(("Top-2", "top_2"), ("all", "continuous_25")), reference="top_2")
OPTIONS = ["rollout.max_rows=17", "evaluate.pass_at_k_n=2", "evolve.iterations=1"]


@pytest.fixture(autouse=True)
def two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ABLATIONS, "two", TWO)
    # The runs are started as `python -m mstar_engine.run` and must find this tree.
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'kernels'}")


def arguments(folder: Path, *more: str) -> list[str]:
    return ["smoke", "ablation=two", "seeds=1", f"output_dir={folder}", *OPTIONS, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ABLATIONS, "two", TWO)
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'kernels'}")
        assert main(arguments(folder / "runs", f"results={folder / 'results'}")) == 0
    return folder


def test_arms_share_the_warm_up_and_differ_in_the_preset(finished: Path) -> None:
    runs = finished / "runs" / "seed0"
    shared = runs / "shared" / "checkpoints"
    for preset in ("top_2", "continuous_25"):
        for name in ("warmup", "prm"):
            file = f"{name}/model.safetensors"
            assert (runs / preset / "checkpoints" / file).read_bytes() == (shared / file).read_bytes()
        assert (runs / preset / "report.html").exists()
    summaries = [json.loads((runs / preset / "summary.json").read_text()) for preset in ("top_2", "continuous_25")]
    assert summaries[0]["warmup"] == summaries[1]["warmup"] and summaries[0]["prm"] == summaries[1]["prm"]
    texts = [(runs / preset / "config.yaml").read_text() for preset in ("top_2", "continuous_25")]
    assert "kind: top_k" in texts[0] and "kind: all" in texts[1]


def test_the_outcome_is_written_with_what_it_takes_to_repeat_it(finished: Path) -> None:
    (written,) = (finished / "results").glob("*_two.json")
    assert written.name.endswith("_cpu_two.json")
    record = json.loads(written.read_text())
    assert record == json.loads((finished / "runs" / "two.json").read_text())
    assert {"device", "versions", "date", "command", "rows", "warmup", "title"} <= record.keys()
    assert record["command"].startswith("python -m mstar_engine.run smoke ablation=two seeds=1")
    assert [row["preset"] for row in record["rows"]] == ["top_2", "continuous_25"]
    assert all(row["sampled"] == 4 * 16 for row in record["rows"])
    table = written.with_suffix(".md").read_text()
    assert "| Top-2" in table and record["command"] in table
    figure = written.with_suffix(".svg").read_text()
    assert figure.startswith("<svg") and "Top-2" in figure and "<style>" in figure


def test_what_is_done_is_not_done_again(finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert main(arguments(finished / "runs")) == 0
    assert "0 of 2 runs to do" in capsys.readouterr().out


def test_a_run_that_fails_leaves_the_others(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its reason is said, the table has the rows that are there, the exit status tells."""
    folder = tmp_path / "runs"
    assert main(arguments(finished / "runs", "--dry_run")) == 0
    options = AblationOptions(name="two", seeds=1, jobs=1)
    runs = AblationRuns(options, "smoke", [f"output_dir={folder}", *OPTIONS], print)
    shared = finished / "runs" / "seed0" / "shared"
    (folder / "seed0").mkdir(parents=True)
    runner.fork_run(shared, folder / "seed0" / "shared", runs.configs[0, "shared"])
    runner.fork_run(shared, folder / "seed0" / "top_2", runs.configs[0, "top_2"])
    (folder / "seed0" / "top_2" / "checkpoints" / "prm" / "model.safetensors").unlink()
    capsys.readouterr()
    assert run_ablation(options, "smoke", [f"output_dir={folder}", *OPTIONS]) == 1
    said = capsys.readouterr()
    assert "seed0/top_2: failed" in said.err and "top_2.log" in said.err
    assert [row["preset"] for row in json.loads((folder / "two.json").read_text())["rows"]] == ["continuous_25"]


def test_terminated_and_run_again(finished: Path, tmp_path: Path) -> None:
    """SIGTERM ends the runs too, where SIGINT is ignored as well; the same command goes on to the same outcome."""
    folder = tmp_path / "runs"
    rows = repr(TWO.rows)
    code = (
        "import sys; from mstar_engine.presets import ABLATIONS, Ablation; from mstar_engine.run import main;"
        f"ABLATIONS['two'] = Ablation(title='Two rows', rows={rows}, reference='top_2');"
        f"sys.exit(main({arguments(folder)!r}))"
    )
    with open(tmp_path / "log", "w") as log:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
        signal.signal(signal.SIGINT, before)
        deadline = time.monotonic() + 120
        while not list(folder.glob("seed0/*/rollouts/*.p*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 130, (tmp_path / "log").read_text()
    assert "interrupted" in (tmp_path / "log").read_text()
    assert not list(folder.glob("two.*"))
    assert main(arguments(folder)) == 0  # a run that had survived would hold its folder
    records = [json.loads((place / "two.json").read_text()) for place in (folder, finished / "runs")]
    assert records[0]["rows"] == records[1]["rows"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["ablation=tow"], "ablation=tow: no such ablation; did you mean two"),
        (["ablation=two", "seeds=0"], "seeds=0"),
        (["ablation=two", "seeds=many"], "seeds=many"),
        (["ablation=two", "jobs=-1"], "jobs=-1"),
        (["seeds=3"], "only with ablation="),
        (["ablation=two", "select.kind=all"], "select.kind: the rows of an ablation set it"),
        (["ablation=two", "select={kind: random, k: 2}"], "select: the rows of an ablation set it"),
        (["ablation=two", "threads=abc"], 'threads="abc"'),
        (["ablation=two", "stages=[evolve,evaluate]"], "add warmup"),
        (["ablation=two", "seed=3"], "seed: the rows of an ablation set it"),
        (["ablation=two", "rollout.n=0"], "rollout.n=0"),
        (["ablation=two", "--print_config"], "--print_config"),
    ],
)
def test_refusals(given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*given, f"output_dir={tmp_path / 'runs'}"]) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_an_arm_of_another_configuration_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the old outcome would be printed as that of the new configuration."""
    before = (finished / "runs" / "two.json").read_text()
    for change, key in (("train.learning_rate=0.5", "train.learning_rate"), ("evolve.passes=9", "evolve.passes")):
        assert main(arguments(finished / "runs", change)) == 2
        message = capsys.readouterr().err
        assert key in message and "another configuration" in message and message.count("\n") == 1
    assert (finished / "runs" / "two.json").read_text() == before


def test_the_shared_warm_up_is_that_of_every_ablation(finished: Path) -> None:
    """Another table in the same folder goes on from the same warm-up, whatever its presets say of the evolution."""
    options = AblationOptions(name="paper_methods", seeds=1)
    runs = AblationRuns(options, "smoke", [f"output_dir={finished / 'runs'}", *OPTIONS], print)
    assert runs._done(0, "shared") and not runs._done(0, "sft")


def test_results_must_be_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(arguments(tmp_path / "runs", f"results={tmp_path / 'file'}")) == 2
    assert "results=" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_damaged_summary_is_named(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns(".lock"))
    path = tmp_path / "runs" / "seed0" / "top_2" / "summary.json"
    for arm in ("top_2", "continuous_25", "shared"):
        config = tmp_path / "runs" / "seed0" / arm / "config.yaml"
        config.write_text(config.read_text().replace(str(finished), str(tmp_path)))
    path.write_text("{")
    assert main(arguments(tmp_path / "runs")) == 1
    assert str(path) in capsys.readouterr().err


def test_a_table_that_needs_scores_is_refused_without_a_scorer(tmp_path: Path) -> None:
    overrides = [f"output_dir={tmp_path}", "stages=[pretrain,warmup,evolve,evaluate]", *OPTIONS]
    with pytest.raises(ValueError, match=r"select\.kind=top_k"):
        AblationRuns(AblationOptions(name="two"), "smoke", overrides, print)
    assert presets.ABLATIONS["two"] is TWO
    with pytest.raises(ConfigError, match="did you mean paper_methods"):
        AblationRuns(AblationOptions(name="paper_method"), "smoke", overrides, print)
