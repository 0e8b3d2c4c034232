"""A run's own problem sets: which file, which format, what is held out, and when a run may not start."""

import json
from pathlib import Path

import pytest
from rows import image_folder, png, write_rows

from mstar_engine.config_parse import build_config, config_hash, load_config
from mstar_engine.data.benchmarks import own_sets, read_benchmarks
from mstar_engine.data.checks import check_data
from mstar_engine.data.files import hold_out, read_sets, source_of
from mstar_engine.data.sources import load_data
from mstar_engine.types import Problem


def row(i: int, **changed) -> dict:
    return {"id": f"p{i}", "question": f"What is {i}?", "image": f"{i % 4}.png", "answer": str(i), **changed}


def config_of(folder: Path, **data):
    sizes = {"validation_problems": 5, "test_problems": 7}
    said = {"dataset_name": "files", "train": str(folder / "train.jsonl"), "cache_dir": str(folder / "cache"), **sizes}
    return build_config({"data": {**said, **data}, "stages": ["evolve", "report"]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(image_folder(tmp_path) / "train.jsonl", [row(i) for i in range(60)])
    return tmp_path


def test_what_no_file_names_is_held_out(folder):
    config = config_of(folder)
    data = load_data(config.data, seed=0)
    assert [len(getattr(data, name)) for name in ("train", "validation", "test", "ood", "warmup")] == [48, 5, 7, 0, 0]
    check_data(data, config)
    again, other = load_data(config.data, seed=0), load_data(config.data, seed=1)
    assert again == data and other.test != data.test
    assert [p.id for p in data.train] == sorted((p.id for p in data.train), key=lambda id: int(id[len("train/p") :]))


def test_who_is_held_out_does_not_depend_on_who_else_is_there(folder):
    before = load_data(config_of(folder).data, seed=0).test
    write_rows(folder / "train.jsonl", [row(i) for i in reversed(range(60))])
    assert {p.id for p in load_data(config_of(folder).data, seed=0).test} == {p.id for p in before}


def test_the_same_problem_under_another_name_leaves_with_it(folder):
    (folder / "again.png").write_bytes((folder / "0.png").read_bytes())
    rows = [row(i) for i in range(60)]
    rows += [
        row(i, id=f"q{i}", question=f" what  IS {i}?", image="again.png" if i % 4 == 0 else f"{i % 4}.png")
        for i in range(60)
    ]
    write_rows(folder / "train.jsonl", rows)
    config = config_of(folder)
    data = load_data(config.data, seed=0)
    check_data(data, config)
    assert len(data.validation) == 5 and len(data.test) == 7 and len(data.train) == 120 - 24


def test_more_than_half_is_not_held_out():
    problems = [Problem(id=str(i), question=str(i)) for i in range(10)]
    with pytest.raises(ValueError, match=r"data.test_problems=6: held out of 10 training problems"):
        hold_out(problems, {"test": 6}, 0)


def test_files_of_their_own_with_other_formats(folder):
    mathvista = {
        "pid": "1",
        "query": "How many?",
        "decoded_image": {"bytes": None, "path": "0.png"},
        "answer": "2",
        "answer_type": "integer",
        "question_type": "free_form",
        "choices": None,
        "metadata": {"task": "math word problem"},
    }
    write_rows(folder / "testmini.json", [mathvista])
    write_rows(folder / "test.jsonl", [row(i) for i in range(100, 110)])
    demonstrations = [row(i, question=f"Say {i}", response=f"{i}\n\n# Answer {i}", answer=None) for i in range(3)]
    write_rows(folder / "warm.jsonl", demonstrations)
    config = config_of(
        folder,
        test=f"{folder}/test.jsonl",
        ood=f"mathvista:{folder}/testmini.json",
        warmup=f"{folder}/warm.jsonl",
        fields={"category": ""},
    )
    data = load_data(config.data, seed=0)
    assert [len(getattr(data, name)) for name in ("train", "validation", "test", "ood", "warmup")] == [55, 5, 7, 1, 3]
    assert data.ood[0].source == "MWP" and data.ood[0].answer_type.kind == "integer"
    assert data.warmup[0].response == "0\n\n# Answer 0" and data.warmup[0].gold is None
    check_data(data, config)


def test_image_folder_and_limit(folder):
    (folder / "rows").mkdir()
    write_rows(folder / "rows" / "train.jsonl", [row(i) for i in range(60)])
    config = config_of(folder, train=f"{folder}/rows/train.jsonl", image_folder=str(folder), limit=20)
    data = load_data(config.data, seed=0)
    assert len(data.train) == 20 and data.train[0].images[0].parent == folder


def test_too_many_flawed_rows_stop_the_run_and_are_listed(folder):
    rows = [row(i) for i in range(60)] + [row(60, image="9.png"), row(61, answer=None)]
    write_rows(folder / "train.jsonl", rows)
    listed = folder / "run" / "quarantine.jsonl"
    with pytest.raises(
        ValueError, match=r"data.train: 2 of 62 rows set aside \(missing image 1, bad gold 1\), 3.23%.*p60"
    ):
        load_data(config_of(folder).data, 0, listed)
    assert [json.loads(line)["id"] for line in listed.read_text().splitlines()] == ["p60", "p61"]
    data = load_data(config_of(folder, max_quarantined=0.05).data, 0, listed)
    assert len(data.train) == 48 and len(listed.read_text().splitlines()) == 2


def test_where_an_image_was_looked_for_and_why_nothing_is_left(folder):
    """A format in front of the path keeps to the file's folder, and the refusal shows it."""
    (folder / "rows").mkdir()
    write_rows(folder / "rows" / "t.jsonl", [row(i) for i in range(3)])
    train = {"train": f"rows:{folder}/rows/t.jsonl", "image_folder": str(folder)}
    with pytest.raises(ValueError, match=f"missing image: '.*png' in {folder}/rows: no such file"):
        load_data(config_of(folder, **train).data, 0)
    with pytest.raises(ValueError, match=r"no problems among 3 rows: 3 of 3 rows set aside \(missing image 3\)"):
        load_data(config_of(folder, **train, max_quarantined=1.0).data, 0)


def test_image_limits_and_header_checks(folder):
    (folder / "0.png").write_bytes(png()[:-30])
    with pytest.raises(ValueError, match="unreadable image 15"):
        load_data(config_of(folder).data, 0)
    assert load_data(config_of(folder, check_images="header").data, 0)
    with pytest.raises(ValueError, match="oversized image 60"):
        load_data(config_of(folder, max_image_pixels=90, max_quarantined=0.3).data, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": ""}, "data.train=''"),
        ({"train": "nowhere.jsonl"}, "data.train: nowhere.jsonl: no such file"),
        ({"format": "mathvist"}, "data.train=.*format 'mathvist'; allowed: rows"),
        ({"fields": {"gould": "a"}}, "data.train=.*gould"),
        ({"test": "empty.jsonl"}, "data.test=empty.jsonl: no problems among 0 rows"),
    ],
)
def test_refusals_name_the_key(folder, monkeypatch, data, message):
    monkeypatch.chdir(folder)
    (folder / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=message):
        read_sets(config_of(folder, **data).data, 0)


def test_splits_are_behind_a_hash_unless_a_file_has_one(folder):
    config = config_of(folder, ood="mathvista:owner/name:config#testmini", test=f"{folder}/a#b.jsonl")
    write_rows(folder / "a#b.jsonl", [row(1)])
    source, _ = source_of(config.data, "ood")
    assert (source.form, source.path, source.split) == ("mathvista", "owner/name:config", "testmini")
    assert source_of(config.data, "test")[0].path == f"{folder}/a#b.jsonl"


def test_without_a_training_file_nothing_is_held_out(folder):
    write_rows(folder / "test.jsonl", [row(i) for i in range(100, 110)])
    config = config_of(folder, train="", test=f"{folder}/test.jsonl")
    data = load_data(config.data, 0, train_needed=False)
    assert len(data.test) == 7 and not any((data.train, data.validation, data.ood, data.unlabelled, data.warmup))
    with pytest.raises(ValueError, match=r"data\.train=''"):
        load_data(config.data, 0)


def benchmarks_of(folder, *stages, **evaluate):
    data = {"dataset_name": "files", "cache_dir": str(folder / "cache"), "max_quarantined": 0.2}
    return build_config({"data": data, "evaluate": evaluate, "stages": list(stages)})


def test_benchmarks_are_read_by_their_format_and_bounded(folder):
    write_rows(folder / "a.jsonl", [row(i, category=f"c{i % 2}") for i in range(9)] + [row(9, image="nowhere.png")])
    choices = [row(i, options=["x", "y"], answer=1) for i in range(4)]
    write_rows(folder / "b.jsonl", choices)
    texts = {"own": f"{folder}/a.jsonl", "ai": f"ai2d:{folder}/b.jsonl"}
    listed = folder / "run" / "aside.jsonl"
    own, ai = read_benchmarks(benchmarks_of(folder, "evaluate", benchmarks=texts), listed)
    assert (own.name, len(own.problems), own.order, own.published) == ("own", 9, (), "")
    assert {problem.source for problem in own.problems} == {"c0", "c1"}
    assert (ai.published, ai.problems[0].gold) == ("vlmevalkit", "B")
    assert [json.loads(line)["id"] for line in listed.read_text().splitlines()] == ["p9"]
    few, _ = read_benchmarks(benchmarks_of(folder, "evaluate", benchmarks=texts, limit=5))
    assert len(few.problems) == 5 and set(few.problems) < set(own.problems)
    assert read_benchmarks(benchmarks_of(folder, "evolve", benchmarks=texts)) == []


def test_own_sets_have_the_tables_of_their_format(folder):
    write_rows(folder / "ood.jsonl", [row(i, domain="science", choices=["x", "y"], answer="A") for i in range(3)])
    config = config_of(folder, ood=f"m3cot:{folder}/ood.jsonl")
    test, ood = own_sets(config, load_data(config.data, 0))
    assert (test.name, test.order, test.published, len(test.problems)) == ("test", (), "", 7)
    assert (ood.name, ood.order[0], ood.published, len(ood.problems)) == ("ood", "science", "m3cot", 3)


def test_configurations(folder):
    with pytest.raises(ValueError, match=r"prompts.unlabelled.*data.unlabelled"):
        load_config(None, [f"data.train={folder}/train.jsonl", "data.dataset_name=files", "prompts.unlabelled=oracle"])
    told = load_config(None, ["data.fields={id: pid, gold: label}", "data.dataset_name=files"])
    assert told.data.fields == {"id": "pid", "gold": "label"}
    with pytest.raises(ValueError, match=r"data.fields=.*a mapping of names to names"):
        load_config(None, ["data.fields=pid"])
    assert config_hash(load_config(None, ["data.cache_dir=/x", "data.max_quarantined=0.5"])) == config_hash(
        load_config()
    )
    assert config_hash(load_config(None, ["data.limit=5"])) != config_hash(load_config())


def test_a_warm_up_needs_demonstrations(folder):
    config = build_config(
        {
            "data": {
                "dataset_name": "files",
                "train": str(folder / "train.jsonl"),
                "cache_dir": str(folder / "c"),
                "validation_problems": 5,
                "test_problems": 7,
            }
        }
    )
    with pytest.raises(ValueError, match=r"data.warmup='': no demonstrations"):
        check_data(load_data(config.data, 0), config)
