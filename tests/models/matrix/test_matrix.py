"""Every family of the matrix through the engine, and the table of it in docs/models.md."""

from __future__ import annotations

import pytest
from family import FAMILIES, AbsentError
from matrix import load_families, outcome
from refused import REFUSED, reason
from refused_models import REFUSED_MODELS, model_reason
from table import PATH, families, rows

HOW = "python tests/models/matrix/write_matrix.py"
load_families()


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_equal_generate(name: str) -> None:
    try:
        found = outcome(name)
    except AbsentError as error:
        pytest.skip(str(error))
    assert {place: what for place, what in found.items() if what} == {}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_what_stands_in_the_way(name: str) -> None:
    try:
        assert REFUSED[name] in reason(name)
    except AbsentError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", REFUSED_MODELS)
def test_a_model_is_refused_in_a_line(name: str) -> None:
    try:
        assert REFUSED_MODELS[name][1] in model_reason(name)
    except AbsentError as error:
        pytest.skip(str(error))


def test_the_page_of_models_has_every_family() -> None:
    """Written by write_matrix.py; what a run finds is asserted above."""
    refused = set(REFUSED) | set(REFUSED_MODELS)
    page = rows(PATH.read_text(encoding="utf-8"))
    assert {name for name in page} >= set(FAMILIES) | refused
    for name, (kind, prompts, notes) in families().items():
        assert page[name][:2] == [kind, prompts] and page[name][-1] == notes, f"{name}: run {HOW}"
        assert set(page[name][2:-1]) == {"n=1, n=4"}
    assert set(page) <= set(FAMILIES) | refused, f"run {HOW}"


def test_at_least_a_dozen_families_are_exact() -> None:
    assert len(FAMILIES) >= 12
