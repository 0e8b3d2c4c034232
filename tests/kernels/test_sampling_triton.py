"""`sample_tokens` in Triton against the reference: odd sizes, hostile values, filters, and what a draw depends on.

Tokens are equal, records within single precision; only a top_p that rounding may move has two right answers.
"""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from draws import FILTERS, INTERPRETED, NO_FILTERS, TRITON_FORMS, compare, rows, rows_of, run, select
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mstar_kernels import reference
from mstar_kernels.sampling import Samples, refuse_unfit, sample_tokens

torch.set_num_threads(1)
triton = pytest.importorskip("triton")
tl = triton.language
exact_noise = pytest.importorskip("mstar_kernels.sampling_terms_triton").exact_noise
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def normal(shape: tuple[int, int], dtype: torch.dtype = FP32, scale: float = 2.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * shape[1] + seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def use_settings(monkeypatch: pytest.MonkeyPatch, **changes: int) -> None:
    """Cut every launch so, whatever the vocabulary."""
    from mstar_kernels import sampling_triton

    for name, sizes in sampling_triton.SETTINGS.items():
        monkeypatch.setitem(sampling_triton.SETTINGS, name, dataclasses.replace(sizes, **changes))


def watch(monkeypatch: pytest.MonkeyPatch, kernel: str, look: Callable[..., None], *names: str) -> None:
    """Have `look` called with these arguments of every launch of a kernel, before it."""
    from mstar_kernels import sampling_triton

    launched = getattr(sampling_triton, kernel)

    class Watched:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            def launch(*arguments: object, **constants: object) -> None:
                look(*(arguments[launched.arg_names.index(name)] for name in names))
                launched[grid](*arguments, **constants)

            return launch

    monkeypatch.setattr(sampling_triton, kernel, Watched())


# ---- against the reference


@pytest.mark.parametrize("form", TRITON_FORMS)
@pytest.mark.parametrize(
    "vocabulary, dtype", [(1, FP32), (2, BF16), (31, FP16), (1000, BF16), (1008, FP32), (1040, BF16), (4097, BF16)]
)
def test_odd_vocabularies(form: str, vocabulary: int, dtype: torch.dtype) -> None:
    """With rows that begin at multiples of 16 bytes (1008, 1040), and not; several rows share one of logits."""
    logits = normal((3, vocabulary), dtype)
    compare(form, logits, **rows_of(NO_FILTERS, 3))
    compare(form, logits, **rows_of(FILTERS[5 + vocabulary % 3 :: 3], 2))


@pytest.mark.parametrize("form", ["cuda"] if INTERPRETED else TRITON_FORMS)
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("scale", [0.5, 4.0])
@pytest.mark.parametrize("vocabulary", [50257, 151936])
def test_real_vocabularies(form: str, dtype: torch.dtype, scale: float, vocabulary: int) -> None:
    if INTERPRETED:
        pytest.skip("of a size for a device")
    logits = normal((28, vocabulary), dtype, scale)
    banned = sorted({0, 1, 511, 512, 50256, *range(vocabulary - 40, vocabulary - 1)})
    compare(form, logits, **rows_of(FILTERS * 2, 28, tuple(banned) if scale < 1 else ()))


@pytest.mark.parametrize("form", TRITON_FORMS)
@pytest.mark.parametrize("capacity", [40, 400], ids=["lists overflow", "lists suffice"])
def test_a_sample_brackets_what_filters_keep(form: str, capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small lists and samples, so that 4,000 ids are bracketed as 152,000 are; or not, for the other way."""
    use_settings(monkeypatch, chunk=2048, capacity=capacity, sample=1024, part=2048)
    many = ({"top_p": 0.95}, {"top_p": 0.5, "temperature": 0.7}, {"top_k": 2500}, {"top_k": 40, "top_p": 0.9})
    compare(form, normal((2, 4000), BF16, scale=1.0), **rows_of(many, 2))
    compare(
        form, normal((1, 4096), FP32), **rows_of(({"top_p": 0.9}, {"min_p": 0.02, "top_k": 3000})[capacity > 99 :], 1)
    )


@pytest.mark.parametrize("form", TRITON_FORMS)
@pytest.mark.parametrize("scale", [1.0, 2.0, 8.0])
def test_lists_tell_of_ordinary_rows(form: str, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is left to the slow search, from flat to so peaked that the sample has nothing behind the boundary."""
    from mstar_kernels.sampling_draw_triton import KEPT, NOT_FOUND

    left = []

    def count(cuts: Tensor) -> None:
        left.extend((cuts[:, KEPT.value] == NOT_FOUND.value).nonzero().flatten().tolist())

    watch(monkeypatch, "row_filter_kernel", count, "cuts")
    filters = (
        {"top_p": 0.95}, {"top_p": 0.95, "temperature": 0.5}, {"top_p": 0.5, "temperature": 1.3}, {"min_p": 0.001},
        {"top_p": 0.99, "temperature": 0.3}, {"top_k": 50, "top_p": 0.9, "min_p": 0.05}, {"top_k": 1000},
    )  # fmt: skip
    compare(form, normal((7, 30000), BF16, scale), **rows_of(filters, 7, (3, 29999)))
    assert left == []


@pytest.mark.parametrize("form", TRITON_FORMS)
def test_ties_go_to_the_lowest_id(form: str) -> None:
    tied = torch.randint(-2, 3, (3, 1500), generator=torch.Generator().manual_seed(5)).float()
    tied[2] = 0.0
    tied[1] = torch.where(tied[1] == 0, -0.0, tied[1])
    ties = ({"temperature": 0.0}, {"top_k": 50}, {"top_p": 0.1}, {"top_p": 0.9, "top_k": 700}, {"min_p": 0.05})
    for first in range(3):
        arguments = rows_of(ties[first:] + ties[:first], 3, (2, 900))
        compare(form, tied.to(BF16) if first else tied, **arguments)


@pytest.mark.parametrize("form", TRITON_FORMS)
def test_hostile_magnitudes(form: str) -> None:
    largest = torch.finfo(FP32).max
    logits = normal((6, 520), scale=1.0)
    logits[0, ::3] = -math.inf
    logits[1] = -math.inf
    logits[1, 519] = -largest
    logits[2] *= 1e30
    logits[3, 5], logits[3, 6] = largest, -largest
    logits[4] += 1e4
    logits[5] *= 1e-30
    compare(form, logits, **rows(6, 6))
    compare(form, logits, **rows(6, 6, temperature=1e-6))
    compare(form, logits, **rows(6, 6, top_p=0.9, temperature=0.7))
    compare(form, logits, **rows_of(({"top_k": 3}, {"min_p": 0.1}, {"temperature": 0.0}), 3))


@pytest.mark.parametrize("form", TRITON_FORMS)
def test_lowest_temperatures_are_exact(form: str) -> None:
    logits = torch.tensor([[1.0, 1.0 + 1e-6, 0.0, 1.0 + 1e-6], [3e-45, 1e-45, -1e30, 0.0]])
    for temperature in (1e-20, 1e-38, 1e-44):
        compare(form, logits, **rows(8, 2, temperature=temperature))


@pytest.mark.parametrize("form", TRITON_FORMS)
def test_banned_ids(form: str) -> None:
    logits = normal((2, 600))
    logits[0, 17], logits[0, 550], logits[1, 550] = 50.0, math.nan, math.inf
    before = logits.clone()
    got = compare(form, logits, **rows_of((*NO_FILTERS[:3], {"top_p": 0.3}, {"top_k": 5}), 2, (17, 550)))
    assert not torch.isin(got.tokens, torch.tensor([17, 550])).any()
    assert torch.equal(logits.nan_to_num(), before.nan_to_num())
    only = run(form, logits, **rows(2, 2, tuple(i for i in range(600) if i != 333)))
    assert only.tokens.tolist() == [333, 333] and (only.records.abs() < 1e-30).all()


@pytest.mark.parametrize("form", TRITON_FORMS)
def test_many_draws(form: str) -> None:
    """Draws that the second hash decides are rare; here are as many as the interpreter has time for."""
    compare(form, torch.zeros(1, 3), **rows(20, 1))
    compare(form, normal((1, 16)), **rows(20, 1, temperature=0.8))


# ---- unfit rows


@pytest.mark.parametrize("form", TRITON_FORMS)
@pytest.mark.parametrize(
    "value, token, message", [(math.nan, -1, "NaN or"), (math.inf, -1, "NaN or"), (-math.inf, -2, "no finite logit")]
)
def test_unfit_rows(form: str, value: float, token: int, message: str) -> None:
    """Named at once, or left for a later look; rows of logits that no row draws from may be anything."""
    logits = torch.zeros(3, 700)
    logits[2] = value if value == -math.inf else 0.0
    logits[2, 699] = value
    arguments = rows_of(({}, {"temperature": 0.0}, {"top_p": 0.5}), 3)
    with pytest.raises(ValueError, match=rf"row 2 \(logits row 2\).*{message}"):
        run(form, logits, **arguments)
    got = run(form, logits, **arguments, deferred=True)
    assert got.tokens[2] == token and (got.tokens[:2] >= 0).all()
    with pytest.raises(ValueError, match=rf"row 2 \(logits row 2\).*{message}"):
        refuse_unfit(got.tokens, arguments["logit_rows"])
    arguments["logit_rows"][2] = 1
    refuse_unfit(run(form, logits, **arguments, deferred=True).tokens, arguments["logit_rows"])


# ---- filters, by hypothesis

levels = st.sampled_from([-math.inf, -3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0, 5.0])


@pytest.mark.parametrize("form", TRITON_FORMS)
@settings(max_examples=6 if INTERPRETED else 100, deadline=None)
@given(
    logits=st.lists(levels | st.floats(-8, 8, width=32), min_size=1, max_size=90).filter(lambda x: max(x) > -math.inf),
    temperature=st.sampled_from([0.25, 0.7, 1.0, 3.0]),
    top_k=st.integers(0, 95),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_filters_keep_the_reference_set(
    form: str, logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    values = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    compare(form, torch.tensor([logits]), **rows(2, 1, **values))


# ---- what a draw depends on, and what a call may be told


@pytest.mark.parametrize("form", TRITON_FORMS)
def test_independent_of_the_batch_and_of_the_cut(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = normal((4, 1300))
    arguments = rows_of((*NO_FILTERS[:4], {"top_p": 0.9}), 4, (4,))
    whole = run(form, logits, **arguments)
    order = torch.tensor([3, 0, 4, 1])
    permuted = run(form, logits, **select(arguments, order))
    assert torch.equal(permuted.tokens, whole.tokens[order]) and torch.equal(permuted.records, whole.records[order])
    alone = run(form, logits, **select(arguments, torch.tensor([2])))
    assert torch.equal(alone.tokens, whole.tokens[2:3]) and torch.equal(alone.records, whole.records[2:3])
    use_settings(monkeypatch, chunk=512, part=512)
    cut_otherwise = run(form, logits, **arguments)
    assert torch.equal(cut_otherwise.tokens, whole.tokens)
    torch.testing.assert_close(cut_otherwise.records, whole.records, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("form", TRITON_FORMS)
def test_independent_of_the_order_in_lists(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = normal((2, 1300), BF16)
    filters = ({"top_p": 0.9}, {"top_k": 77}, {"min_p": 0.01}, {"top_k": 300, "top_p": 0.7, "temperature": 1.3})
    arguments = rows_of(filters, 2)
    wanted = run(form, logits, **arguments)
    turned = []

    def turn(lists: Tensor, listed: Tensor) -> None:
        for entries, number in zip(lists, listed.tolist(), strict=True):
            entries[:number] = entries[:number].flip(0)
            turned.append(number)

    watch(monkeypatch, "filter_kernel", turn, "lists", "listed")
    got = run(form, logits, **arguments)
    assert min(turned) > 100
    assert torch.equal(got.tokens, wanted.tokens) and torch.equal(got.records, wanted.records)


@pytest.mark.parametrize("form", TRITON_FORMS)
def test_unsigned_and_signed_addresses_agree(form: str) -> None:
    arguments = rows(3, 1, seed=-3)
    unsigned = {**arguments, "seed": arguments["seed"].view(torch.uint64)}
    got = run(form, normal((1, 50)), **unsigned)
    assert torch.equal(got.tokens, compare(form, normal((1, 50)), **arguments).tokens)


@pytest.mark.parametrize("form", TRITON_FORMS)
def test_a_caller_may_answer_for_the_arguments(form: str) -> None:
    device = "cuda" if form == "cuda" else "cpu"
    logits = normal((2, 300)).to(device)
    arguments = {name: tensor.to(device) for name, tensor in rows_of(({}, {"temperature": 0.5}), 2).items()}
    out = Samples(torch.zeros(2, dtype=torch.int32, device=device), torch.zeros(2, 4, device=device))
    promise = {"checked": True, "filtered": False, "out": out, "deferred": True, "backend": "triton"}
    assert sample_tokens(logits, **arguments, **promise) is out
    wanted = sample_tokens(logits, **arguments, backend="reference")
    assert torch.equal(out.tokens, wanted.tokens)
    torch.testing.assert_close(out.records, wanted.records, rtol=1e-5, atol=2e-6)
    for fault in (out.tokens.long(), out.tokens[:1]):
        with pytest.raises(ValueError, match=r"sample_tokens: out\.tokens.*allowed"):
            sample_tokens(logits, **arguments, out=Samples(fault, out.records), backend="triton")


@pytest.mark.parametrize("form", TRITON_FORMS)
def test_no_rows(form: str) -> None:
    got = run(form, torch.zeros(4, 10), **rows(0, 1))
    assert got.tokens.shape == (0,) and got.records.shape == (0, 4)


@pytest.mark.parametrize("form", TRITON_FORMS)
def test_exact_noise_at_both_ends(form: str) -> None:
    """v of 2^-65 and of nearly 1 are as the reference has them."""

    @triton.jit
    def noise_kernel(h, r, out, COUNT: tl.constexpr):
        at = tl.arange(0, COUNT)
        tl.store(out + at, exact_noise(tl.load(h + at).to(tl.uint32), tl.load(r + at).to(tl.uint32)))

    device = "cuda" if form == "cuda" else "cpu"
    ends = torch.tensor([0, 1, 77, 2**16, 2**31, 2**32 - 2**12, 2**32 - 2, 2**32 - 1])
    h, r = ends.repeat_interleave(8).to(device), ends.repeat(8).to(device)
    out = torch.empty(64, dtype=torch.float64, device=device)
    noise_kernel[(1,)](h, r, out, COUNT=64)
    v = (h.double() + (r.double() + 0.5) * 2.0**-32) * 2.0**-32
    torch.testing.assert_close(out, -torch.log(-torch.log1p(-v)), rtol=1e-14, atol=1e-14)


def test_hashes_of_known_keys() -> None:
    """The kernels' constants are the reference's: the second key of k = k1 ^ (k1 >> 13) too."""
    assert 0xB5297A4D ^ (0xB5297A4D >> 13) == 0xB52CD306
    k1 = 0x12345678
    x = torch.tensor([0x9ABCDEF0])
    written_out = x ^ k1
    assert (x ^ (x >> 13) ^ (k1 ^ (k1 >> 13))) == (written_out ^ (written_out >> 13))
    assert reference.token_hash(torch.tensor([0]), 0, 0).tolist() == [0]


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no CUDA device")
def test_captured_in_a_cuda_graph() -> None:
    """Replayed on other logits and other filters, an unfit row among them."""
    logits = normal((8, 32000), BF16).cuda()
    arguments = {name: tensor.cuda() for name, tensor in rows_of(FILTERS[:8], 8).items()}
    out = Samples(torch.zeros(8, dtype=torch.int32, device="cuda"), torch.zeros(8, 4, device="cuda"))
    promise = {"checked": True, "out": out, "deferred": True, "backend": "triton"}
    sample_tokens(logits, **arguments, **promise)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sample_tokens(logits, **arguments, **promise)
    for seed in (1, 2):
        logits.copy_(normal((8, 32000), BF16, seed=seed))
        for name, tensor in rows_of(FILTERS[6:], 8).items():
            arguments[name].copy_(tensor)
        graph.replay()
        wanted = sample_tokens(logits, **arguments, backend="reference")
        assert torch.equal(out.tokens, wanted.tokens)
        torch.testing.assert_close(out.records, wanted.records, rtol=1e-5, atol=2e-6)
    logits[3] = math.nan
    graph.replay()
    with pytest.raises(ValueError, match="row 3"):
        refuse_unfit(out.tokens, arguments["logit_rows"])


# ---- without a GPU


@pytest.mark.skipif(INTERPRETED, reason="already in the interpreter")
def test_triton_in_its_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900, cwd=Path(__file__).parent
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
