"""rms_norm: Triton against the reference and a float64 computation, and what both refuse."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from draws import INTERPRETED, TRITON_FORMS
from torch import Tensor

from mstar_kernels import reference_layers
from mstar_kernels.rms_norm import rms_norm

torch.set_num_threads(1)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMS = ["reference", *TRITON_FORMS]
SHAPES = [(3, 1, 3584), (1, 1), (129, 128), (2, 3, 33), (5, 7), (2, 8192), (2, 9001)]
ORDERS = [(0.0, False), (0.0, True), (1.0, True), (1.0, False)]


def run(form: str, x: Tensor, weight: Tensor, offset: float = 0.0, in_float32: bool = False, eps: float = 1e-6):
    device = "cuda" if form == "cuda" else "cpu"
    backend = "reference" if form == "reference" else "triton"
    moved = x.to(device), weight.to(device)
    return rms_norm(*moved, eps, offset=offset, weight_in_float32=in_float32, backend=backend).cpu()


def case(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        (torch.randn(shape, generator=generator) * 3).to(dtype),
        (torch.rand(shape[-1], generator=generator) * 2 - 0.5).to(dtype),
    )


@pytest.mark.parametrize("form", TRITON_FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", range(len(SHAPES)), ids=lambda number: str(SHAPES[number]))
def test_error_at_most_twice_that_of_pytorch_in_the_same_precision(form: str, dtype: torch.dtype, number: int) -> None:
    shape, (offset, in_float32) = SHAPES[number], ORDERS[number % 4]
    x, weight = case(shape, dtype)
    found = run(form, x, weight, offset, in_float32)
    assert found.dtype == dtype and found.shape == shape and found.is_contiguous()
    order = {"offset": offset, "weight_in_float32": in_float32}
    truth = reference_layers.rms_norm(x.double(), weight.double(), 1e-6, **order)
    plain = run("reference", x, weight, offset, in_float32)
    floor = torch.finfo(dtype).eps * truth.abs().max()
    assert (found - truth).abs().max() <= 2 * (plain - truth).abs().max() + floor


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("offset, in_float32", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_rounds_where_it_says(form: str, offset: float, in_float32: bool, dtype: torch.dtype) -> None:
    """Every element is the same before the weight, and not a number of the type."""
    if form == "interpreted" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter does not round to bfloat16, it cuts off")
    x, weight = torch.tensor([[1.0, -1.0] * 32]).to(dtype), torch.linspace(0.3, 1.7, 64).to(dtype)
    normed = x.float() / math.sqrt(1.1)
    at_the_end = (normed * (weight.float() + offset)).to(dtype)
    twice = normed.to(dtype) * (weight + offset)
    assert not torch.equal(at_the_end, twice)
    assert torch.equal(run(form, x, weight, offset, in_float32, eps=0.1), at_the_end if in_float32 else twice)


@pytest.mark.parametrize("form", TRITON_FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [40, 9001])
def test_hostile_values(form: str, dtype: torch.dtype, dim: int) -> None:
    largest = torch.finfo(dtype).max
    x, weight = case((7, dim), dtype)
    x[0] = 0.0
    x[1] = largest
    x[2] *= torch.finfo(dtype).tiny
    x[3, 17], x[4, 17], x[5, 17] = math.inf, -math.inf, math.nan
    x[6, 3] = largest
    found, wanted = run(form, x, weight), run("reference", x, weight)
    torch.testing.assert_close(found, wanted, equal_nan=True)
    assert (found[0] == 0).all() and found[5].isnan().all() and found[3, 17].isnan()
    weight[5], weight[6] = math.nan, math.inf
    torch.testing.assert_close(run(form, x, weight), run("reference", x, weight), equal_nan=True)


@pytest.mark.parametrize("form", FORMS)
def test_any_strides(form: str) -> None:
    x, weight = case((4, 6, 32), torch.float32)
    expected = run("reference", x, weight)
    apart = torch.full((4, 6, 80), math.nan)
    apart[..., 10:42] = x
    for view in (apart[..., 10:42], x.transpose(0, 1).contiguous().transpose(0, 1), x.mT.contiguous().mT):
        torch.testing.assert_close(run(form, view, weight), expected)
    spread = torch.zeros(32, 2)
    spread[:, 0] = x[0, 0]
    torch.testing.assert_close(run(form, spread[:, 0], weight), expected[0, 0])


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_do_and_no_gradient(form: str) -> None:
    assert run(form, torch.zeros(0, 5), torch.ones(5)).shape == (0, 5)
    assert not run(form, torch.ones(2, 5, requires_grad=True), torch.ones(5)).requires_grad


@pytest.mark.parametrize(
    "x, weight, message",
    [
        (torch.zeros(2, 4).double(), torch.ones(4).double(), "x is torch.float64; allowed"),
        (torch.tensor(1.0), torch.ones(1), r"x has shape \(\); allowed"),
        (torch.zeros(2, 0), torch.ones(0), r"x has shape \(2, 0\); allowed"),
        (torch.zeros(2, 4), torch.ones(5), r"weight has shape \(5,\).*allowed: a contiguous \[4\]"),
        (torch.zeros(2, 4), torch.ones(8)[::2], r"weight has shape \(4,\), strides \(2,\)"),
        (torch.zeros(2, 4), torch.ones(4).half(), "weight is torch.float16 on cpu; allowed: torch.float32"),
        (torch.zeros(2, 4), torch.ones(4, device="meta"), "weight is torch.float32 on meta; allowed"),
    ],
)
def test_bad_arguments_are_named(x: Tensor, weight: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"rms_norm: {message}"):
        rms_norm(x, weight, 1e-6)


@pytest.mark.skipif(INTERPRETED, reason="already in the interpreter")
def test_triton_in_its_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
