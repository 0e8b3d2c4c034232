"""Where a model is loaded, and with which attention: what "auto" comes to, and what cannot be met."""

import importlib.util
import json

import pytest
import torch

from mstar_engine.models.loading import (
    attention_of,
    blank_model,
    class_of,
    device_of,
    load_config_of,
    load_model,
    save_model,
)
from mstar_engine.models.tiny import build_tiny, tiny_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with a GPU of capability 9.0 and flash-attn, as far as anyone asks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return monkeypatch


def test_auto_takes_flash_attention_where_it_runs(hopper: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    assert class_of(config)._supports_flash_attn
    assert attention_of("auto", config, "bfloat16", CUDA) == "flash_attention_2"
    assert attention_of("flash_attention_2", config, "float16", CUDA) == "flash_attention_2"
    assert attention_of("sdpa", config, "bfloat16", CUDA) == "sdpa"
    assert attention_of("eager", config, "bfloat16", CUDA) == "eager"


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("cuda", "it needs CUDA, and the model is on cpu"),
        ("half", "it needs half precision, and model.dtype is float32"),
        ("capability", "it needs compute capability 8.0 or newer"),
        ("package", "flash-attn is not installed"),
        ("family", "model family 'llava' does not support it"),
    ],
)
def test_where_it_does_not_auto_is_sdpa_and_a_wish_is_refused(
    missing: str, reason: str, hopper: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    if missing == "capability":
        hopper.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    elif missing == "package":
        hopper.setattr(importlib.util, "find_spec", lambda name: None)
    elif missing == "family":
        hopper.setattr(class_of(config), "_supports_flash_attn", False)
    dtype, device = "float32" if missing == "half" else "bfloat16", CPU if missing == "cuda" else CUDA
    assert attention_of("auto", config, dtype, device) == "sdpa"
    with pytest.raises(ValueError) as caught:
        attention_of("flash_attention_2", config, dtype, device)
    assert str(caught.value) == (f"model.attn_implementation=flash_attention_2: {reason}; allowed: auto, sdpa or eager")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == device_of("cpu") == CPU
    with pytest.raises(ValueError, match=r"model.device=cuda: torch sees no CUDA device; allowed: auto or cpu"):
        device_of("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("auto") == device_of("cuda") == CUDA and device_of("cpu") == CPU


def test_loading_resolves_what_it_is_asked(tmp_path) -> None:
    save_model(*build_tiny(0), tmp_path)
    model, _ = load_model(tmp_path, dtype="bfloat16", attn_implementation="auto")
    assert model.config._attn_implementation == "sdpa" and model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="flash_attention_2: it needs CUDA"):
        load_model(tmp_path, dtype="bfloat16", attn_implementation="flash_attention_2")


def test_a_config_that_its_class_cannot_be_built_from_is_said(tmp_path) -> None:
    """Not in the family's own words alone: with the path, or the family where nothing is read."""
    save_model(*build_tiny(0), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["hidden_act"] = "no_such_function"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=rf"model.model_name_or_path={tmp_path}: cannot be loaded \(KeyError: .*no_such"
    ):
        load_model(tmp_path)
    with pytest.raises(ValueError, match=r"model family 'llava': its class cannot be built from its config\.json"):
        blank_model(load_config_of(tmp_path))


def test_weights_that_a_checkpoint_lacks_are_not_made_up(tmp_path) -> None:
    save_model(*build_tiny(0), tmp_path)
    whole = (tmp_path / "config.json").read_text()
    config = json.loads(whole)
    config["text_config"]["num_hidden_layers"] += 1
    config["text_config"].pop("layer_types", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"9 tensors that its config.json asks for are not there, such as model\.lang"):
        load_model(tmp_path)
    config = json.loads(whole)
    config["text_config"]["intermediate_size"] //= 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"tensors have other shapes .* such as model\.language.*: \[\d+, \d+\], not"):
        load_model(tmp_path)
