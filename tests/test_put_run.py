"""A whole run whose prompts are put in a template: the policy is asked alike everywhere, and so is its judge."""

from pathlib import Path

import pytest
import torch

from mstar_engine.config_parse import load_config
from mstar_engine.data.sources import load_data
from mstar_engine.evolve.policy import prompt_encoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.reward.layout import FormEncoder
from mstar_engine.reward.prm_checkpoint import load_prm
from mstar_engine.rollout_file import read_rollouts
from mstar_engine.run import main

PUT = ["prompts.system=Read", "prompts.template={question} {{Go}}"]
SMALL = [
    *("threads=1", "stages=[pretrain,warmup,annotate,prm,evolve]", "evolve.iterations=1", "evolve.interval=4"),
    *("annotate.problems=3", "annotate.held_out=2", "annotate.completions=1", "temperature.controller=fixed"),
    *("data.validation_problems=3", "data.test_problems=2", "data.ood_problems=2", "rollout.max_completion_length=12"),
    *("pretrain.ground_steps=0", "pretrain.align_steps=0", "pretrain.check_steps=0", "warmup.max_steps=1"),
]


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_stage_asks_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [f"output_dir={tmp_path / 'run'}", *SMALL, *PUT]
    asked: list[str] = []
    original = FormEncoder.text

    def text(self: FormEncoder, problem) -> str:
        asked.append(original(self, problem))
        return asked[-1]

    monkeypatch.setattr(FormEncoder, "text", text)
    assert main(["smoke", *arguments]) == 0
    config, processor = load_config("smoke", arguments), build_tiny(0)[1]
    encoder, data = prompt_encoder(processor, config), load_data(config.data, config.seed)
    plain = prompt_encoder(processor, load_config("smoke"))
    known = {p.id: p for name in ("train", "validation", "test", "ood") for p in getattr(data, name)}
    files = sorted((tmp_path / "run" / "rollouts").glob("*.parquet"))
    assert {path.name.rpartition("_")[0] for path in files} >= {"iteration", "validation", "test", "solutions_train"}
    for path in files:
        for group in read_rollouts(path):
            problem = known[group.problem.id]
            length = len(encoder.encode(problem).input_ids)
            assert group.prompt_length == length > len(plain.encode(problem).input_ids)
    assert asked and all(said.endswith(" {Go}") for said in asked)
    prm = load_prm(tmp_path / "run" / "checkpoints" / "prm")
    assert torch.equal(prm.encoder.encode(data.test[0]).input_ids, encoder.encode(data.test[0]).input_ids)
