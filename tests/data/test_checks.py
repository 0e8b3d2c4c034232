"""Data checks: overlaps by id and by content, missing and repeated answers and ids, each refused in one line."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mstar_engine.config_parse import load_config
from mstar_engine.data.checks import check_data, overlaps, refuse_missing_golds, refuse_overlap, refuse_repeated_ids
from mstar_engine.data.digits import digits_problems
from mstar_engine.data.sources import DataSet, load_data
from mstar_engine.types import Problem

SIZES = [
    "data.train_problems=12",
    "data.unlabelled_problems=6",
    "data.validation_problems=5",
    "data.test_problems=5",
    "data.ood_problems=5",
    "data.demonstrations=4",
    "data.warmup_captions=4",
]


def config_of(*more: str):
    return load_config(None, [*SIZES, *more])


@pytest.fixture
def data() -> DataSet:
    return load_data(config_of().data, seed=0)


def refusal(data: DataSet, *more: str) -> str:
    with pytest.raises(ValueError) as caught:
        check_data(data, config_of(*more))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_warm_up_that_samples_needs_answers_and_no_demonstrations(data: DataSet) -> None:
    """Some answers: problems without one are left out, unless the evolution needs them."""
    stages = "stages=[pretrain,warmup]"
    data = replace(data, warmup=[], train=[replace(p, gold=None) for p in data.train[1:]] + data.train[:1])
    assert "data.warmup=''" in refusal(data, stages) and "warmup.source=sampled" in refusal(data, stages)
    check_data(data, config_of(stages, "warmup.source=sampled"))
    assert "training set: 11 without" in refusal(data, "stages=[warmup,evolve]", "warmup.source=sampled")
    none = replace(data, train=data.train[:-1])
    assert refusal(none, stages, "warmup.source=sampled").startswith("warmup.source=sampled: no training problem has")


def test_unlabelled_problems_are_further_training_problems(data: DataSet) -> None:
    """Asking for them changes no other set."""
    alone = load_data(config_of("data.unlabelled_problems=0").data, seed=0)
    assert alone.unlabelled == []
    for name in ("train", "validation", "test", "ood", "warmup"):
        assert [problem.id for problem in getattr(data, name)] == [problem.id for problem in getattr(alone, name)]
    more = digits_problems("train", 18)
    assert [p.images[0].tobytes() for p in data.train + data.unlabelled] == [p.images[0].tobytes() for p in more]


def test_the_default_task_passes() -> None:
    config = load_config(None, ["data.unlabelled_problems=500", "prompts.unlabelled=oracle"])
    check_data(load_data(config.data, seed=3), config)


@pytest.mark.parametrize("measured", ["validation", "test", "ood"])
@pytest.mark.parametrize(("learned", "called"), [("train", "training"), ("unlabelled", "unlabelled")])
def test_leaked_problems_are_refused(data: DataSet, measured: str, learned: str, called: str) -> None:
    """The count, and the first ids with those that they have in the other set."""
    leaked = [
        replace(problem, id=f"copy-{i}", question=f"  {problem.question.upper()}\n", gold="another")
        for i, problem in enumerate(getattr(data, learned)[:5])
    ]
    message = refusal(replace(data, **{measured: getattr(data, measured) + leaked}))
    assert f"set: 5 of 10 problems are also in the {called} set: " in message
    first = getattr(data, learned)[0].id
    assert f"copy-0 (there {first})" in message and "copy-2" in message
    assert "copy-3" not in message and message.endswith("...")


def test_the_warm_up_must_not_show_what_is_measured(data: DataSet) -> None:
    shown = replace(data.warmup[0], gold="1")
    assert f"test set: 1 of 1 problems are also in the warm-up set: {shown.id}" in refusal(replace(data, test=[shown]))


def test_an_id_alone_is_an_overlap(data: DataSet) -> None:
    """Ids key images, draws and files, whatever the question."""
    namesake = replace(data.validation[0], id=data.train[3].id)
    assert data.train[3].id in refusal(replace(data, validation=[namesake]))


def test_the_same_question_about_another_image_is_another_problem(data: DataSet) -> None:
    other = replace(data.validation[0], question=data.train[0].question)
    check_data(replace(data, validation=[other]), config_of())
    bare = replace(data.train[0], id="bare", images=())
    check_data(replace(data, validation=[bare]), config_of())
    twice = replace(data.train[0], id="twice", images=data.train[0].images * 2)
    check_data(replace(data, validation=[twice]), config_of())


def test_text_problems_meet_by_question() -> None:
    found = overlaps({"test": [Problem(id="a", question="2 + 2?")]}, [Problem(id="b", question=" 2  + 2? ")])
    assert found == {"test": {"a": "b"}}


def test_images_meet_by_content(tmp_path: Path) -> None:
    """Files by bytes, whatever their names; a file and an image in memory by pixels; different ones not."""
    red, blue = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (6, 4), "blue")
    tall = Image.frombytes("RGB", (4, 6), red.tobytes())
    for name, image in (("one.png", red), ("two.png", red), ("blue.png", blue)):
        image.save(tmp_path / name)
    (tmp_path / "longer.png").write_bytes((tmp_path / "one.png").read_bytes() + b"more")

    def meet(ours, theirs) -> bool:
        measured = {"test": [Problem(id="a", question="?", images=(ours,))]}
        return bool(overlaps(measured, [Problem(id="b", question="?", images=(theirs,))])["test"])

    one = tmp_path / "one.png"
    assert meet(one, tmp_path / "two.png") and meet(str(one), one)
    assert not meet(one, tmp_path / "blue.png") and not meet(one, tmp_path / "longer.png")
    assert meet(red, one) and meet(one, red) and meet(red, red.copy()) and meet(red, tmp_path / "longer.png")
    assert not meet(red, blue) and not meet(red, tmp_path / "blue.png") and not meet(red, tall)
    grey = Image.new("L", (6, 4), 9)
    assert meet(grey, grey.convert("RGB"))


def test_images_are_read_only_where_questions_meet(tmp_path: Path) -> None:
    """A training set's images are not opened without a reason; one that cannot be read then is named."""
    gone = tmp_path / "gone.png"
    learned = [Problem(id="far", question="something else", images=(gone,))]
    measured = {"test": [Problem(id="a", question="?", images=(gone,))]}
    assert overlaps(measured, learned) == {"test": {}}
    with pytest.raises(ValueError, match=r"problem '(a|near)': cannot read image .*gone\.png"):
        overlaps(measured, [replace(learned[0], id="near", question="?")])
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"no image")
    pixels = {"test": [Problem(id="a", question="?", images=(Image.new("RGB", (2, 2)),))]}
    with pytest.raises(ValueError, match=r"problem 'near': cannot read image .*torn\.png"):
        overlaps(pixels, [Problem(id="near", question="?", images=(torn,))])


@pytest.mark.parametrize(
    ("name", "called", "stages", "more"),
    [
        ("train", "training", "[annotate]", []),
        ("train", "training", "[evolve]", []),
        ("validation", "validation", "[warmup]", []),
        ("validation", "validation", "[annotate]", []),
        ("validation", "validation", "[evolve]", []),
        ("test", "test", "[warmup]", []),
        ("ood", "out-of-distribution", "[evaluate]", []),
        ("unlabelled", "unlabelled", "[evolve]", ["prompts.unlabelled=oracle"]),
    ],
)
def test_missing_golds_are_refused_where_they_are_needed(data: DataSet, name, called, stages, more) -> None:
    bare = [replace(problem, gold=gold) for problem, gold in zip(getattr(data, name)[:2], (None, " "))]
    said = refusal(replace(data, **{name: bare + getattr(data, name)[2:]}), f"stages={stages}", *more)
    assert said == f"{called} set: 2 without a reference answer: {bare[0].id}, {bare[1].id}"


def test_golds_that_nobody_asks_for_may_be_missing(data: DataSet) -> None:
    unlabelled = [replace(problem, gold=None) for problem in data.unlabelled]
    for kind in ("none", "pseudo"):
        check_data(replace(data, unlabelled=unlabelled), config_of(f"prompts.unlabelled={kind}"))
    train = [*data.train[:2], *(replace(problem, gold=None) for problem in data.train[2:])]
    check_data(replace(data, train=train), config_of("stages=[pretrain,warmup,annotate]", "annotate.problems=2"))
    check_data(replace(data, train=train), config_of("stages=[warmup,evaluate]"))


def test_repeated_ids_are_refused(data: DataSet) -> None:
    """Within a set, and between the two that an iteration may draw from together."""
    again = replace(data, train=[*data.train, data.train[4], data.train[1]])
    assert refusal(again) == f"training set: repeated ids, 2 in all: {data.train[1].id}, {data.train[4].id}"
    both = replace(data, unlabelled=[data.train[2]])
    assert refusal(both).endswith(f"together: repeated ids, 1 in all: {data.train[2].id}")
    demonstrated = replace(data, warmup=data.warmup + data.warmup[:1])
    check_data(demonstrated, config_of())


def test_each_check_stands_alone() -> None:
    problems = [Problem(id="a", question="?", gold="1"), Problem(id="b", question="?", gold="2")]
    refuse_missing_golds(problems, "set")
    refuse_repeated_ids(problems, "set")
    refuse_overlap({"test": problems}, [Problem(id="c", question="??")], "training")
