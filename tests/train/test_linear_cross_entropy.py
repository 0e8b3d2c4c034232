"""The chunked cross-entropy of a linear layer, against logits that are all there."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mstar_engine.train import linear_cross_entropy as module
from mstar_engine.train.linear_cross_entropy import linear_cross_entropy

SHAPES = [(1, 1, 2), (7, 5, 11), (33, 16, 257), (64, 24, 1000)]


def case(rows: int, width: int, vocabulary: int, dtype: torch.dtype, spread: float = 1.0) -> list[Tensor]:
    """hidden, weight, bias (all with a gradient), targets, row weights of which some are 0 and one is negative."""
    generator = torch.Generator().manual_seed(rows * 1000 + vocabulary)
    hidden = torch.randn(rows, width, generator=generator) * spread
    weight = torch.randn(vocabulary, width, generator=generator)
    bias = torch.randn(vocabulary, generator=generator)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    row_weights = torch.rand(rows, generator=generator).where(torch.rand(rows, generator=generator) > 0.2, 0)
    row_weights[0] = -0.5
    leaves = [tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, bias)]
    return [*leaves, targets, row_weights]


def plain(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, w: Tensor, softcap: float | None
) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    logits = logits.float() if logits.dtype.itemsize == 2 else logits
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return torch.dot(F.cross_entropy(logits, targets, reduction="none"), w.to(logits.dtype))


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(softcap: float | None, with_bias: bool) -> None:
    hidden, weight, bias, targets, w = case(7, 5, 11, torch.float64)
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, w, bias=bias, softcap=softcap, chunk=3)

    assert torch.autograd.gradcheck(loss, inputs)
    torch.testing.assert_close(loss(*inputs), plain(hidden, weight, bias if with_bias else None, targets, w, softcap))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1, 8, 10**6, None])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_agrees_with_cross_entropy_in_float32(
    shape: tuple[int, int, int], chunk: int | None, softcap: float | None
) -> None:
    hidden, weight, bias, targets, w = case(*shape, torch.float32)
    expected = plain(hidden, weight, bias, targets, w, softcap)
    found = linear_cross_entropy(hidden, weight, targets, w, bias=bias, softcap=softcap, chunk=chunk)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # Behind another factor, as in a mean over a batch.
    wanted = torch.autograd.grad(expected / 17, (hidden, weight, bias))
    for mine, theirs in zip(torch.autograd.grad(found / 17, (hidden, weight, bias)), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_bfloat16_errs_at_most_twice_as_much_as_plain_bfloat16(shape: tuple[int, int, int]) -> None:
    hidden, weight, bias, targets, w = case(*shape, torch.bfloat16)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight, bias)]
    truth = torch.autograd.grad(plain(*exact, targets, w, None), exact)
    usual = torch.autograd.grad(plain(hidden, weight, bias, targets, w, None), (hidden, weight, bias))
    loss = linear_cross_entropy(hidden, weight, targets, w, bias=bias, chunk=8)
    for mine, theirs, true in zip(torch.autograd.grad(loss, (hidden, weight, bias)), usual, truth, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - true).norm() <= 2 * (theirs - true).norm() + 1e-6


def test_large_logits_stay_finite() -> None:
    hidden, weight, bias, targets, w = case(9, 8, 50, torch.float32, spread=1e4)
    expected = plain(hidden, weight, bias, targets, w, None)
    found = linear_cross_entropy(hidden, weight, targets, w, bias=bias, chunk=4)
    torch.testing.assert_close(found, expected)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(found, (hidden, weight, bias)))


def test_what_needs_no_gradient_gets_none() -> None:
    hidden, weight, _, targets, w = case(7, 5, 11, torch.float32)
    frozen = linear_cross_entropy(hidden, weight.detach(), targets, w, chunk=2)
    (alone,) = torch.autograd.grad(frozen, hidden)
    (expected,) = torch.autograd.grad(plain(hidden, weight, None, targets, w, None), hidden)
    torch.testing.assert_close(alone, expected)
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets, w).requires_grad
    empty = linear_cross_entropy(hidden[:0], weight, targets[:0], w[:0])
    assert empty.item() == 0 and not torch.autograd.grad(empty, weight)[0].any()


def test_no_more_logits_than_a_chunk_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor with a vocabulary dimension holds a chunk of rows, forward and backward."""
    rows, width, vocabulary = 64, 4, 500
    hidden, weight, _, targets, w = case(rows, width, vocabulary, torch.float32)
    monkeypatch.setattr(module, "MOST_LOGITS", 8 * vocabulary)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            nonlocal largest
            out = function(*arguments, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        linear_cross_entropy(hidden, weight, targets, w).backward()
    assert largest == 8 * vocabulary
