"""Checkpoints with their own processors, saved and loaded as a user has them, through a whole run; nothing is replaced.

Some processors need torchvision: their runs are skipped where it is not installed, and what is said there is checked.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family import FAMILIES, build_config
from matrix import load_families
from qwen_families import IMAGES, PLACEHOLDER, qwen_tokenizer
from stand_ins import POSITIONS
from tokenizer import template, tokenizer_with

from mstar_engine.data.digits import demonstrations, digits_problems
from mstar_engine.data.images import DECODED
from mstar_engine.models.loading import load_processor
from mstar_engine.models.processor_print import processor_print
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.run import main
from mstar_engine.types import Problem

torch.set_num_threads(1)
load_families()
TORCHVISION = importlib.util.find_spec("torchvision") is not None
needs_torchvision = pytest.mark.skipif(not TORCHVISION, reason="torchvision is not installed")
RUN = {
    "model.device": "cpu",
    "threads": "1",
    "data.dataset_name": "files",
    "rollout.max_completion_length": "8",
    "evolve.interval": "0.125",
    "temperature.controller": "fixed",
    "stages": "[warmup, annotate, prm, evolve, evaluate]",
}


def llava() -> Any:
    """LLaVA's, which there is with and without torchvision."""
    return FAMILIES["llava"]().processor()


def qwen2_5_vl() -> Any:
    """Qwen2.5-VL's, with its video processor."""
    images, videos = transformers.Qwen2VLImageProcessor, transformers.Qwen2VLVideoProcessor
    return transformers.Qwen2_5_VLProcessor(
        images(temporal_patch_size=2, **IMAGES),
        qwen_tokenizer(),
        videos(temporal_patch_size=2, **IMAGES),
        chat_template=template(PLACEHOLDER),
    )


def internvl() -> Any:
    """InternVL's: a compiled pattern is among its attributes."""
    names = dict(start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>")
    size = {"height": 24, "width": 24}
    images = transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=3)
    return transformers.InternVLProcessor(
        images,
        tokenizer_with(**names, video_token="<video>"),
        transformers.InternVLVideoProcessor(size=size),
        image_seq_length=9,
        chat_template=template("<IMG_CONTEXT>"),
    )


def write_checkpoint(name: str, processor: Any, folder: Path) -> None:
    """A tiny random-weight checkpoint of a family with its processor; its model has more ids than the tokenizer."""
    config = FAMILIES[name]().config()
    config.get_text_config(decoder=True).max_position_embeddings = POSITIONS
    if FAMILIES[name]().processor is None:  # its config names the token that the matrix puts in by hand
        config.image_token_id = processor.image_token_id
    assert config.get_text_config(decoder=True).vocab_size > len(processor.tokenizer)
    build_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def write_problems(folder: Path) -> dict[str, str]:
    """Digit problems and demonstrations as JSON Lines beside their images, as a run's options."""
    folder.mkdir()
    for name, problems in (("train", digits_problems("train", 40)), ("warm", demonstrations(8))):
        rows = []
        for one in problems:
            one.images[0].save(folder / f"{one.id}.png")
            rows.append({"id": one.id, "question": one.question, "image": f"{one.id}.png", "answer": one.gold})
            rows[-1] |= {"category": one.source, "response": one.response, "answer_type": "text"}
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = {"train": f"{folder}/train.jsonl", "warmup": f"{folder}/warm.jsonl", "cache_dir": f"{folder}/cache"}
    return {f"data.{key}": value for key, value in said.items()}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("llava", llava),
        pytest.param("qwen2_5_vl", qwen2_5_vl, marks=needs_torchvision),
        pytest.param("internvl", internvl, marks=needs_torchvision),
    ],
)
def test_every_stage_with_a_checkpoint_s_own_processor(name, make, tmp_path, capsys):
    write_checkpoint(name, make(), tmp_path / "model")
    said = RUN | write_problems(tmp_path / "data") | {"model.model_name_or_path": str(tmp_path / "model")}
    arguments = ["smoke", *(f"{key}={value}" for key, value in said.items())]
    assert main([*arguments, f"output_dir={tmp_path}/none", "--dry_run"]) == 0, capsys.readouterr().err
    assert "tokens an image" in capsys.readouterr().out and not (tmp_path / "none").exists()
    assert main([*arguments, f"output_dir={tmp_path}/one"]) == 0, capsys.readouterr().err
    before = DECODED.images
    assert main([*arguments, f"output_dir={tmp_path}/two"]) == 0
    assert DECODED.images == before  # prompts are told apart exactly, so all of them were kept
    one, two = (json.loads((tmp_path / run / "summary.json").read_text()) for run in ("one", "two"))
    assert one["final"] == two["final"] and one["final"]["greedy"]["items"] == 8


@pytest.mark.skipif(TORCHVISION, reason="torchvision is installed")
@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl"])
def test_a_processor_that_needs_torchvision_is_told_what_to_install(name, tmp_path, capsys):
    config, tokenizer = FAMILIES[name]().config(), tokenizer_with("<image>")
    build_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    kind = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "internvl": "InternVLProcessor"}[name]
    images = {"qwen2_5_vl": "Qwen2VLImageProcessor", "internvl": "GotOcr2ImageProcessor"}[name]
    videos = {"qwen2_5_vl": "Qwen2VLVideoProcessor", "internvl": "InternVLVideoProcessor"}[name]
    said = {"processor_class": kind, "image_processor": {"image_processor_type": images}}
    said |= {"video_processor": {"video_processor_type": videos}}
    (tmp_path / "model" / "processor_config.json").write_text(json.dumps(said))
    said = RUN | write_problems(tmp_path / "data") | {"model.model_name_or_path": str(tmp_path / "model")}
    capsys.readouterr()
    for more in ([], ["--dry_run"]):
        arguments = ["smoke", *(f"{key}={value}" for key, value in said.items()), f"output_dir={tmp_path}/run", *more]
        assert main(arguments) == 1
        line = capsys.readouterr().err.strip()
        where = f"mstar_engine: model.model_name_or_path={tmp_path}/model: its processor cannot be loaded"
        what = "needs torchvision, which is not installed: pip install 'mstar_engine[vision]', or torchvision)"
        assert line.startswith(where) and line.endswith(what) and "\n" not in line


@pytest.mark.parametrize("template_of", ["processor", "tokenizer"])
def test_a_chat_template_is_found_where_it_is(template_of, tmp_path):
    """In older checkpoints the tokenizer's files alone have it."""
    write_checkpoint("llava", FAMILIES["llava"]().processor(), tmp_path)
    if template_of == "tokenizer":
        text = (tmp_path / "chat_template.jinja").read_text()
        (tmp_path / "chat_template.jinja").unlink()
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": text}))
    processor = load_processor(tmp_path)
    assert processor.chat_template == FAMILIES["llava"]().processor().chat_template
    prompt = PromptEncoder(processor).encode(Problem(id="a", question="What?"))
    assert processor.tokenizer.decode(prompt.input_ids) == "What?>"


def test_backends_of_an_image_processor_are_told_apart():
    """They resize to other pixels, so nothing that one made may be read as the other's."""
    pil, other = FAMILIES["llava"]().processor(), FAMILIES["llava"]().processor()
    if TORCHVISION:
        size = {"height": 24, "width": 24}
        other.image_processor = transformers.CLIPImageProcessor(size=size, crop_size=size)
    else:  # the same settings under the name of the other class
        kind = type("CLIPImageProcessor", (transformers.CLIPImageProcessorPil,), {})
        kind.__module__ = "transformers.models.clip.image_processing_clip"
        other.image_processor.__class__ = kind
    assert None not in {processor_print(pil), processor_print(other)}
    assert processor_print(pil) != processor_print(other)
