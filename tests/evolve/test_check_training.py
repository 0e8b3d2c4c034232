"""What a machine or a family cannot do in training is refused before a run directory is taken."""

from pathlib import Path

import pytest
import torch

from mstar_engine.config_parse import load_config
from mstar_engine.evolve.session import check_model, check_training
from mstar_engine.models.loading import class_of
from mstar_engine.models.tiny import tiny_config
from mstar_engine.run import main
from mstar_engine.train import liger


def refusal(*overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        check_training(load_config("smoke", list(overrides)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_and_bfloat16_pass() -> None:
    for overrides in (
        [],
        ["train.bf16=true", "model.dtype=bfloat16"],
        ["train.bf16=true", "model.dtype=auto"],
        ["train.packing=true", "train.max_tokens=512", "train.gradient_checkpointing=true"],
        ["model.attn_implementation=auto", "model.device=cpu", "train.use_liger_kernel=false"],
        ["model.dtype=bfloat16", "stages=[evaluate, report]"],
    ):
        check_training(load_config("smoke", overrides))


def test_half_precision_without_master_weights() -> None:
    for dtype in ("bfloat16", "float16"):
        message = refusal(f"model.dtype={dtype}")
        assert message.startswith(f"model.dtype={dtype}: ") and "bfloat16 with train.bf16=true" in message


def test_liger_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = refusal("train.use_liger_kernel=true", "model.device=cpu")
    assert on_cpu.startswith(
        "train.use_liger_kernel=true: its kernels need CUDA, and the policy is on cpu; allowed: auto"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(liger, "_function", lambda: None)
    assert "liger-kernel 0.7 or newer is not installed" in refusal("train.use_liger_kernel=true")
    check_training(load_config("smoke"))  # auto does without
    cuda = torch.device("cuda")
    assert not liger.use_liger("auto", cuda) and not liger.use_liger(False, cuda)
    monkeypatch.setattr(liger, "_function", lambda: object())
    assert liger.use_liger("auto", cuda) and liger.use_liger(True, cuda)
    assert not liger.use_liger("auto", torch.device("cpu")) and not liger.use_liger(False, cuda)


def test_attention_device_and_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "flash_attention_2: it needs CUDA" in refusal(
        "model.attn_implementation=flash_attention_2", "model.device=cpu"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal("model.device=cuda").startswith("model.device=cuda: torch sees no CUDA device")
    monkeypatch.setattr(class_of(tiny_config()), "supports_gradient_checkpointing", False)
    assert "model family 'llava' has none" in refusal("train.gradient_checkpointing=true")


def test_compiling_steps_of_no_fixed_shape() -> None:
    with pytest.raises(ValueError, match=r"^rollout\.torch_compile=true: decode steps on cpu.*allowed: false, or"):
        check_model(load_config("smoke", ["rollout.torch_compile=true", "model.device=cpu"]))
    check_model(load_config("smoke", ["rollout.torch_compile=true", "rollout.decode=fixed", "model.device=cpu"]))


def test_a_refused_run_takes_no_directory(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    directory = tmp_path / "run"
    assert main(["smoke", f"output_dir={directory}", "model.device=cpu", "train.use_liger_kernel=true"]) == 1
    assert "train.use_liger_kernel=true" in capsys.readouterr().err and not directory.exists()
    assert main(["smoke", f"output_dir={directory}", "--dry_run", "model.dtype=float16"]) == 1
    assert "model.dtype=float16" in capsys.readouterr().err
