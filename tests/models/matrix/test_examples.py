"""The recipes of examples/: the paper's numbers, and a dry run of each on a tiny model of its family."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from family import FAMILIES, AbsentError, build_config
from matrix import load_families
from PIL import Image
from stand_ins import stand_in
from transformers import AutoConfig

from mstar_engine.config_parse import flat_config, load_config
from mstar_engine.evolve.policy import prepare
from mstar_engine.evolve.session import check_training
from mstar_engine.models import loading
from mstar_engine.models.compatibility import image_token_id, probe
from mstar_engine.models.loading import blank_model
from mstar_engine.models.model_size import model_size
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.reward import prm_checkpoint
from mstar_engine.run import main
from mstar_engine.types import Problem

EXAMPLES = Path(__file__).parents[3] / "examples"
RECIPES = {
    "mstar_internvl": "internvl",
    "mstar_qwen25vl_7b": "qwen2_5_vl",
    "mstar_phi": "phi4_multimodal",
    "mstar_minicpm": "minicpmv4_6",
}
PAPER = {
    "evolve.method": "continuous",
    "evolve.interval": 0.25,
    "evolve.iterations": 22,
    "data.limit": 180_000,
    "data.validation_problems": 250,
    "data.test_problems": 750,
    "data.ood_problems": 1000,
    "rollout.n": 16,
    "rollout.temperature": 1.0,
    "select.kind": "top_k",
    "select.k": 2,
    "select.alpha": None,
    "temperature.controller": "grid",
    "temperature.metric": "reward_pass_at_k",
    "temperature.k": 2,
    "temperature.every": 2,
    "temperature.low": 0.3,
    "temperature.high": 1.6,
    "temperature.step": 0.1,
    "temperature.n": 16,
    "temperature.problems": 250,
    "train.learning_rate": 1e-6,
    "train.lr_scheduler_type": "constant",
    "train.max_steps": 10_000,
    "train.num_train_epochs": 1,
    "train.bf16": True,
    "train.gradient_checkpointing": True,
    "prm.model_name_or_path": "policy",
    "prm.reduction": "min",
    "prm.learning_rate": 2e-6,
    "prm.num_train_epochs": 2,
    "warmup.source": "sampled",
    "warmup.max_examples": 100_000,
    "warmup.per_device_train_batch_size": 128,
    "warmup.num_train_epochs": 1.0,
    "warmup.max_steps": -1,
    "warmup.learning_rate": 1e-6,
    "prompts.unlabelled": "none",
    "model.lora_r": 0,
    "model.freeze_vision_tower": False,
}
ADAPTERS = {"model.lora_r": 64, "train.learning_rate": 2e-5, "warmup.learning_rate": 2e-5}
DEPARTURES = {
    "mstar_internvl": {},
    "mstar_phi": ADAPTERS,
    "mstar_minicpm": ADAPTERS | {"model.freeze_vision_tower": True},
    "mstar_qwen25vl_7b": ADAPTERS
    | {"model.freeze_vision_tower": True, "prm.model_name_or_path": "/models/Qwen2.5-VL-3B-Instruct"},
}
"""What a recipe does otherwise than the paper, as its comments say."""


@pytest.fixture(autouse=True)
def anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that extends the one beside it does so from any directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_the_numbers_are_the_papers(name: str) -> None:
    config = load_config(EXAMPLES / f"{name}.yaml")
    flat = flat_config(dataclasses.asdict(config))
    assert {key: flat[key] for key in PAPER} == PAPER | DEPARTURES[name]
    train, annotate = config.train, config.annotate
    assert train.per_device_train_batch_size * train.gradient_accumulation_steps == 128
    assert annotate.problems * annotate.solutions == 50_000
    assert config.evolve.problems_of(config.data.limit) == 45_000
    assert len(config.temperature.grid) * 250 * config.temperature.n == 56_000
    assert config.temperature.rows <= config.rollout.max_rows


def write_data(folder: Path, rows: int = 48) -> dict[str, str]:
    """MathV360K- and MathVista-shaped files, and demonstrations, with pictures; the last MathV360K row has none."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(rows):
        width, height = ((24, 24), (40, 20))[i % 2]
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")

    def talk(number: int, question: str, answer: str) -> dict:
        turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        return {"id": str(number), "image": f"{number}.png", "conversations": turns}

    hint = "Hint: Please answer the question requiring an integer answer and provide the final value"
    asked = [talk(i, f"{hint}.\nQuestion: What is {i} + 1?", f"The answer is {i + 1}") for i in range(rows + 1)]
    (folder / "train.json").write_text(json.dumps(asked))
    other = {"question": "Which?", "question_type": "free_form", "answer_type": "integer", "answer": "4"}
    task = {"metadata": {"task": "geometry problem solving"}, "choices": None, "precision": None, "unit": None}
    testmini = [{"pid": str(i), "image": f"{i}.png", "query": f"Which is {i}?", **other, **task} for i in range(5)]
    (folder / "testmini.json").write_text(json.dumps(testmini))
    return {
        "data.train": f"{folder}/train.json",
        "data.image_folder": f"{folder}",
        "evaluate.benchmarks": f"{{mathvista: 'mathvista:{folder}/testmini.json', other: 'mathvista:{folder}/testmini.json'}}",  # noqa: E501
        "data.ood": f"mathvista:{folder}/testmini.json",
        "data.cache_dir": f"{folder}/cache",
        "data.validation_problems": "8",
        "data.test_problems": "8",
        "data.max_quarantined": "0.1",
        "temperature.problems": "4",
        "model.device": "cpu",
    }


def take(processor: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let checkpoints have this processor: AutoProcessor wants torchvision for the families' videos."""

    class Processors:
        from_pretrained = staticmethod(lambda path, **_: processor)

    monkeypatch.setattr(loading, "AutoProcessor", Processors)


@pytest.mark.parametrize("name", RECIPES)
def test_a_dry_run_of_each(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """What is printed is what plain arithmetic gives, and no weight is read."""
    if DEPARTURES[name]:
        pytest.importorskip("peft")
    model, processor = stand_in(RECIPES[name], tmp_path / "model")
    take(processor, monkeypatch)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)
    data = write_data(tmp_path / "data")
    said = data | {"model.model_name_or_path": str(tmp_path / "model"), "output_dir": str(tmp_path / "run")}
    if name == "mstar_qwen25vl_7b":
        said["prm.model_name_or_path"] = str(tmp_path / "model")
    arguments = [str(EXAMPLES / f"{name}.yaml"), *(f"{key}={value}" for key, value in said.items())]
    assert main([*arguments, "--dry_run"]) == 0
    out = capsys.readouterr().out
    lines = {words[0]: words for line in out.splitlines() if (words := re.split(r"\s{2,}", line.strip()))}
    assert not (tmp_path / "run").exists()

    # rows: 49 of a file, one without its picture, 16 held out
    assert "train 49 1 0 0 32 train 32" in squeezed(out) and "set aside of train: missing image 1" in out
    assert "out of distribution 5 0 0 0 5 GPS 5" in squeezed(out) and "mathvista 5 0 0 0 5 GPS 5" in squeezed(out)
    assert "validation 8 held out of train: train 8" in squeezed(out)

    # the model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert f"{parameters:,} parameters" in out
    shape = probe(model)
    assert shape.bytes_per_token == 2 * 2 * 2 * 8 * 4
    assert "2 layers x 2 heads x 8: 128 bytes a token" in out  # of bfloat16

    # prompts
    encoder = PromptEncoder(processor)
    token, prompts = image_token_id(model.config, processor), []
    for i in range(48):
        hint = "Hint: Please answer the question requiring an integer answer and provide the final value"
        question = f"{hint}.\nQuestion: What is {i} + 1?"
        problem = Problem(id=str(i), question=question, images=(tmp_path / "data" / f"{i}.png",))
        prompts.append(encoder.encode(problem))
    image_tokens = sorted({int((prompt.input_ids == token).sum()) for prompt in prompts})
    lengths = [len(prompt.input_ids) for prompt in prompts]
    encoded = next(line for line in squeezed(out).splitlines() if line.startswith("train 32 "))
    assert f" / {max(lengths):,} 1 " in encoded
    assert all(f"{count:,}" in encoded.split() for count in image_tokens) and len(image_tokens) <= 2
    assert encoded.endswith("576 / 576 / 800") or encoded.endswith("576 / 800 / 800")

    # work
    assert lines["evolve: sample"][1:] == [f"{22 * 8 * 16:,}", "22 iterations x 8 problems x 16"]
    assert lines["evolve: temperature"][1:] == [
        f"{11 * 4 * 14 * 16:,}",
        "11 sweeps x 4 problems x 14 temperatures x 16",
    ]
    assert lines["evolve: measure"][1] == f"{22 * 8 * 17:,}"
    assert lines["annotate: solutions"][1] == f"{(32 + 8) * 4}"
    assert lines["warmup: sample"][1:] == ["<= 128", "32 problems x 4, the answer in the prompt"]
    assert lines["evaluate"][1:] == ["23", "8 test + 5 ood + 5 mathvista + 5 other, greedy"]
    total = 22 * 8 * 16 + 11 * 4 * 14 * 16 + 22 * 8 * 17 + 40 * 4 * (1 + 5 * 8) + 128 + (8 * 17 + 13) + 23
    assert lines["in all"][1] == f"<= {total:,}" and f"at most {total * 512:,} tokens (512 a response)" in out

    # memory of the policy's weights in the largest phase: two bytes a parameter, adapters included
    assert "memory at most, MiB, as on a GPU" in out
    added = int(found[1].replace(",", "")) if (found := re.search(r"and ([\d,]+) of adapters", out)) else 0
    assert bool(added) == bool(DEPARTURES[name])
    memory = squeezed(out).split("memory at most")[1]
    row = next(line for line in memory.splitlines() if line.startswith("annotate "))
    assert row.split()[1] == f"{2 * (parameters + added) / 2**20:.1f}"
    trained = added or parameters
    assert row.split()[2] == f"{12 * trained / 2**20:.1f}"

    # too long, and a file of weights that is not there
    assert main([*arguments, "--dry_run", "rollout.max_completion_length=4090"]) == 1
    error = capsys.readouterr().err
    # The longest prompts are those of the warm-up, which show the answer.
    longest = int(re.search(r"prompts of ([\d,]+) tokens \(the longest encoded\)", out)[1].replace(",", ""))
    assert max(lengths) < longest < max(lengths) + 400
    assert (
        f" tokens (train, answers shown), allowed: at most {4096 - longest}" in error
        and "rollout.max_completion_length=4090" in error
    )
    (tmp_path / "model" / "model.safetensors").unlink()
    assert main([*arguments, "--dry_run"]) == 1
    error = capsys.readouterr().err
    assert "its weights cannot be read" in error and error.count("\n") == 1


def test_a_family_whose_code_asks_for_values_is_read(tmp_path: Path, monkeypatch, capsys) -> None:
    model, processor = stand_in("paligemma", tmp_path / "model")
    take(processor, monkeypatch)
    said = write_data(tmp_path / "data") | {"model.model_name_or_path": str(tmp_path / "model")}
    arguments = [str(EXAMPLES / "mstar_paper.yaml"), *(f"{key}={value}" for key, value in said.items())]
    assert main([*arguments, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "tensors read, since the family's code asks for values" in out
    assert f"{probe(model).layers} layers x {probe(model).kv_heads} heads" in out


def test_what_the_comments_of_the_minicpm_recipe_say(tmp_path: Path, capsys) -> None:
    """Over Qwen3.5 it is refused with the reason, before any data is looked for; LLaVA-NeXT can be trained so."""
    pytest.importorskip("peft")
    recipe = EXAMPLES / "mstar_minicpm.yaml"
    try:
        AutoConfig.for_model("minicpmv4_6").save_pretrained(tmp_path / "published")
    except ValueError:
        pytest.skip("this version of transformers has no minicpmv4_6")
    assert main([str(recipe), "--dry_run", f"model.model_name_or_path={tmp_path}/published"]) == 1
    assert "it has layers of type linear_attention" in capsys.readouterr().err
    load_families()
    FAMILIES["llava_next"]().config().save_pretrained(tmp_path / "llava")
    config = load_config(recipe, [f"model.model_name_or_path={tmp_path}/llava", "model.device=cpu"])
    check_training(config)
    model = blank_model(FAMILIES["llava_next"]().config(), "bfloat16")
    prepare(model, config)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all(name.startswith("model.language_model.") for name in trained)


def test_a_process_reward_model_of_phi_sees(tmp_path: Path, monkeypatch) -> None:
    """Transformers lists the family among those of several modalities, not among those of images and text."""
    model, processor = stand_in("phi4_multimodal", tmp_path)
    take(processor, monkeypatch)
    prm = prm_checkpoint.load_prm(tmp_path, form="mstar", policy_processor=processor)
    assert type(prm.model) is type(model) and prm.processor is processor


def test_sizes_need_no_weights() -> None:
    """For every family but four the probe sees on the meta device what the config says."""
    load_families()
    failed = []
    for name, make in FAMILIES.items():
        try:
            config = make().config()
            model = blank_model(config, "bfloat16")
            shape = probe(model)
        except AbsentError:
            continue
        except RuntimeError:
            failed.append(name)
            shape = probe(build_config(config).to(torch.bfloat16).eval())
        text, size = config.get_text_config(decoder=True), model_size(model, shape)
        heads = getattr(text, "num_key_value_heads", text.num_attention_heads)
        assert (shape.layers, shape.kv_heads) == (text.num_hidden_layers, heads), name
        assert shape.dtype == torch.bfloat16, name
        # A router's correction is no weight to train (Ernie 4.5).
        assert size.parameters >= size.trained > 0.999 * size.parameters, name
        assert size.parameters > 10 * size.language.layers * size.language.hidden**2, name
        assert size.language.inner and size.patch, name
    assert set(failed) <= {"paligemma", "molmo2", "lfm2_vl", "step3p7"}


def squeezed(text: str) -> str:
    """Runs of blanks as one."""
    return re.sub(r" +", " ", "\n".join(line.strip() for line in text.splitlines()))
