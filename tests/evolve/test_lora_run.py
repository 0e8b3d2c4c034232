"""Whole runs with adapters: every stage, stopped and resumed, and what is refused before a directory is taken."""

import json
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mstar_engine.config_parse import load_config
from mstar_engine.evolve.loop import Evolution
from mstar_engine.evolve.session import check_training
from mstar_engine.models.export import tensors_of
from mstar_engine.reward import annotate, answers
from mstar_engine.reward.answers import Verdict
from mstar_engine.run import main

LORA = ("model.lora_r=4", "model.lora_dropout=0.1", "model.lora_target_modules=[language_model]")


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def half_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge by whom an untrained policy succeeds, so that the evolution has something to learn from."""
    for module in (answers, annotate):
        monkeypatch.setattr(
            module,
            "judge_response",
            lambda response, gold: Verdict(zlib.crc32(response.text.encode()) % 2 == 0, "", ""),
        )


def run(directory: Path, *arguments: str) -> int:
    return main(["smoke", f"output_dir={directory}", "threads=1", "model.device=cpu", *arguments])


def refusal(*overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        check_training(load_config("smoke", ["model.device=cpu", *overrides]))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("merge", ["false", "true"])
def test_a_whole_run(tmp_path: Path, half_are_right: None, merge: str) -> None:
    """Stopped in the second iteration and resumed, and evaluated in a sitting of its own, it ends with the bits and
    numbers of an undisturbed run."""
    pytest.importorskip("peft")
    options = [*LORA, f"rollout.merge_lora={merge}", "train.gradient_checkpointing=true"]
    assert run(tmp_path / "whole", *options) == 0
    improve = Evolution._improve

    def interrupted(self, iteration, examples):
        if iteration == 1:
            raise KeyboardInterrupt
        return improve(self, iteration, examples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evolution, "_improve", interrupted)
        assert run(tmp_path / "parts", *options) == 130
    stages = "stages=[pretrain, warmup, annotate, prm, evolve]"
    assert run(tmp_path / "parts", "--resume", *options, stages) == 0
    assert run(tmp_path / "parts", "--resume", *options) == 0

    whole, parts = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "parts"))
    assert [entry["kept"] > 0 for entry in whole["evolve"]] == [True, True] and whole["final"] == parts["final"]
    checkpoints = tmp_path / "whole" / "checkpoints"
    for name in ("model.safetensors", "optimizer.safetensors", "adapters/adapter_model.safetensors"):
        a, b = (load_file(tmp_path / which / "checkpoints" / "final" / name) for which in ("whole", "parts"))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
    for name in ("warmup", "iteration_0001", "iteration_0002"):
        assert not (checkpoints / name / "model.safetensors").exists()
        assert (checkpoints / name / "adapter_model.safetensors").exists()
    theirs, ours = tensors_of(checkpoints / "base"), tensors_of(checkpoints / "final")
    assert {key: value[1] for key, value in theirs.items()} == {key: value[1] for key, value in ours.items()}
    before, after = (load_file(checkpoints / name / "model.safetensors") for name in ("base", "final"))
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and all("language_model" in name and "proj" in name for name in changed)
    AutoModelForImageTextToText.from_pretrained(checkpoints / "final")
    AutoProcessor.from_pretrained(checkpoints / "final")


def test_a_dry_run_says_what_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    assert run(tmp_path / "run", *LORA, "--dry_run") == 0
    assert "parameters are trained" in capsys.readouterr().out
    assert run(tmp_path / "run", "--dry_run") == 0
    assert "parameters are trained" not in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_what_a_model_has_not_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    assert "did you mean q_proj?" in refusal("model.lora_r=4", "model.lora_target_modules=[q_prj]")
    tower = ("model.lora_r=4", "model.lora_target_modules=[vision_tower]")
    check_training(load_config("smoke", list(tower)))
    assert "(frozen ones and the output head cannot)" in refusal(*tower, "model.freeze_vision_tower=true")
    assert run(tmp_path / "run", "model.lora_r=4", "model.lora_target_modules=[q_prj]") == 1
    assert "model.lora_target_modules: 'q_prj'" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mstar_engine.models.lora.importlib.util.find_spec", lambda name: None)
    message = refusal("model.lora_r=4")
    assert message == "model.lora_r=4: peft is not installed (pip install 'mstar_engine[peft]'); allowed: 0"
    check_training(load_config("smoke", ["model.device=cpu", "model.freeze_vision_tower=true"]))
