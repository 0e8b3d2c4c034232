"""What lies between the matrix products of a decode step, one kernel each, against transformers' code of it.

At a step of 128 rows of Qwen2.5-VL-7B. The floors are far below the launch of any kernel, so the goals are beside the
peers: as many kernels as the peer takes in place of one, less what the one takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm, apply_rotary_pos_emb

from benchmarks.gpu.bench import Bench, Peer
from benchmarks.gpu.sizes import QWEN_7B, TINY_MODEL
from benchmarks.gpu.suite_row import Skipped, SuiteRow
from benchmarks.gpu.timing import Rotation, input_sets
from mstar_kernels.rms_norm import rms_norm
from mstar_kernels.rotary import rotary
from mstar_kernels.silu_mul import silu_mul

ROWS, TINY_ROWS = 128, 4
PEER = "transformers"
EPS = 1e-6


@torch.no_grad()
def rows(bench: Bench) -> Iterator[SuiteRow | Skipped]:
    """RMSNorm, rotary embedding, silu(gate) * up."""
    sizes, count = bench.sized((QWEN_7B, ROWS), (TINY_MODEL, TINY_ROWS))
    norm = Qwen2RMSNorm(sizes.hidden, eps=EPS).to(bench.device, torch.bfloat16)
    dim = sizes.head_dim
    heads, kv_heads = (count, 1, sizes.heads, dim), (count, 1, sizes.kv_heads, dim)

    def rotated(how: Callable[..., object]) -> Callable[..., object]:
        return lambda q, k, cos, sin: how(q.transpose(1, 2), k.transpose(1, 2), cos, sin)

    for what, shapes, written, ours, theirs, least_ratio in (
        (f"RMSNorm, {count} x {sizes.hidden}", [(count, 1, sizes.hidden)], 1,
         lambda x: rms_norm(x, norm.weight, EPS), norm, 3.0),
        (f"rotary, {count} x ({sizes.heads} + {sizes.kv_heads}) x {dim}",
         [heads, kv_heads, (count, 1, dim), (count, 1, dim)], 2, rotated(rotary), rotated(apply_rotary_pos_emb), 3.0),
        (f"silu * up, {count} x {sizes.intermediate}", 2 * [(count, 1, sizes.intermediate)], 1,
         silu_mul, lambda gate, up: torch.nn.functional.silu(gate) * up, 1.3),
    ):  # fmt: skip
        least_bytes = 2 * sum(map(_elements, [*shapes, *shapes[:written]]))
        sets = [_tensors(shapes, bench.device) for _ in range(input_sets(least_bytes, bench.device))]
        torch.testing.assert_close(ours(*sets[0]), theirs(*sets[0]), rtol=2e-2, atol=2e-2)
        peer = Peer(PEER, lambda theirs=theirs, sets=sets: _rotation(PEER, theirs, sets), least_ratio)
        yield from bench.compare(what, _rotation("fused", ours, sets), [peer], least_bytes=least_bytes)


def _rotation(name: str, call: Callable[..., object], sets: list[list[Tensor]]) -> Rotation:
    return Rotation(name, tuple(lambda one=one: call(*one) for one in sets))


def _tensors(shapes: list[tuple[int, ...]], device: torch.device) -> list[Tensor]:
    return [torch.randn(shape, device=device).to(torch.bfloat16) for shape in shapes]


def _elements(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
