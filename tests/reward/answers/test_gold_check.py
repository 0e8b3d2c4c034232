"""Reference answers that no verdict can rest on: found before the run, each formula read once, their rows set aside."""

import json
from pathlib import Path

import pytest

from mstar_engine.answer_type import AnswerType
from mstar_engine.config_parse import load_config
from mstar_engine.data.sources import load_data
from mstar_engine.reward import gold_check, latex
from mstar_engine.reward.gold_check import refuse_unreadable, unusable
from mstar_engine.types import Problem

needs_math_verify = pytest.mark.skipif(not latex.installed(), reason="needs math-verify")
LATEX = AnswerType(kind="latex")


def problem(gold: str | None, answer_type: AnswerType | None = LATEX) -> Problem:
    return Problem(id=f"p/{gold}", question="?", gold=gold, answer_type=answer_type)


def test_kinds_that_need_no_other_process():
    kinds = [("7", "integer"), ("seven", "integer"), (None, "float"), ("1/0", "float"), ("", "text")]
    found = unusable([problem(gold, AnswerType(kind=kind)) for gold, kind in kinds] + [problem("anything", None)])
    assert [said is not None for said in found] == [False, True, False, True, True, False]
    assert found[1] == "reference answer 'seven': not a number; needed: integer"


@needs_math_verify
def test_formulas_are_read_once_and_numbers_not_at_all(monkeypatch):
    read = []
    ours = latex.LatexWorkers.read
    monkeypatch.setattr(latex.LatexWorkers, "read", lambda self, gold: read.append(gold) or ours(self, gold))
    gold_check._read.cache_clear()
    golds = ["\\frac{1}{2}", "12", "-0.5", "\\frac{1}{2}", "\\begin{array}", "x^2", None, "\\frac{1}{2}"]
    latex.use(2, 60.0)
    found = unusable([problem(gold) for gold in golds])
    assert [place for place, said in enumerate(found) if said is not None] == [4]
    assert found[4] == "reference answer '\\\\begin{array}': unreadable LaTeX; needed: a formula"
    assert set(read) == {"\\frac{1}{2}", "\\begin{array}", "x^2"}
    before = len(read)
    with pytest.raises(ValueError, match=r"train set: 1 reference answers cannot be used: p/.*unreadable LaTeX"):
        refuse_unreadable([problem(gold) for gold in golds], "train set")
    assert len(read) == before


@needs_math_verify
def test_a_row_with_such_a_gold_is_set_aside_and_nothing_else_lost(tmp_path: Path):
    golds = ["\\sqrt{2}", "\\begin{array}", "x+1", "3", "\\pi", "x^2", "5", "6", "7", "8"]
    rows = [
        {"id": f"r{i}", "question": f"How many {i}?", "answer": gold, "answer_type": "latex"}
        for i, gold in enumerate(golds)
    ]
    rows.append({"id": "r1", "question": "How many 1?", "answer": "2", "answer_type": "latex"})
    rows.append({"id": "pi", "question": "Pi?", "answer": "3,14", "answer_type": "float"})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        "data.dataset_name=files", f"data.train={path}", f"data.cache_dir={tmp_path / 'cache'}",
        "data.validation_problems=2", "data.test_problems=2", "data.max_quarantined=0.2",
    ]  # fmt: skip
    listed = tmp_path / "quarantine.jsonl"
    data = load_data(load_config(None, settings).data, 0, listed, unusable=unusable)
    ids = {one.id for name in ("train", "validation", "test") for one in getattr(data, name)}
    # The later row of the flawed one's id is a problem of its own.
    assert ids == {f"rows/r{i}" for i in range(10)}
    latex_row, float_row = map(json.loads, listed.read_text().splitlines())
    assert latex_row == {
        "file": str(path), "row": 2, "id": "r1", "field": "answer", "reason": "bad gold",
        "detail": "reference answer '\\\\begin{array}': unreadable LaTeX; needed: a formula",
    }  # fmt: skip
    assert (float_row["row"], float_row["reason"]) == (12, "bad gold") and "not a number" in float_row["detail"]


def test_a_gold_that_exact_match_reads_as_nothing_is_unusable():
    said = unusable([problem(gold, None) for gold in (".", " . ", "1", None)])
    assert [one is not None for one in said] == [True, True, False, False]
