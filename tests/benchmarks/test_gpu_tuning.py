"""The tuning tool's variants: each changes what it says, for its own measurement alone."""

import pytest
import torch

from benchmarks.gpu import tuning


@pytest.mark.parametrize("op", sorted(tuning.SUBJECTS))
def test_a_variant_is_a_change_and_is_taken_back(op: str) -> None:
    variants = tuning.SUBJECTS[op][0]()
    assert len({variant.name for variant in variants}) == len(variants)
    for variant in variants:
        before = [tuning.look_up(owner, key) for owner, key, _ in variant.changes]
        with pytest.raises(ZeroDivisionError), variant.applied():
            for (owner, key, value), earlier in zip(variant.changes, before, strict=True):
                assert tuning.look_up(owner, key) == value != earlier
            raise ZeroDivisionError
        assert [tuning.look_up(owner, key) for owner, key, _ in variant.changes] == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures on a device")
def test_without_a_device_it_says_so() -> None:
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        tuning.main(["--only", "sampling"])
