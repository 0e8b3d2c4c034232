"""What a scorer refuses: scores that are no numbers, by problem and sample, and indices that it got wrong itself."""

import numpy as np
import pytest

from mstar_engine.models.tiny import build_tiny
from mstar_engine.reward.layout import LaidOut
from mstar_engine.types import Group, Problem
from mstar_kernels.step_rewards import step_rewards
from tests.reward.test_prm import family_prm, response


def three_groups() -> tuple[list[Group], list[list[tuple[int, ...]]]]:
    """Below the prompts of `family_prm`: samples 7 and 8 are equal, sample 9 has no step."""
    ids = [[20, 21, 22, 23], [30, 31, 32], [30, 31, 32], [40]]
    responses = tuple(response(6 + i, one) for i, one in enumerate(ids))
    groups = [Group(problem=Problem(id=name, question=""), responses=responses, prompt_length=0) for name in "abc"]
    return groups, [[(1, 2, 4), (1, 3), (1, 3), ()]] * 3


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("step", "where"), [(0, "a, sample 6"), (7, "b, sample 6"), (8, "b, sample 7")])
def test_an_unfit_score_names_its_own_response(
    backend: str, step: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of many in one call, found among the scores that are read anyway."""
    prm = family_prm("llava", "two_class", build_tiny(0)[1])
    prm.backend = backend
    groups, ends = three_groups()
    assert len(list(prm.score_groups(groups, ends))) == 3

    def spoilt(hidden, label_rows, positions, *others, **options):
        hidden = hidden.clone()
        hidden[positions[[step, -1]].long()] = float("inf")
        return step_rewards(hidden, label_rows, positions, *others, **options)

    monkeypatch.setattr("mstar_engine.reward.prm.step_rewards", spoilt)
    with pytest.raises(ValueError, match=rf"^process reward model: NaN or infinite score for problem {where}$"):
        list(prm.score_groups(groups, ends))


def test_an_index_out_of_range_is_refused_before_anything_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    prm = family_prm("llava", "two_class", build_tiny(0)[1])
    groups, ends = three_groups()
    lay_out = prm.layout.lay_out

    def shifted(ids, step_ends):
        laid = lay_out(ids, step_ends)
        return LaidOut(laid.ids, laid.positions + np.int32(1000 * (len(step_ends) == 2)))

    monkeypatch.setattr("mstar_engine.reward.prm.step_rewards", None)
    monkeypatch.setattr(prm.layout, "lay_out", shifted)
    with pytest.raises(ValueError, match=r"^step_rewards: step_positions\[3\] = 1004; allowed: 0 to 20$"):
        list(prm.score_groups(groups, ends))
