"""What the command line refuses, in one line and before any work."""

import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import ROOT, run

from mstar_engine.run import main


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


def test_selection_by_score_needs_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said before the directory is taken, with what would do."""
    assert run(tmp_path / "new", "stages=[pretrain,warmup,evolve]") == 1
    message = capsys.readouterr().err
    assert "select.kind=top_k" in message and "prm.model_name_or_path" in message and message.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_temperature_by_step_scores_needs_a_scorer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said before the directory is taken; another metric, or a fixed temperature, asks for no scores."""
    stages = ["stages=[pretrain,warmup,evolve]", "select.kind=random"]
    assert run(tmp_path / "new", *stages) == 1
    message = capsys.readouterr().err
    assert "temperature.metric=reward_pass_at_k" in message and message.count("\n") == 1
    assert not (tmp_path / "new").exists()
    for number, change in enumerate(("temperature.metric=balance", "temperature.controller=fixed")):
        assert run(tmp_path / str(number), *stages, change) == 0


def test_a_typo_does_not_take_the_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "new", "model.model_name_or_path=/no/such/model") == 1
    assert "model.model_name_or_path=/no/such/model" in capsys.readouterr().err
    assert run(tmp_path / "new", "rollout.max_completion_length=600") == 1
    assert "rollout.max_completion_length=600" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


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
