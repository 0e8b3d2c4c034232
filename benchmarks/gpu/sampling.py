"""`sample_tokens` on logits of a decode step, against torch and FlashInfer.

Ours draws a token and gives three log-probabilities and the entropy. The peer in torch gives the token and its
log-probability at the row's temperature; FlashInfer's takes float32 logits and gives the token only. Every row has its
own temperature. Floors: one read of the logits, two where a threshold must be known before the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, Peer
from benchmarks.gpu.floors import logits_bytes
from benchmarks.gpu.suite_row import Skipped, SuiteRow
from benchmarks.gpu.timing import Rotation, input_sets
from benchmarks.sampling import arguments, top_k_multinomial, top_p_multinomial
from mstar_kernels.sampling import RAW, Samples, sample_tokens
from mstar_kernels.temperature_logprobs import temperature_logprobs

SIZES, TINY = (256, 151_936, (64, 16)), (4, 1031, (2,))
"""Rows, vocabulary, and smaller numbers of rows."""
TOP_P, TOP_K = 0.95, 50
TEMPERATURES = 14
UNWAITED = {"checked": True, "deferred": True}
"""Nothing is read back, as in the engine: it answers for the rows' arguments and sees unfit rows with their tokens."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to sample, its floor in reads of the logits, and the same in torch and in FlashInfer."""

    name: str
    top_k: int
    top_p: float
    reads: int
    torch_name: str
    in_torch: Callable[[Tensor, Tensor], object]
    in_flashinfer: Callable[[Tensor, Tensor], object] | None = None
    greedy: bool = False
    most_floors: float | None = None
    least_ratio: float | None = None


def draw_and_gather(logits: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """A token a row and its log-probability, both [B, 1]; logits [B, V] float32, temperature [B, 1]."""
    logprobs = (logits / temperature).log_softmax(-1)
    tokens = torch.multinomial(logprobs.exp(), 1)
    return tokens, logprobs.gather(1, tokens)


def _flashinfer_draw(logits: Tensor, temperature: Tensor) -> object:
    from flashinfer.sampling import sampling_from_logits

    return sampling_from_logits(logits / temperature)


def _flashinfer_top_p(logits: Tensor, temperature: Tensor) -> object:
    from flashinfer.sampling import top_p_sampling_from_probs

    return top_p_sampling_from_probs((logits / temperature).softmax(-1), TOP_P)


def _flashinfer_top_k(logits: Tensor, temperature: Tensor) -> object:
    from flashinfer.sampling import top_k_sampling_from_probs

    return top_k_sampling_from_probs((logits / temperature).softmax(-1), TOP_K)


DRAW = Setting(
    "temperature", 0, 1.0, 1, "torch log_softmax, multinomial, gather", draw_and_gather, _flashinfer_draw,
    most_floors=2.0, least_ratio=5.0,
)  # fmt: skip
FILTERED = (
    Setting(
        f"top-p {TOP_P}", 0, TOP_P, 2, "torch sort, softmax, multinomial",
        lambda x, t: top_p_multinomial(x, t, TOP_P), _flashinfer_top_p, most_floors=2.5,
    ),
    Setting(
        f"top-k {TOP_K}", TOP_K, 1.0, 2, "torch topk, softmax, multinomial",
        lambda x, t: top_k_multinomial(x, t, TOP_K), _flashinfer_top_k,
    ),
    Setting("greedy", 0, 1.0, 1, "torch argmax", lambda x, t: x.argmax(-1), greedy=True),
)  # fmt: skip


def rows(bench: Bench) -> Iterator[SuiteRow | Skipped]:
    """Every setting at the full batch, drawing by temperature alone at small ones, then many temperatures at once."""
    count, vocabulary, fewer = bench.sized(SIZES, TINY)
    for setting in (DRAW, *FILTERED):
        yield from _setting(bench, setting, count, vocabulary)
    for few in fewer:
        yield from _setting(bench, DRAW, few, vocabulary, is_goal=False)
    yield from _many_temperatures(bench, count, vocabulary)


def inputs(bench: Bench, count: int, vocabulary: int) -> tuple[list[Tensor], Tensor]:
    """Sets of logits, bfloat16 [count, vocabulary], and a temperature a row."""
    generator = torch.Generator(bench.device).manual_seed(0)
    sets = [
        (2 * torch.randn(count, vocabulary, generator=generator, device=bench.device)).bfloat16()
        for _ in range(input_sets(logits_bytes(count, vocabulary), bench.device))
    ]
    return sets, torch.linspace(0.5, 1.2, count, device=bench.device)


def _rotation(name: str, sets: list[Tensor], call: Callable[[Tensor], object]) -> Rotation:
    return Rotation(name, tuple(lambda x=x: call(x) for x in sets))


def _setting(
    bench: Bench, setting: Setting, count: int, vocabulary: int, is_goal: bool = True
) -> Iterator[SuiteRow | Skipped]:
    sets, degrees = inputs(bench, count, vocabulary)
    given = arguments(0.0 if setting.greedy else degrees, setting.top_k, setting.top_p, count, bench.device)
    _check(sets[0], given)

    def peer(name: str, call: Callable[[Tensor, Tensor], object]) -> Rotation:
        return _rotation(name, sets, lambda x: call(x.float(), degrees[:, None]))

    drawn = Samples(
        torch.empty(count, dtype=torch.int32, device=bench.device), torch.empty(count, 4, device=bench.device)
    )
    filtered = setting.top_k > 0 or setting.top_p < 1

    def ours(x: Tensor) -> Samples:
        return sample_tokens(x, **given, **UNWAITED, filtered=filtered, out=drawn)

    ratio = setting.least_ratio if is_goal else None
    peers = [Peer(setting.torch_name, lambda: peer(setting.torch_name, setting.in_torch), ratio)]
    if setting.in_flashinfer is not None:
        peers.append(Peer("FlashInfer", lambda: peer("FlashInfer", setting.in_flashinfer), 1.0, "flashinfer"))
    yield from bench.compare(
        f"sample_tokens {setting.name}, {count} x {vocabulary}",
        _rotation("sample_tokens", sets, ours),
        peers,
        least_bytes=logits_bytes(count, vocabulary, reads=setting.reads),
        most_floors=setting.most_floors if is_goal else None,
    )


def _many_temperatures(bench: Bench, count: int, vocabulary: int) -> Iterator[SuiteRow | Skipped]:
    """The log-probability of one token a row under many temperatures, in one read of the logits."""
    sets, _ = inputs(bench, count, vocabulary)
    generator = torch.Generator(bench.device).manual_seed(0)
    tokens = torch.randint(vocabulary, (count,), generator=generator, device=bench.device, dtype=torch.int32)
    degrees = torch.linspace(0.3, 1.6, TEMPERATURES, device=bench.device).expand(count, -1).contiguous()
    rows = torch.arange(count, device=bench.device, dtype=torch.int32)
    nothing = rows[:0]

    def ours(x: Tensor) -> Tensor:
        return temperature_logprobs(x, tokens, rows, degrees, nothing, **UNWAITED)

    def peer(x: Tensor) -> Tensor:
        x, at = x.float(), tokens.long()[:, None]
        return torch.cat([(x / degrees[:, k, None]).log_softmax(-1).gather(1, at) for k in range(TEMPERATURES)], 1)

    torch.testing.assert_close(ours(sets[0]), peer(sets[0]), rtol=1e-3, atol=1e-3)
    name = "torch log_softmax, gather, each"
    yield from bench.compare(
        f"temperature_logprobs, {TEMPERATURES} temperatures, {count} x {vocabulary}",
        _rotation("temperature_logprobs", sets, ours),
        [Peer(name, lambda: _rotation(name, sets, peer))],
        least_bytes=logits_bytes(count, vocabulary),
    )


def _check(logits: Tensor, given: dict[str, Tensor]) -> None:
    """The log-probabilities are those of the tokens drawn."""
    drawn = sample_tokens(logits, **given)
    expected = logits.float().log_softmax(-1).gather(1, drawn.tokens.long()[:, None])
    torch.testing.assert_close(drawn.records[:, RAW, None], expected, rtol=1e-3, atol=1e-3)
