"""temperature_logprobs: Triton against the reference, and what both refuse."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from draws import INTERPRETED, TRITON_FORMS, rows
from torch import Tensor

from mstar_kernels.sampling import SCALED, sample_tokens
from mstar_kernels.temperature_logprobs import temperature_logprobs

torch.set_num_threads(1)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FORMS = ["reference", *TRITON_FORMS]


def case(
    vocabulary: int, count: int = 3, dtype: torch.dtype = FP32, degrees: int = 3, shared: bool = False
) -> dict[str, Tensor]:
    """Arguments of `count` rows over two rows of logits."""
    generator = torch.Generator().manual_seed(vocabulary)
    temperatures = torch.rand(1 if shared else count, degrees, generator=generator) * 2 + 0.1
    return {
        "logits": (torch.randn(2, vocabulary, generator=generator) * 2).to(dtype),
        "tokens": torch.randint(vocabulary, (count,), generator=generator, dtype=torch.int32),
        "logit_rows": (torch.arange(count) % 2).int(),
        "temperatures": temperatures,
        "banned_ids": torch.empty(0, dtype=torch.int32),
    }


def run(form: str, arguments: dict[str, Tensor], **options: bool) -> Tensor:
    device = "cuda" if form == "cuda" else "cpu"
    moved = {name: tensor.to(device) for name, tensor in arguments.items()}
    return temperature_logprobs(**moved, backend="reference" if form == "reference" else "triton", **options).cpu()


def compare(form: str, arguments: dict[str, Tensor]) -> Tensor:
    found = run(form, arguments)
    assert found.dtype == FP32 and found.shape == (len(arguments["tokens"]), arguments["temperatures"].shape[1])
    torch.testing.assert_close(found, run("reference", arguments), rtol=1e-5, atol=2e-6)
    return found


@pytest.mark.parametrize("form", TRITON_FORMS)
@pytest.mark.parametrize(
    "vocabulary, dtype, degrees", [(1, FP32, 1), (2, BF16, 2), (31, FP16, 14), (1000, BF16, 3), (4097, FP32, 5)]
)
def test_odd_sizes(form: str, vocabulary: int, dtype: torch.dtype, degrees: int) -> None:
    compare(form, case(vocabulary, dtype=dtype, degrees=degrees))
    compare(form, case(vocabulary, dtype=dtype, degrees=degrees, shared=True))
    compare(form, case(vocabulary, count=1, dtype=dtype, degrees=degrees))


@pytest.mark.parametrize("form", TRITON_FORMS)
def test_hostile_values(form: str) -> None:
    largest = torch.finfo(FP32).max
    arguments = case(520, count=2)
    arguments["temperatures"] = torch.tensor([[1.0, 1e-6, 1e-44, 1e30]])
    arguments["tokens"][:] = 5
    for logits in (
        torch.where(torch.arange(520) == 5, -largest, -math.inf),
        torch.where(torch.arange(520) % 3 == 0, -math.inf, 0.5),
        torch.randn(520, generator=torch.Generator().manual_seed(0)) * 1e30,
        torch.randn(520, generator=torch.Generator().manual_seed(0)) + 1e4,
    ):
        arguments["logits"] = logits[None].repeat(2, 1)
        compare(form, arguments)
    arguments["tokens"][:] = 3
    arguments["logits"] = torch.where(torch.arange(520) % 3 == 0, -math.inf, 0.5)[None].repeat(2, 1)
    assert (compare(form, arguments) == -math.inf).all()


@pytest.mark.parametrize("form", TRITON_FORMS)
def test_banned_ids(form: str) -> None:
    """Excluded whatever their logit; a banned token has no probability."""
    arguments = case(600)
    arguments["logits"][:, 17], arguments["logits"][:, 599] = math.nan, math.inf
    arguments["banned_ids"] = torch.tensor([17, 300, 599], dtype=torch.int32)
    arguments["tokens"] = torch.tensor([18, 300, 0], dtype=torch.int32)
    found = compare(form, arguments)
    assert (found[1] == -math.inf).all() and found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_the_draw(form: str) -> None:
    """The value at the temperature of a draw is the draw's own record."""
    logits = torch.randn(1, 200, generator=torch.Generator().manual_seed(1))
    arguments = rows(4, 1, temperature=0.7)
    drawn = sample_tokens(logits, **arguments, backend="reference")
    shared = {"logits": logits, "tokens": drawn.tokens, "logit_rows": arguments["logit_rows"]}
    found = run(form, {**shared, "temperatures": torch.tensor([[0.7]]), "banned_ids": arguments["banned_ids"]})
    torch.testing.assert_close(found[:, 0], drawn.records[:, SCALED], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "value, message", [(math.nan, "NaN or"), (math.inf, "NaN or"), (-math.inf, "no finite logit")], ids=str
)
def test_unfit_rows_are_named(form: str, value: float, message: str) -> None:
    arguments = case(700)
    if value == -math.inf:
        arguments["logits"][1] = value
    arguments["logits"][1, 699] = value
    with pytest.raises(ValueError, match=rf"temperature_logprobs: row 1 \(logits row 1\).*{message}"):
        run(form, arguments)
    if form != "reference":
        found = run(form, arguments, deferred=True)
        assert found[[0, 2]].isfinite().all()
        assert (found[1] == math.inf).all() if value == -math.inf else found[1].isnan().all()
    arguments["logit_rows"][1] = 0
    run(form, arguments)


@pytest.mark.parametrize("form", FORMS)
def test_no_rows(form: str) -> None:
    empty = torch.empty(0, dtype=torch.int32)
    arguments = {**case(5), "tokens": empty, "logit_rows": empty, "temperatures": torch.ones(1, 4)}
    assert run(form, arguments).shape == (0, 4)


@pytest.mark.parametrize(
    "name, value",
    [
        ("logits", torch.zeros(2, 10).long()),
        ("logits", torch.zeros(10)),
        ("tokens", torch.tensor([0, 10, 0], dtype=torch.int32)),
        ("tokens", torch.tensor([0, 1, 2])),
        ("logit_rows", torch.tensor([0, 2, 0], dtype=torch.int32)),
        ("logit_rows", torch.tensor([0, 1], dtype=torch.int32)),
        ("temperatures", torch.tensor([[1.0, 0.0]])),
        ("temperatures", torch.tensor([[1.0, math.nan]])),
        ("temperatures", torch.tensor([[1.0, math.inf]])),
        ("temperatures", torch.ones(2, 2)),
        ("temperatures", torch.ones(3)),
        ("temperatures", torch.ones(3, 0)),
        ("banned_ids", torch.tensor([2, 1], dtype=torch.int32)),
        ("banned_ids", torch.tensor([10], dtype=torch.int32)),
    ],
)
def test_bad_arguments_are_named(name: str, value: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"temperature_logprobs: {name}.*allowed"):
        temperature_logprobs(**{**case(10), name: value})


def test_a_triton_form_needs_a_device() -> None:
    if INTERPRETED:
        pytest.skip("the interpreter needs none")
    with pytest.raises(ValueError, match="triton"):
        temperature_logprobs(**case(10), backend="triton")


@pytest.mark.skipif(INTERPRETED, reason="already in the interpreter")
def test_triton_in_its_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
