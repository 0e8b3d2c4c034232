"""An export has exactly the keys of its source: renamed, tied and unused tensors included."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import CONFIGS, build, prompt
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, PreTrainedModel

from mstar_engine.models.export import match_source, tensors_of, weight_files

EMBEDDING = "embed_tokens.weight"


def source_of(
    family: str, path: Path, change: Callable[[dict], dict] = lambda held: held, **options
) -> PreTrainedModel:
    """A source checkpoint whose tensors went through `change`, and the model that is loaded from it and trained."""
    build(family).save_pretrained(path, **options)
    file = path / "model.safetensors"
    if file.exists():
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
    model = AutoModelForImageTextToText.from_pretrained(path, dtype="auto")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    return model


def exported(model: PreTrainedModel, source: Path, path: Path, *, dtypes: bool = True) -> dict[str, torch.Tensor]:
    model.save_pretrained(path)
    match_source(path, source, dtypes=dtypes)
    assert {k: dtype for k, (_, dtype) in tensors_of(path).items()}.keys() == tensors_of(source).keys()
    again, logs = AutoModelForImageTextToText.from_pretrained(path, dtype=model.dtype, output_loading_info=True)
    assert not logs["missing_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    return {name: value for file in weight_files(path) for name, value in load_file(file).items()}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("original", [True, False])
def test_every_family_under_older_and_newer_names(family: str, original: bool, tmp_path: Path) -> None:
    model = source_of(family, tmp_path / "source", save_original_format=original)
    exported(model, tmp_path / "source", tmp_path / "out")


def test_a_tied_weight_that_the_source_holds_twice(tmp_path: Path) -> None:
    def both(held: dict) -> dict:
        name = next(name for name in held if name.endswith(EMBEDDING))
        return held | {name.replace("model." + EMBEDDING, "lm_head.weight"): held[name].clone()}

    model = source_of("internvl", tmp_path / "source", both)
    assert model.config.tie_word_embeddings
    held = exported(model, tmp_path / "source", tmp_path / "out")
    head = next(value for name, value in held.items() if name.endswith("lm_head.weight"))
    assert torch.equal(head, model.get_input_embeddings().weight)  # what was trained, not the source's


def test_what_the_model_makes_nothing_of_is_kept(tmp_path: Path) -> None:
    unused = {"vision_tower.vision_model.head.probe": torch.randn(1, 1, 8), "model.rotary.inv_freq": torch.arange(4.0)}
    model = source_of("llava", tmp_path / "source", lambda held: held | unused)
    held = exported(model, tmp_path / "source", tmp_path / "out")
    assert all(torch.equal(held[name], value) for name, value in unused.items())


def test_sharded_on_both_sides(tmp_path: Path) -> None:
    extra = {"unused.weight": torch.ones(3, 3)}
    model = source_of("llava", tmp_path / "source", lambda held: held | extra)
    (tmp_path / "out").mkdir()
    model.save_pretrained(tmp_path / "out", max_shard_size="100KB")
    match_source(tmp_path / "out", tmp_path / "source", dtypes=True)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors_of(tmp_path / "source").keys() == tensors_of(tmp_path / "out").keys()
    assert index["weight_map"]["unused.weight"] == "model-source.safetensors"
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    match_source(tmp_path / "source", tmp_path / "out", dtypes=True)  # a sharded source is read as well


def test_types_are_the_source_s_where_that_is_asked(tmp_path: Path) -> None:
    def half(held: dict) -> dict:
        return {name: value if "norm" in name else value.bfloat16() for name, value in held.items()}

    source = tmp_path / "source"
    source_of("llava", source, half)
    config = json.loads((source / "config.json").read_text()) | {"dtype": "bfloat16"}
    (source / "config.json").write_text(json.dumps(config))
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    model.save_pretrained(tmp_path / "out")
    match_source(tmp_path / "out", source, dtypes=False)
    assert {dtype for _, dtype in tensors_of(tmp_path / "out").values()} == {torch.float32}
    match_source(tmp_path / "out", source, dtypes=True)
    theirs, ours = tensors_of(source), tensors_of(tmp_path / "out")
    assert {k: v[1] for k, v in theirs.items()} == {k: v[1] for k, v in ours.items()}
    assert {v[1] for v in ours.values()} == {torch.float32, torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    held = load_file(source / "model.safetensors")
    assert all(torch.equal(value, held[name]) for name, value in load_file(tmp_path / "out/model.safetensors").items())
    shown = prompt("llava", 8, seed=1)
    one, other = (AutoModelForImageTextToText.from_pretrained(p, dtype="auto") for p in (source, tmp_path / "out"))
    assert one.dtype == other.dtype
    with torch.no_grad():
        given = {name: value.to(one.dtype) for name, value in shown.inputs.items()}
        a, b = (model.to(one.dtype)(input_ids=shown.input_ids[None], **given).logits for model in (one, other))
    assert torch.equal(a, b)


def test_a_source_that_is_gone_or_lacks_a_key_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = source_of("llava", tmp_path / "source")
    model.save_pretrained(tmp_path / "out")
    before = tensors_of(tmp_path / "out")
    with caplog.at_level(logging.WARNING, "mstar_engine.models.export"):
        match_source(tmp_path / "out", tmp_path / "gone" / "x" / "y", dtypes=True)
        assert "gone" in caplog.text
        file = tmp_path / "source" / "model.safetensors"
        held = load_file(file)
        dropped = sorted(held)[0]
        del held[dropped]
        save_file(held, file)
        match_source(tmp_path / "out", tmp_path / "source", dtypes=True)
    assert f"1 tensors that {tmp_path / 'source'} does not have, such as {dropped}" in caplog.text
    assert tensors_of(tmp_path / "out") == before
