"""Every family of the matrix through the engine, and the table of it in docs/models.md."""

from __future__ import annotations

import pytest
from family import FAMILIES, AbsentError
from matrix import load_families, outcome

load_families()


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_equal_generate(name: str) -> None:
    try:
        found = outcome(name)
    except AbsentError as error:
        pytest.skip(str(error))
    assert {place: what for place, what in found.items() if what} == {}
