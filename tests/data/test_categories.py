"""Categories to keep: by set, by either of their names, and refused before anything is read where there are none."""

import pytest
from rows import read, reasons, write_rows

from mstar_engine.config_parse import ConfigError, load_config
from mstar_engine.data.files import read_sets


def row(i: int, category: str) -> dict:
    return {"id": str(i), "question": f"How many {i}?", "answer": str(i), "category": category}


def config_of(folder, *settings: str):
    paths = [f"data.train={folder / 'train.jsonl'}", f"data.cache_dir={folder / 'cache'}"]
    held = ["data.dataset_name=files", "data.validation_problems=1", "data.test_problems=1"]
    return load_config(None, [*held, *paths, *settings]).data


@pytest.fixture
def folder(tmp_path):
    write_rows(tmp_path / "train.jsonl", [row(i, "abc"[i % 3]) for i in range(30)])
    stars = ["math", "logical reasoning", "coarse perception", "math", "instance reasoning"]
    rows = [{"index": i, "question": "Which?", "answer": "A", "category": star} for i, star in enumerate(stars)]
    write_rows(tmp_path / "stars.jsonl", rows)
    return tmp_path


def test_each_set_keeps_its_own(folder):
    ood = f"data.ood=mmstar:{folder / 'stars.jsonl'}"
    sets = read_sets(config_of(folder, ood, "data.categories={train: [a, c], ood: [math]}"), 0)
    assert {p.source for name in ("train", "validation", "test") for p in sets[name]} == {"a", "c"}
    assert [p.source for p in sets["ood"]] == ["math", "math"]
    # A set that is not named keeps what its format keeps.
    sets = read_sets(config_of(folder, ood, "data.categories={train: [b]}"), 0)
    assert sorted(p.source for p in sets["ood"]) == ["instance reasoning", "logical reasoning", "math", "math"]
    sets = read_sets(config_of(folder, ood, "data.categories={ood: [coarse perception]}"), 0)
    assert [p.source for p in sets["ood"]] == ["coarse perception"]


def test_names_that_reports_use_are_names_too(tmp_path):
    rows = [
        {"pid": str(i), "question": "How many?", "answer": "1", "answer_type": "integer", "metadata": {"task": task}}
        for i, task in enumerate(["figure question answering", "math word problem", "math word problem"])
    ]
    path = write_rows(tmp_path / "vista.jsonl", rows)
    for name in ("MWP", "math word problem"):
        assert [p.source for p in read(path, form="mathvista", categories=(name,))[0]] == ["MWP", "MWP"]


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (
            "{ood: [maths]}",
            r"data\.ood=.*: categories: maths; allowed: coarse perception, .*math, science & technology",
        ),
        ("{train: [a, d]}", r"data\.train: categories: d: in none of 30 rows; there are: a, b, c"),
        ("{validation: [a]}", r"data\.categories: validation; allowed: sets that have a file"),
    ],
)
def test_unknown_ones_are_refused_with_the_allowed_ones(folder, categories, message):
    config = config_of(folder, f"data.ood=mmstar:{folder / 'stars.jsonl'}", f"data.categories={categories}")
    with pytest.raises(ValueError, match=message):
        read_sets(config, 0)


def test_a_known_format_refuses_before_another_set_is_read(folder):
    (folder / "train.jsonl").write_text("no JSON\n" * 9)
    config = config_of(folder, f"data.ood=mmstar:{folder / 'stars.jsonl'}", "data.categories={ood: [maths]}")
    with pytest.raises(ValueError, match="maths; allowed"):
        read_sets(config, 0)


@pytest.mark.parametrize("given", ["[a]", "{foo: [a]}", "{train: []}", "{train: a}"])
def test_what_is_no_mapping_of_sets_to_names_is_refused(given):
    with pytest.raises(ConfigError, match=r"data\.categories=.*; allowed: a mapping of train, .*ood to lists of names"):
        load_config(None, [f"data.categories={given}"])


def test_a_row_of_a_category_that_its_format_does_not_have_is_set_aside(folder):
    rows = [
        {"index": i, "question": "Which?", "answer": "A", "category": c} for i, c in enumerate(["math", "maths", None])
    ]
    problems, quarantine = read(write_rows(folder / "a.jsonl", rows), form="mmstar")
    assert len(problems) == 1
    assert reasons(quarantine) == [(2, "category", "unknown category"), (3, "category", "unknown category")]
