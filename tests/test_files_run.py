"""A whole run on problems from files: every stage; images are decoded once to be checked and once to be used."""

import json

import pytest
import torch

from mstar_engine.config_parse import load_config
from mstar_engine.data.digits import demonstrations, digits_problems
from mstar_engine.data.images import DECODED
from mstar_engine.run import main
from mstar_engine.types import Problem

torch.set_num_threads(1)


def write(path, problems: list[Problem]) -> None:
    """The problems as JSON Lines beside their images."""
    with open(path, "w") as file:
        for problem in problems:
            problem.images[0].save(path.parent / f"{problem.id}.png")
            said = {
                "id": problem.id,
                "question": problem.question,
                "image": f"{problem.id}.png",
                "answer": problem.gold,
            }
            file.write(json.dumps({**said, "category": problem.source, "response": problem.response}) + "\n")


@pytest.mark.slow
def test_every_stage_from_files(tmp_path):
    write(tmp_path / "train.jsonl", digits_problems("train", 40))
    write(tmp_path / "warm.jsonl", demonstrations(16))
    with open(tmp_path / "train.jsonl", "a") as file:
        file.write('{"id": "bad", "question": "<image><image> What", "image": "train-000000.png", "answer": "1"}\n')
    out = tmp_path / "run"
    arguments = [
        "smoke",
        f"output_dir={out}",
        "threads=1",
        "data.dataset_name=files",
        f"data.train={tmp_path}/train.jsonl",
        f"data.warmup={tmp_path}/warm.jsonl",
        f"data.cache_dir={tmp_path}/cache",
        "data.max_quarantined=0.03",
        "evaluate.pass_at_k_n=2",
    ]
    assert load_config("smoke", arguments[1:]).data.dataset_name == "files"
    before = DECODED.images
    assert main(arguments) == 0
    images = len(list(tmp_path.glob("*.png")))
    # Once each to be checked and once to be preprocessed, and the report's few.
    assert images < DECODED.images - before <= 2 * images + 64
    used = DECODED.images
    assert main([*arguments[:1], f"output_dir={tmp_path}/again", *arguments[2:]]) == 0
    assert DECODED.images - used <= 64  # another run on the same images, known to be sound: the report's only
    summary = json.loads((out / "summary.json").read_text())
    assert summary["final"]["greedy"]["items"] == 8 and summary["final"]["ood_greedy"] is None
    (line,) = (out / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "placeholders" and json.loads(line)["row"] == 41
    assert (out / "report.html").exists()
