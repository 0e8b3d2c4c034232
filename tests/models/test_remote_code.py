"""Code that a checkpoint brings: refused, or run and named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import dynamic_module_utils

from mstar_engine.config_parse import load_config
from mstar_engine.evolve.process_reward import check_process_reward
from mstar_engine.models.loading import load_config_of, load_model, save_model
from mstar_engine.models.remote_code import code_files
from mstar_engine.models.tiny import build_tiny
from mstar_engine.reward.prm_checkpoint import load_prm
from mstar_engine.train.prm import new_prm

CONFIGURATION = """
from transformers import LlavaConfig


class OwnConfig(LlavaConfig):
    model_type = "own_llava"
"""
MODELING = """
from transformers import LlavaForConditionalGeneration

from .configuration_own import OwnConfig


class OwnModel(LlavaForConditionalGeneration):
    config_class = OwnConfig
"""


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model as a family that transformers does not know."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))  # which transformers lengthens
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)
    path = tmp_path / "own"
    save_model(*build_tiny(0), path)
    (path / "configuration_own.py").write_text(CONFIGURATION)
    (path / "modeling_own.py").write_text(MODELING)
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "own_llava", "architectures": ["OwnModel"]}
    config["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForImageTextToText": "modeling_own.OwnModel",
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_policy_that_could_not_score_is_refused_before_any_step_is_labelled(checkpoint: Path, tmp_path: Path) -> None:
    """Code whose model has no part of its own below the head: with the stage prm, at the start."""
    said = ["model.trust_remote_code=true", f"model.model_name_or_path={checkpoint}"]
    (checkpoint / "modeling_own.py").write_text(MODELING + '    base_model_prefix = "nothing"\n')
    with pytest.raises(ValueError, match=r"'own_llava' has no part below its output head .* cannot score steps"):
        check_process_reward(load_config("smoke", said), tmp_path)
    check_process_reward(load_config("smoke", [*said, "stages=[evaluate]"]), tmp_path)


def test_code_is_refused_unless_it_is_trusted(checkpoint: Path) -> None:
    assert code_files(checkpoint) == ["configuration_own.py", "modeling_own.py"]
    with pytest.raises(ValueError, match=r"\(configuration_own.py, modeling_own.py\); read it, and set model.trust"):
        load_model(checkpoint)
    with pytest.raises(ValueError, match=r"prm.model_name_or_path=.*allowed: a checkpoint that transformers loads"):
        load_config_of(checkpoint, "prm.model_name_or_path")


def test_trusted_code_is_named_and_run(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = load_model(checkpoint, trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"
    assert caplog.text.count("runs code of the checkpoint: configuration_own.py, modeling_own.py") == 1
    expected, _ = build_tiny(0)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_process_reward_model_of_trusted_code_sees_images(checkpoint: Path) -> None:
    """One fitted from such a policy brings the policy's code."""
    with pytest.raises(ValueError, match="needs code of its own"):
        load_prm(checkpoint, form="mstar")
    said = ["model.trust_remote_code=true", f"model.model_name_or_path={checkpoint}"]
    check_process_reward(load_config("smoke", said), checkpoint)
    prm = load_prm(checkpoint, form="mstar", trust_remote_code=True)
    assert type(prm.model).__name__ == "OwnModel" and prm.encoder.reads_images
    fresh = new_prm(checkpoint, "mstar", "here", seed=0, dtype="float32", trust_remote_code=True)
    assert type(fresh.model).__name__ == "OwnModel"


def test_code_of_a_family_that_transformers_knows_is_not_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_model(*build_tiny(0), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "someone/else--configuration_own.OwnConfig"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert code_files(tmp_path) == ["someone/else: configuration_own.py"]
    assert type(load_model(tmp_path)[0]).__name__ == "LlavaForConditionalGeneration"
    assert not caplog.text


@pytest.mark.parametrize("text", ["", "[]", '{"auto_map": 3}', '{"auto_map": {"AutoConfig": [null, "a.B"]}}'])
def test_configs_that_are_none_name_no_code(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert code_files(tmp_path) == (["a.py"] if "a.B" in text else [])


def test_the_key_is_off_by_default() -> None:
    assert load_config().model.trust_remote_code is False
    assert load_config(overrides=["model.trust_remote_code=true"]).model.trust_remote_code is True
