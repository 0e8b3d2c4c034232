"""`step_rewards` on 4,096 responses of 8 steps, against torch with the label rows and with the whole output head.

The goal is held by the kernels' two launches. Beside them stands the whole call, which reads the indices back to the
host to check them before any work, and the scores to refuse what is not finite after it; and the call as the scorer
makes it, which knows the indices on the host and reads the scores anyway: it waits for nothing. The memory row is the
largest tensor that is made: ours knows no vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, Peer
from benchmarks.gpu.floors import hidden_bytes
from benchmarks.gpu.suite_row import Skipped, SuiteRow
from benchmarks.gpu.timing import Rotation, input_sets
from benchmarks.largest_tensor import largest_mib
from benchmarks.step_rewards import Shape, build, in_torch
from mstar_kernels.step_rewards import StepRewards, step_rewards

SIZES, TINY = (Shape(32_768, 3584, torch.bfloat16), 152_064), (Shape(16, 64, torch.bfloat16), 512)
"""The scored steps, and the vocabulary of the peer that multiplies with all of it."""
Arguments = tuple[Tensor, Tensor, Tensor, Tensor]


def rows(bench: Bench) -> Iterator[SuiteRow | Skipped]:
    """Launches and call against the floor and both peers, then memory."""
    shape, vocabulary = bench.sized(SIZES, TINY)
    floor_bytes = hidden_bytes(shape.steps, shape.dim, shape.dtype.itemsize)
    sets: list[Arguments] = [build(shape, bench.device) for _ in range(input_sets(floor_bytes, bench.device))]
    lengths = sets[0][3].diff().long()
    head = torch.randn(vocabulary, shape.dim, device=bench.device, dtype=shape.dtype) * shape.dim**-0.5
    head[:2] = sets[0][1]

    def peer(name: str, weight: Tensor) -> Rotation:
        inputs = [(hidden, positions.long()) for hidden, _, positions, _ in sets]
        calls = [lambda h=h, p=p: in_torch(h, weight, (0, 1), p, lengths) for h, p in inputs]
        return Rotation(name, tuple(calls))

    label_rows, whole = "torch gather, label rows", f"torch gather, {vocabulary} logits"
    peers = [Peer(label_rows, lambda: peer(label_rows, sets[0][1])), Peer(whole, lambda: peer(whole, head))]
    _, expected = in_torch(sets[0][0], sets[0][1], (0, 1), sets[0][2].long(), lengths)
    torch.testing.assert_close(step_rewards(*sets[0]).reduced, expected, rtol=2e-2, atol=2e-2)
    what = f"step_rewards, {shape.name}"
    if bench.device.type == "cuda":
        ours = Rotation("step_rewards, launches", tuple(launches(one) for one in sets))
        yield from bench.compare(what, ours, peers, least_bytes=floor_bytes, most_floors=2.0)
    ours = Rotation(
        "step_rewards with its checks", tuple(lambda one=one: step_rewards(*one) for one in sets), waits=True
    )
    yield from bench.compare(what, ours, peers[:1], least_bytes=floor_bytes)
    ours_scored = Rotation("step_rewards", tuple(lambda one=one: as_scored(*one) for one in sets))
    yield from bench.compare(f"{what}, as the scorer calls it", ours_scored, least_bytes=floor_bytes)
    ours_mib, peer_mib = (largest_mib(call) for call in (ours.calls[0], peer(whole, head).calls[0]))
    yield bench.values(f"{what}: largest tensor", "step_rewards", whole, ours_mib, peer_mib, "MiB")


def launches(arguments: Arguments) -> Callable[[], object]:
    """The kernels on outputs of their own, nothing checked."""
    from mstar_kernels import step_rewards_triton

    hidden, label_rows, positions, bounds = arguments
    outputs = [
        torch.empty(size, dtype=dtype, device=hidden.device)
        for size, dtype in (
            (len(positions), torch.float32),
            (len(bounds) - 1, torch.float32),
            (len(bounds) - 1, torch.int32),
        )
    ]
    return lambda: step_rewards_triton.launch(hidden, label_rows, None, positions, bounds, "softmax", "min", *outputs)


def as_scored(*arguments: Tensor) -> StepRewards:
    """The caller has checked the indices, and looks at the scores later."""
    return step_rewards(*arguments, checked=True, deferred=True)
