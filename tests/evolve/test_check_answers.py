"""Reference answers that cannot be used are refused before a run's directory is taken."""

from dataclasses import fields

import pytest

from mstar_engine.answer_type import AnswerType
from mstar_engine.data.sources import DataSet
from mstar_engine.evolve.session import check_answers
from mstar_engine.reward import latex
from mstar_engine.types import Problem

SETS = [field.name for field in fields(DataSet)]


def data_with(name: str, problem: Problem) -> DataSet:
    good = Problem(id="g", question="?", gold="7", answer_type=AnswerType(kind="integer"))
    return DataSet(**{one: [good, problem] if one == name else [good] for one in SETS})


@pytest.mark.parametrize("name", SETS)
def test_each_set_is_checked(name):
    problem = Problem(id="bad", question="?", gold="seven", answer_type=AnswerType(kind="integer"))
    with pytest.raises(ValueError, match=rf"{name} set: 1 reference answers cannot be used: bad \(.*not a number"):
        check_answers(data_with(name, problem))


def test_latex_without_math_verify_names_what_to_install(monkeypatch):
    monkeypatch.setattr(latex, "installed", lambda: False)
    with pytest.raises(ValueError, match=r"math-verify; install it: pip install 'mstar_engine\[latex\]'"):
        check_answers(data_with("train", Problem(id="p", question="?", gold="x", answer_type=AnswerType(kind="latex"))))


def test_untyped_and_unlabelled_problems_pass():
    check_answers(data_with("train", Problem(id="p", question="?", gold="anything at all")))
    check_answers(data_with("unlabelled", Problem(id="p", question="?", answer_type=AnswerType(kind="float"))))
