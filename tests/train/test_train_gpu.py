"""The improve phase on a CUDA device: the same cases, with the paths that only a device takes."""

import importlib.util
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from families import build
from lessons import assert_close, gradients, lessons

from mstar_engine.models.attention import LayerCall
from mstar_engine.models.backbone import hidden_states, output_head
from mstar_engine.models.memory import checkpoint_activations
from mstar_engine.models.packed_attention import PackedAttention, packed_attention
from mstar_engine.train.collate import collate
from mstar_engine.train.liger import liger_sum, use_liger
from mstar_engine.train.likelihood import Likelihood, response_nll
from mstar_engine.train.linear_cross_entropy import linear_cross_entropy
from mstar_engine.train.packing import pack, why_not_packed
from mstar_engine.train.schedule import Schedule
from mstar_engine.train.trainer import Trainer

CUDA = torch.device("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def leaves(rows: int, width: int, vocabulary: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """bfloat16 hidden states and weight with a gradient, targets, row weights."""
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator) * width**-0.5
    targets = torch.randint(vocabulary, (rows,), generator=generator).to(CUDA)
    weights = torch.rand(rows, generator=generator).to(CUDA)
    return [t.bfloat16().to(CUDA).requires_grad_() for t in (hidden, weight)], targets, weights


def in_float64(both: list[torch.Tensor], targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    exact = [tensor.detach().double().requires_grad_() for tensor in both]
    loss = torch.dot(F.cross_entropy(F.linear(*exact), targets, reduction="none"), weights.double())
    return (loss.detach(), *torch.autograd.grad(loss, exact))


@pytest.mark.parametrize(("rows", "width", "vocabulary"), [(33, 64, 1001), (300, 128, 5000)])
@pytest.mark.parametrize("chunk", [None, 64])
def test_the_loss_by_rows_errs_at_most_twice_as_much_as_plain(
    rows: int, width: int, vocabulary: int, chunk: int | None
) -> None:
    both, targets, weights = leaves(rows, width, vocabulary)
    truth = in_float64(both, targets, weights)
    usual = torch.dot(F.cross_entropy(F.linear(*both).float(), targets, reduction="none"), weights)
    plain = (usual.detach(), *torch.autograd.grad(usual, both))
    loss = linear_cross_entropy(*both, targets, weights, chunk=chunk)
    found = (loss.detach(), *torch.autograd.grad(loss, both))
    for mine, theirs, true in zip(found, plain, truth, strict=True):
        assert (mine - true).norm() <= 2 * (theirs - true).norm() + 1e-5 * true.norm()


def test_no_logits_of_a_batch_exist() -> None:
    """4,096 rows of a vocabulary of 152k would be 2.5 GB in float32, and their gradient as much; a pass adds less."""
    both, targets, weights = leaves(4096, 256, 152_064)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_cross_entropy(*both, targets, weights).backward()
    assert torch.cuda.max_memory_allocated() - before < 1.5e9


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_liger_sums_the_same_loss(softcap: float | None) -> None:
    assert use_liger("auto", CUDA)
    both, targets, _ = leaves(300, 128, 5000)
    ones = torch.ones(300, device=CUDA)
    liger = liger_sum(*both, targets, None, softcap) * 0.5
    ours = linear_cross_entropy(*both, targets, ones, softcap=softcap) * 0.5
    torch.testing.assert_close(liger, ours, rtol=1e-3, atol=0.0)
    for a, b in zip(torch.autograd.grad(liger, both), torch.autograd.grad(ours, both), strict=True):
        assert (a - b).norm() <= 0.02 * b.norm()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_packed_and_by_parts_as_padded_with_plain_logits(family: str) -> None:
    model = build(family).to(CUDA)
    encoder, examples = lessons(family)
    padded = response_nll(model, collate(examples, encoder).to(CUDA))
    packed = response_nll(model, pack(model, examples, encoder).to(CUDA), output_head(model))
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-4)
    assert_close(gradients(packed, model), gradients(padded, model), tolerance=1e-3)


def packed_call(size: int, heads: int, kv_heads: int, window: int | None, lengths: list[int]) -> LayerCall:
    """A layer's bfloat16 call as models make it: views of [1, length, heads * size] projections."""
    generator = torch.Generator().manual_seed(size)

    def random(count: int) -> torch.Tensor:
        flat = torch.randn(1, sum(lengths), count * size, generator=generator)
        return flat.bfloat16().to(CUDA).view(1, -1, count, size).transpose(1, 2).requires_grad_()

    usual = lambda: pytest.fail("the model's own attention is not asked")  # noqa: E731
    return LayerCall(0, random(heads), random(kv_heads), random(kv_heads), size**-0.5, window, None, usual)


def attended(call: LayerCall, lengths: list[int]) -> tuple[str | None, tuple[torch.Tensor, ...]]:
    """How a packed row attended, its output, and the gradients of query, key and value."""
    step = PackedAttention(lengths)
    output = step.attend(call)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    return step.used, (
        output.detach(),
        *torch.autograd.grad((output * weights).sum(), (call.query, call.key, call.value)),
    )


@pytest.mark.parametrize(("size", "heads", "kv_heads"), [(64, 4, 4), (128, 16, 2), (80, 6, 3), (256, 4, 2)])
@pytest.mark.parametrize("window", [None, 3, 100])
def test_variable_length_attention_errs_at_most_twice_as_much_as_sdpa_by_example(
    size: int, heads: int, kv_heads: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [1, 130, 517, 64]
    call = packed_call(size, heads, kv_heads, window, lengths)
    used, found = attended(call, lengths)
    assert used == "varlen_attn"
    exact = {name: getattr(call, name).detach().double().requires_grad_() for name in ("query", "key", "value")}
    truth = attended(replace(call, **exact), lengths)[1]
    monkeypatch.setattr("mstar_engine.models.packed_attention.takes_varlen", lambda call: False)
    used, plain = attended(call, lengths)
    assert used == "sdpa by example"
    for mine, theirs, true in zip(found, plain, truth, strict=True):
        assert (mine - true).norm() <= 2 * (theirs - true).norm() + 1e-3 * true.norm()


def test_a_head_that_the_flash_kernel_does_not_take_goes_by_example() -> None:
    for size in (20, 264):
        assert attended(packed_call(size, 4, 2, None, [5, 9]), [5, 9])[0] == "sdpa by example"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_bf16_gradients_are_those_of_padded_examples(checkpointing: bool) -> None:
    """Through the whole model, with what a checkpoint computes again in autograd's own thread: of float32 gradients
    they miss at most twice as much."""
    model = build("qwen3_vl").bfloat16().to(CUDA)
    encoder, examples = lessons("qwen3_vl")
    whole = deepcopy(model).float()
    truth = gradients(response_nll(whole, collate(examples, encoder).to(CUDA)), whole)
    padded = gradients(response_nll(model, collate(examples, encoder).to(CUDA)), model)
    if checkpointing:
        checkpoint_activations(model)
    model.train()
    batch = pack(model, examples, encoder).to(CUDA)
    with torch.no_grad(), packed_attention(model, batch.lengths) as step:
        hidden_states(model, **batch.inputs)
    assert step is not None and step.used == "varlen_attn"
    packed = gradients(response_nll(model, batch), model)
    errors = [sum((found[name] - truth[name]).norm() ** 2 for name in truth) ** 0.5 for found in (packed, padded)]
    assert errors[0] <= 2 * errors[1]


def test_a_packed_row_takes_memory_in_proportion_to_its_length() -> None:
    """A mask of 32,768 positions squared would be 1 GiB."""
    lengths = [2048] * 16
    call = packed_call(64, 4, 2, None, lengths)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attended(call, lengths)
    assert torch.cuda.max_memory_allocated() - before < 2**29


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash-attn is not installed")
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_flash_attention_keeps_packed_examples_apart(family: str) -> None:
    model = build(family).bfloat16().to(CUDA)
    model.set_attn_implementation("flash_attention_2")
    encoder, examples = lessons(family)
    assert why_not_packed(model, examples, encoder) is None


def test_bf16_steps_follow_float32_ones_and_leave_memory_as_it_was() -> None:
    model = build("qwen2_5_vl").bfloat16().to(CUDA)
    encoder, examples = lessons("qwen2_5_vl")
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        one = Trainer(
            deepcopy(model).to(dtype),
            encoder,
            Schedule(peak=1e-3),
            bf16=dtype == torch.bfloat16,
            gradient_checkpointing=True,
            max_tokens=64,
            objective=Likelihood(packing=True),
        )
        losses[dtype] = [one.step(examples).loss for _ in range(5)]
        one.release()
        held = torch.cuda.memory_allocated()
        one.step(examples)
        one.release()
        assert torch.cuda.memory_allocated() == held
    assert losses[torch.float32][-1] < losses[torch.float32][0]
    for a, b in zip(*losses.values()):
        assert abs(a - b) < 0.05 * abs(a)
