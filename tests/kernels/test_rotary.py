"""rotary: the bits of Hugging Face's form, from any strides, in a layout that needs no copy; and what it refuses."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from draws import INTERPRETED, TRITON_FORMS
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from mstar_kernels import reference_layers
from mstar_kernels.rotary import rotary

torch.set_num_threads(1)
FORMS = ["reference", *TRITON_FORMS]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
Case = tuple[Tensor, Tensor, Tensor, Tensor]


def case(batch: int, length: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype = torch.float32) -> Case:
    generator = torch.Generator().manual_seed(dim)
    shapes = (batch, heads, length, dim), (batch, kv_heads, length, dim), (batch, length, dim), (batch, length, dim)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def run(form: str, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    device = "cuda" if form == "cuda" else "cpu"
    found = rotary(*(x.to(device) for x in tensors), backend="reference" if form == "reference" else "triton")
    for x, given in zip(found, tensors):
        assert x.shape == given.shape and x.dtype == given.dtype and x.transpose(1, 2).is_contiguous()
    return found[0].cpu(), found[1].cpu()


def assert_same(form: str, found: tuple[Tensor, Tensor], case: Case) -> None:
    """The same bits; in bfloat16 in the interpreter, which cuts off where it should round, three roundings off."""
    for x, wanted, of in zip(found, apply_rotary_pos_emb(*case), case):
        if form == "interpreted" and x.dtype == torch.bfloat16:
            torch.testing.assert_close(x, wanted, rtol=0.02, atol=float(of[of.isfinite()].abs().amax()) * 0.05)
        else:
            torch.testing.assert_close(x, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1, 2), (3, 1, 28, 4, 128), (2, 3, 5, 1, 6), (2, 5, 3, 3, 80), (1, 2, 9, 2, 256)], ids=str
)
def test_the_bits_of_hugging_face(form: str, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    given = case(*sizes, dtype)
    assert_same(form, run(form, *given), given)


@pytest.mark.parametrize("form", FORMS)
def test_any_strides(form: str) -> None:
    q, k, cos, sin = case(3, 4, 6, 2, 16)
    joined = torch.randn(3, 4, 10, 20)  # queries and keys side by side, as a joint projection makes them
    joined[:, :, :6, 2:18], joined[:, :, 6:8, 2:18] = q.transpose(1, 2), k.transpose(1, 2)
    views = joined[:, :, :6, 2:18].transpose(1, 2), joined[:, :, 6:8, 2:18].transpose(1, 2)
    assert_same(form, run(form, *views, cos, sin), (q, k, cos, sin))
    spread = [x.mT.contiguous().mT for x in (q, k, cos, sin)]
    assert_same(form, run(form, *spread), (q, k, cos, sin))
    shared = cos[:1].expand(3, -1, -1), sin[:, :1].expand(-1, 4, -1)
    assert_same(form, run(form, q, k, *shared), (q, k, *shared))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_hostile_values(form: str, dtype: torch.dtype) -> None:
    given = case(6, 1, 3, 2, 10, dtype)
    for x in given[:2]:
        x[0], x[1] = 0.0, torch.finfo(dtype).max
        x[2, :, :, 3], x[3, :, :, 8], x[4, :, :, 0] = math.inf, -math.inf, math.nan
    given[2][5, 0, 1], given[3][5, 0, 2] = math.inf, math.nan
    assert_same(form, run(form, *given), given)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_do_and_no_gradient(form: str) -> None:
    assert run(form, *case(0, 1, 3, 2, 8))[0].shape == (0, 3, 1, 8)
    assert run(form, *case(2, 1, 3, 0, 8))[1].shape == (2, 0, 1, 8)
    q, *others = case(1, 1, 3, 2, 8)
    assert not run(form, q.requires_grad_(), *others)[0].requires_grad


def test_the_reference_in_float64() -> None:
    given = [x.double() for x in case(2, 3, 3, 1, 8)]
    for x, wanted in zip(reference_layers.rotary(*given), apply_rotary_pos_emb(*given)):
        assert x.dtype == torch.float64 and torch.equal(x, wanted)


GOOD = dict(zip(("q", "k", "cos", "sin"), case(2, 3, 4, 2, 8)))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("q", GOOD["q"].double(), "q is torch.float64; allowed"),
        ("q", GOOD["q"][0], r"q has shape \(4, 3, 8\); allowed"),
        ("q", GOOD["q"][..., :7], "q has shape .*D even"),
        ("k", GOOD["k"][:, :, :2], r"k has shape \(2, 2, 2, 8\); allowed: \[2, Hkv, 3, 8\]"),
        ("k", GOOD["k"][:1], "k has shape"),
        ("k", GOOD["k"].half(), "k is torch.float16 on cpu; allowed: torch.float32"),
        ("cos", GOOD["cos"][:1], r"cos has shape \(1, 3, 8\); allowed: \[2, 3, 8\]"),
        ("cos", GOOD["cos"][..., :4], "cos has shape"),
        ("sin", GOOD["sin"].bfloat16(), "sin is torch.bfloat16"),
        ("sin", GOOD["sin"].to("meta"), "sin is torch.float32 on meta"),
    ],
)
def test_bad_arguments_are_named(name: str, value: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"rotary: {message}"):
        rotary(**{**GOOD, name: value})


@pytest.mark.skipif(INTERPRETED, reason="already in the interpreter")
def test_triton_in_its_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
