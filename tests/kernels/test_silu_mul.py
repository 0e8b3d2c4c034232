"""silu_mul: Triton against the reference, and what both refuse."""

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
from mstar_kernels.silu_mul import silu_mul

torch.set_num_threads(1)
FORMS = ["reference", *TRITON_FORMS]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def run(form: str, gate: Tensor, up: Tensor) -> Tensor:
    device = "cuda" if form == "cuda" else "cpu"
    backend = "reference" if form == "reference" else "triton"
    return silu_mul(gate.to(device), up.to(device), backend=backend).cpu()


def case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(shape))
    return tuple((torch.randn(shape, generator=generator) * 3).to(dtype) for _ in range(2))


@pytest.mark.parametrize("form", TRITON_FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7, 3), (2, 1, 1024), (3, 1, 1111)], ids=str)
def test_error_at_most_twice_that_of_pytorch_in_the_same_precision(form: str, dtype: torch.dtype, shape: tuple) -> None:
    gate, up = case(shape, dtype)
    found = run(form, gate, up)
    assert found.dtype == dtype and found.shape == shape and found.is_contiguous()
    truth = reference_layers.silu_mul(gate.double(), up.double())
    plain = run("reference", gate, up)
    floor = torch.finfo(dtype).eps * truth.abs().max()
    assert (found - truth).abs().max() <= 2 * (plain - truth).abs().max() + floor


@pytest.mark.parametrize("form", TRITON_FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_hostile_values(form: str, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    values = torch.tensor([0.0, -0.0, 1.0, -80.0, -1000.0, largest, -largest, math.inf, -math.inf, math.nan]).to(dtype)
    gate, up = values.repeat_interleave(10), values.repeat(10)
    tolerance = {"rtol": 1e-5 if dtype == torch.float32 else 1.6e-2, "atol": 1e-5}
    torch.testing.assert_close(run(form, gate, up), run("reference", gate, up), equal_nan=True, **tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_any_strides_nothing_to_do_and_no_gradient(form: str) -> None:
    gate, up = case((6, 40))
    joined = torch.cat((gate, up), 1)
    torch.testing.assert_close(run(form, joined[:, :40], joined[:, 40:]), reference_layers.silu_mul(gate, up))
    torch.testing.assert_close(run(form, gate.T, up.T.contiguous()), reference_layers.silu_mul(gate, up).T)
    assert run(form, *case((0, 3))).shape == (0, 3)
    assert not run(form, gate.requires_grad_(), up).requires_grad


@pytest.mark.parametrize(
    "gate, up, message",
    [
        (torch.zeros(3).double(), torch.zeros(3).double(), "gate is torch.float64; allowed"),
        (torch.zeros(3), torch.zeros(1), r"up has shape \(1,\); allowed: \(3,\)"),
        (torch.zeros(3), torch.zeros(3).half(), "up is torch.float16 on cpu; allowed: torch.float32"),
        (torch.zeros(3), torch.zeros(3, device="meta"), "up is torch.float32 on meta"),
    ],
)
def test_bad_arguments_are_named(gate: Tensor, up: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"silu_mul: {message}"):
        silu_mul(gate, up)


@pytest.mark.skipif(INTERPRETED, reason="already in the interpreter")
def test_triton_in_its_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
