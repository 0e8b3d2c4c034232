"""`sample_tokens`: the C++ form against the reference, invariances, and the statistics of the draws.

Most tests run under whatever instruction set is active; `test_every_instruction_set` reruns them under the others.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from draws import FILTERS, assert_same, rows, select
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mstar_kernels import reference
from mstar_kernels.dispatch import extension, resolve
from mstar_kernels.sampling import ENTROPY, FILTERED, RAW, SCALED, Samples, sample_tokens

torch.set_num_threads(1)
needs_extension = pytest.mark.skipif(extension() is None, reason="the C++ extension is not built")
pytestmark = needs_extension

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def compare(logits: torch.Tensor, **arguments: torch.Tensor) -> Samples:
    got = sample_tokens(logits, **arguments, backend="cpu")
    assert_same(got, sample_tokens(logits, **arguments, backend="reference"))
    return got


# ---- against the reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [1, 2, 17, 511, 512, 513, 3001])
def test_matches_reference(dtype: torch.dtype, vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    for scale in (0.5, 4.0):
        logits = (torch.randn(3, vocabulary, generator=generator) * scale).to(dtype)
        for values in FILTERS:
            compare(logits, **rows(7, 3, **values))


@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_reference_on_a_real_vocabulary(dtype: torch.dtype) -> None:
    logits = (torch.randn(2, 50257, generator=torch.Generator().manual_seed(1)) * 2).to(dtype)
    for values in FILTERS:
        compare(logits, **rows(2, 2, (0, 1, 511, 512, 50256), **values))


def test_rows_of_one_batch_may_differ_in_everything() -> None:
    generator = torch.Generator().manual_seed(3)
    arguments = rows(64, 9)
    arguments["logit_rows"] = torch.randint(0, 9, (64,), generator=generator).sort().values.int()
    arguments["temperature"] = torch.tensor([0.0, 0.7, 0.7, 1.0, 1.6]).repeat(13)[:64].contiguous()
    arguments["top_k"] = torch.randint(0, 40, (64,), generator=generator).int()
    arguments["top_p"] = torch.rand(64, generator=generator)
    arguments["min_p"] = torch.rand(64, generator=generator) * 0.2
    compare(torch.randn(9, 700, generator=generator) * 2, **arguments)


@pytest.mark.parametrize("values", FILTERS, ids=str)
def test_ties_go_to_the_lowest_id(values: dict[str, float]) -> None:
    tied = torch.randint(-2, 3, (4, 1500), generator=torch.Generator().manual_seed(5)).float()
    tied[3] = 0.0
    tied[2] = torch.where(tied[2] == 0, -0.0, tied[2])
    compare(tied, **rows(12, 4, (2, 900), **values))
    argmax = sample_tokens(tied, **rows(4, 4, temperature=0.0)).tokens
    assert argmax.tolist() == [int((row == row.max()).nonzero()[0]) for row in tied]


@pytest.mark.parametrize("values", FILTERS, ids=str)
def test_hostile_magnitudes(values: dict[str, float]) -> None:
    largest = torch.finfo(torch.float32).max
    logits = torch.randn(6, 1030, generator=torch.Generator().manual_seed(6))
    logits[0, ::3] = -math.inf
    logits[1] = -math.inf
    logits[1, 1029] = -largest
    logits[2] *= 1e30
    logits[3, 5], logits[3, 6] = largest, -largest
    logits[4] = 1e4 + logits[4]
    logits[5] *= 1e-30
    compare(logits, **rows(12, 6, **values))


def test_lowest_temperatures_are_exact() -> None:
    logits = torch.tensor([[1.0, 1.0 + 1e-6, 0.0, 1.0 + 1e-6]])
    for temperature in (1e-6, 1e-20, 1e-38):
        got = compare(logits, **rows(20, 1, temperature=temperature))
        assert got.records[:, SCALED].isfinite().all()


def test_banned_ids() -> None:
    logits = torch.randn(2, 600, generator=torch.Generator().manual_seed(8))
    logits[0, 17], logits[0, 550], logits[1, 550] = 50.0, math.nan, math.inf
    before = logits.clone()
    for values in FILTERS:
        got = compare(logits, **rows(20, 2, (17, 550), **values))
        assert not torch.isin(got.tokens, torch.tensor([17, 550])).any()
    assert torch.equal(logits.nan_to_num(), before.nan_to_num())
    only = sample_tokens(logits, **rows(2, 2, tuple(i for i in range(600) if i != 333)))
    assert only.tokens.tolist() == [333, 333]
    assert (only.records.abs() < 1e-30).all()


# ---- errors


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("value", "message"), [(math.nan, "NaN or"), (math.inf, "NaN or"), (-math.inf, "no finite logit")]
)
def test_unfit_logits_name_the_row(backend: str, value: float, message: str) -> None:
    logits = torch.zeros(5, 700)
    logits[3] = value if value == -math.inf else 0.0
    logits[3, 699] = value
    with pytest.raises(ValueError, match=rf"row 3 \(logits row 3\).*{message}"):
        sample_tokens(logits, **rows(10, 5), backend=backend)
    unused = rows(10, 5)
    unused["logit_rows"][:] = 1
    sample_tokens(logits, **unused, backend=backend)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_rows", torch.tensor([0, 4], dtype=torch.int32)),
        ("logit_rows", torch.tensor([0, -1], dtype=torch.int32)),
        ("logit_rows", torch.tensor([0, 1])),
        ("temperature", torch.tensor([1.0, -0.5])),
        ("temperature", torch.tensor([1.0, math.inf])),
        ("temperature", torch.tensor([1.0, math.nan])),
        ("temperature", torch.tensor([1.0])),
        ("top_k", torch.tensor([1, -1], dtype=torch.int32)),
        ("top_p", torch.tensor([1.0, 1.1])),
        ("min_p", torch.tensor([1.0, -0.1])),
        ("seed", torch.tensor([1.0, 2.0])),
        ("sample", torch.tensor([[1, 2]], dtype=torch.int32)),
        ("position", torch.arange(4, dtype=torch.int32)[::2]),
        ("banned_ids", torch.tensor([2, 1], dtype=torch.int32)),
        ("banned_ids", torch.tensor([1, 1], dtype=torch.int32)),
        ("banned_ids", torch.tensor([10], dtype=torch.int32)),
    ],
)
def test_bad_arguments_are_named(name: str, value: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=rf"sample_tokens: {name}.*allowed"):
        sample_tokens(torch.zeros(4, 10), **{**rows(2, 4), name: value})


@pytest.mark.parametrize("logits", [torch.zeros(4), torch.zeros(4, 0), torch.zeros(10, 4).T, torch.zeros(4, 10).long()])
def test_bad_logits_are_named(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"sample_tokens: logits.*allowed"):
        sample_tokens(logits, **rows(2, 4))


def test_no_rows() -> None:
    got = sample_tokens(torch.zeros(4, 10), **rows(0, 1))
    assert got.tokens.shape == (0,) and got.records.shape == (0, 4)


def test_backends_resolve_or_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    every = ("triton", "cpu", "reference")
    assert resolve("auto", "cpu", every) == "cpu"
    assert resolve("auto", "cuda", every) == "triton"
    assert resolve("auto", "cuda", ("cpu", "reference")) == "reference"
    assert resolve("reference", "cuda", every) == "reference"
    for backend, device, available in (
        ("cpu", "cuda", every),
        ("triton", "cpu", every),
        ("triton", "cuda", ("cpu",)),
        ("gpu", "cpu", every),
    ):
        with pytest.raises(ValueError, match="backend="):
            resolve(backend, device, available)
    with pytest.raises(ValueError, match="triton"):
        sample_tokens(torch.zeros(1, 4), **rows(1, 1), backend="triton")


# ---- filters, by hypothesis

levels = st.sampled_from([-math.inf, -3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0, 5.0])


@settings(max_examples=150, deadline=None)
@given(
    logits=st.lists(levels | st.floats(-8, 8, width=32), min_size=1, max_size=90).filter(lambda x: max(x) > -math.inf),
    temperature=st.sampled_from([0.25, 0.7, 1.0, 3.0]),
    top_k=st.integers(0, 95),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_filters_keep_the_reference_set(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    values = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    compare(torch.tensor([logits]), **rows(3, 1, **values))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 0.01, 1.0, 6.0]),
    top_k=st.sampled_from([0, 3, 100, 2000]),
    top_p=st.floats(0, 1, width=32),
    rounded=st.booleans(),
)
def test_filters_on_large_vocabularies(seed: int, scale: float, top_k: int, top_p: float, rounded: bool) -> None:
    logits = torch.randn(1, 2500, generator=torch.Generator().manual_seed(seed)) * scale
    logits = logits.round() if rounded else logits
    compare(logits, **rows(1, 1, top_k=top_k, top_p=top_p))


def test_kept_tokens_of_a_known_distribution() -> None:
    logits = torch.tensor([0.1, 0.4, 0.3, 0.1, 0.1]).log().double()

    def kept(**values: float) -> list[int]:
        arguments = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **values}
        return reference.kept_tokens(logits, **arguments).nonzero().flatten().tolist()

    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=3) == [0, 1, 2]
    assert kept(top_p=0.69) == [1, 2]
    assert kept(top_p=0.71) == [0, 1, 2]
    assert kept(top_k=2, top_p=0.56) == [1]  # 0.4 of the 0.7 that top-k leaves is 0.571
    assert kept(min_p=0.5) == [1, 2]
    assert kept(top_p=0.0) == [1]


# ---- a draw depends on its address alone


@pytest.mark.parametrize("values", FILTERS, ids=str)
def test_batch_independence(values: dict[str, float]) -> None:
    native = extension()
    logits = torch.randn(11, 1300, generator=torch.Generator().manual_seed(9)) * 2
    arguments = rows(33, 11, (4,), **values)
    whole = sample_tokens(logits, **arguments)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1))
    permuted = sample_tokens(logits, **select(arguments, order))
    assert torch.equal(permuted.tokens, whole.tokens[order]) and torch.equal(permuted.records, whole.records[order])
    parts = [sample_tokens(logits, **select(arguments, part)) for part in torch.arange(33).split([1, 10, 22])]
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert torch.equal(torch.cat([part.records for part in parts]), whole.records)
    grouped = select(arguments, arguments["logit_rows"].argsort(stable=True))
    expected = whole.records[arguments["logit_rows"].argsort(stable=True)]
    try:
        for threads in (1, 2, 5):
            native.set_num_threads(threads)
            assert torch.equal(sample_tokens(logits, **arguments).records, whole.records)
            assert torch.equal(sample_tokens(logits, **grouped).records, expected)
    finally:
        native.set_num_threads(1)


def test_unsigned_and_signed_addresses_agree() -> None:
    logits = torch.randn(1, 50)
    arguments = rows(8, 1, seed=-3)
    unsigned = {**arguments, "seed": arguments["seed"].view(torch.uint64)}
    assert torch.equal(sample_tokens(logits, **arguments).tokens, sample_tokens(logits, **unsigned).tokens)


def test_known_hash_values() -> None:
    """The noise is part of the format of a run: changing it changes what every seed means."""
    assert reference.splitmix64(0) == 0xE220A8397B1DCDAF  # published first output of the generator seeded with 0
    token = torch.tensor([5])
    x = (5 * 0x9E3779B1 + 11) & 0xFFFFFFFF
    x ^= x >> 16
    x = (x * 0x85EBCA6B) & 0xFFFFFFFF ^ 13
    x ^= x >> 13
    x = (x * 0xC2B2AE35) & 0xFFFFFFFF
    assert int(reference.token_hash(token, 11, 13)) == x ^ x >> 16


# ---- statistics


def draws(logits: torch.Tensor, count: int, **values: float) -> torch.Tensor:
    """Tokens [count] of one logits row: samples 0..999 of positions 0.., all of one seed and problem."""
    index = torch.arange(count)
    arguments = rows(count, 1, **values)
    arguments.update(problem=torch.zeros(count, dtype=torch.int64), sample=(index % 1000).int(),
                     position=(index // 1000).int())  # fmt: skip
    return sample_tokens(logits, **arguments).tokens.long()


LOGITS = torch.tensor([[2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, 1.5, 0.25, -4.0, 1.0]])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.6])
def test_draws_follow_the_softmax(temperature: float) -> None:
    """Chi-squared over 1e6 draws. Odds of a false alarm for a new seed: 1e-6 a case (the seed is fixed, so none)."""
    counts = draws(LOGITS, 1_000_000, temperature=temperature).bincount(minlength=LOGITS.shape[1]).double()
    expected = (LOGITS[0].double() / temperature).softmax(0) * counts.sum()
    common = expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    if wanted[-1] < 5:
        observed, wanted = observed[:-1], wanted[:-1] * observed[:-1].sum() / wanted[:-1].sum()
    assert stats.chisquare(observed.numpy(), wanted.numpy()).pvalue > 1e-6


def test_filtered_draws_follow_the_filtered_softmax() -> None:
    """Chi-squared over 2e5 draws under top-k 6 and top-p 0.9. Odds of a false alarm for a new seed: 1e-6."""
    counts = draws(LOGITS, 200_000, top_k=6, top_p=0.9).bincount(minlength=LOGITS.shape[1]).double()
    kept = reference.kept_tokens(LOGITS[0].double(), 1.0, 6, 0.9, 0.0)
    assert (counts[~kept] == 0).all()
    expected = LOGITS[0].double()[kept].softmax(0) * counts.sum()
    assert stats.chisquare(counts[kept].numpy(), expected.numpy()).pvalue > 1e-6


def test_neighbouring_draws_are_independent() -> None:
    """Chi-squared of pairs drawn at neighbouring positions, samples, problems and seeds over a uniform vocabulary of 8,
    2e5 pairs each. Odds of a false alarm for a new seed: 4e-6 in all."""
    count, uniform = 200_000, torch.zeros(1, 8)
    index = torch.arange(count)
    base = rows(count, 1)
    base.update(seed=2 * (index // 50_000), problem=2 * (index // 500 % 100), sample=2 * (index % 20).int(),
                position=2 * (index // 20 % 25).int())  # fmt: skip
    base = {name: tensor.contiguous() for name, tensor in base.items()}
    first = sample_tokens(uniform, **base).tokens.long()
    for name in ("seed", "problem", "sample", "position"):
        second = sample_tokens(uniform, **{**base, name: base[name] + 1}).tokens.long()
        pairs = (first * 8 + second).bincount(minlength=64)
        assert stats.chisquare(pairs.numpy()).pvalue > 1e-6, name


def test_small_hashes_are_uniform() -> None:
    """The hash's lower tail decides the draws of a large vocabulary. Over 400 rows of 2^15 tokens: counts of v below
    2^-8 in 64 equal cells, the fraction of rows whose least v is below log(2) / 2^15 (one half), and neighbouring
    tokens both small. Odds of a false alarm for a new seed: 4e-6 in all."""
    tokens = torch.arange(2**15)
    small = torch.zeros(64, dtype=torch.int64)
    together = expected_together = low_rows = 0
    for row in range(400):
        key = reference.row_key(1, 2, row % 20, row // 20)
        v = reference.token_hash(tokens, key & 0xFFFFFFFF, key >> 32).double() * 2.0**-32
        small += (v[v < 2.0**-8] * 2**14).long().bincount(minlength=64)
        below = v < 2.0**-5
        together += int((below[1:] & below[:-1]).sum())
        expected_together += (len(tokens) - 1) * 2.0**-10
        low_rows += int(v.min() < math.log(2) / 2**15)
    assert stats.chisquare(small.numpy()).pvalue > 1e-6
    assert abs(int(small.sum()) - 400 * 2**7) < 5 * math.sqrt(400 * 2**7)
    assert stats.binomtest(low_rows, 400, 0.5).pvalue > 1e-6
    assert abs(together - expected_together) < 6 * math.sqrt(expected_together)


def test_large_vocabulary_draws_are_uniform() -> None:
    """Uniform logits over 5,000 ids, 2e4 draws: chi-squared over 50 ranges of ids. Odds of a false alarm: 1e-6."""
    counts = (draws(torch.zeros(1, 5000), 20_000) // 100).bincount(minlength=50)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-6


def test_records_are_log_probabilities() -> None:
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(2))
    got = sample_tokens(logits, **rows(50, 1, temperature=0.7, top_k=5))
    raw = logits[0].log_softmax(0)
    token = got.tokens.long()
    torch.testing.assert_close(got.records[:, RAW], raw[token])
    torch.testing.assert_close(got.records[:, SCALED], (logits[0] / 0.7).log_softmax(0)[token])
    assert (got.records[:, FILTERED] >= got.records[:, SCALED]).all()
    torch.testing.assert_close(got.records[:, ENTROPY], -(raw.exp() * raw).sum().expand(50))


# ---- instruction sets


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    if "MSTAR_CPU" in os.environ:
        pytest.skip("already under a chosen instruction set")
    environment = {**os.environ, "MSTAR_CPU": isa}
    probe = [sys.executable, "-c", "from mstar_kernels import _C; _C.active_isa()"]
    if subprocess.run(probe, env=environment, capture_output=True, timeout=60).returncode != 0:
        pytest.skip(f"{isa} does not run here")
    if isa == extension().active_isa():
        pytest.skip("every other test runs under it")
    chosen = "matches or ties or hostile or lowest or banned or batch_independence"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__)), "-k", chosen]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
