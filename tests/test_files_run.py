"""A whole run on problems from files: every stage; images are decoded once to be checked and once to be used."""

import json

import pyarrow.parquet as pq
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
            said |= {"category": problem.source, "response": problem.response, "answer_type": "text"}
            file.write(json.dumps(said) + "\n")


@pytest.mark.slow
def test_every_stage_from_files(tmp_path, capsys):
    problems = digits_problems("train", 40)
    kinds = sorted({problem.source for problem in problems})
    write(tmp_path / "train.jsonl", problems)
    write(tmp_path / "warm.jsonl", demonstrations(16))
    with open(tmp_path / "train.jsonl", "a") as file:
        row = {"id": "bad", "question": "<image><image> What", "answer": "1", "category": kinds[0]}
        file.write(json.dumps({**row, "image": "train-000000.png"}) + "\n")
        file.write(json.dumps({**row, "id": "pi", "question": "?", "answer": "3,14", "answer_type": "float"}) + "\n")
        file.write(json.dumps({**row, "id": "other", "question": "?", "category": "another"}) + "\n")
    out = tmp_path / "run"
    arguments = [
        "smoke",
        f"output_dir={out}",
        "threads=1",
        "data.dataset_name=files",
        f"data.train={tmp_path}/train.jsonl",
        f"data.warmup={tmp_path}/warm.jsonl",
        f"data.cache_dir={tmp_path}/cache",
        "data.max_quarantined=0.05",
        f"data.categories={{train: [{', '.join(kinds)}]}}",
        "answers.extract=[section, boxed]",
        "evaluate.pass_at_k_n=2",
    ]
    assert load_config("smoke", arguments[1:]).data.dataset_name == "files"
    before = DECODED.images
    assert main(arguments) == 0
    assert (
        "mstar_engine: train: 2 of 43 rows set aside (placeholders 1, bad gold 1); listed in "
        in capsys.readouterr().out
    )
    images = len(list(tmp_path.glob("*.png")))
    # Once each to be checked and once to be preprocessed, and the report's few.
    assert images < DECODED.images - before <= 2 * images + 64
    used = DECODED.images
    assert main([*arguments[:1], f"output_dir={tmp_path}/again", *arguments[2:]]) == 0
    assert DECODED.images - used <= 64  # another run on the same images, known to be sound: the report's only
    summary = json.loads((out / "summary.json").read_text())
    assert summary["final"]["greedy"]["items"] == 8 and summary["final"]["ood_greedy"] is None
    aside = map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    assert [(one["row"], one["reason"]) for one in aside] == [(41, "placeholders"), (42, "bad gold")]
    for entry in summary["evolve"]:
        assert sum(entry["reasons"].values()) == entry["sampled"] and entry["latex"] is None
        assert entry["reasons"].get("match", 0) == entry["correct"]
    rollouts = pq.read_table(out / "rollouts" / "iteration_0001.parquet")
    assert {json.loads(one)["kind"] for one in rollouts["answer_type"].to_pylist()} == {"text"}
    assert {tuple(json.loads(one)["extract"]) for one in rollouts["answer_type"].to_pylist()} == {("section", "boxed")}
    assert summary["latex"] is None and None not in rollouts["reason"].to_pylist()
    assert (out / "report.html").exists()
