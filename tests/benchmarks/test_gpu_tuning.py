"""The tuning tool's variants: each changes what it says, for its own measurement alone."""

import pytest
import torch

from benchmarks.gpu import tuning


@pytest.mark.parametrize("op", sorted(tuning.SUBJECTS))
def test_a_variant_is_a_change_and_is_taken_back(op: str) -> None:
    variants = tuning.SUBJECTS[op][0]()
    assert len({variant.name for variant in variants}) == len(variants)
    for variant in variants:

        def found(variant: tuning.Variant = variant) -> object:
            owner = variant.owner
            return owner[variant.key] if isinstance(owner, dict) else getattr(owner, variant.key)

        before = found()
        with pytest.raises(ZeroDivisionError), variant.applied():
            assert found() == variant.value != before
            raise ZeroDivisionError
        assert found() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures on a device")
def test_without_a_device_it_says_so() -> None:
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        tuning.main(["--only", "sampling"])
