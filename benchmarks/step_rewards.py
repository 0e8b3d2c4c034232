"""`step_rewards` against two ways to write it in torch: the whole output head, and the label rows only.

Both peers gather the scored hidden states, multiply, and take a softmax over the two label columns and the least score
of each response (`torch.segment_reduce`); they find no weakest step. One multiplies with all of a vocabulary of 32,000
rows, as a model's forward pass does; the other with the two label rows, gathered beforehand. One token in eight is
scored, eight steps a response.

The floor is one read of the scored rows at the bandwidth of a copy. Ours counts all of its checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness import Row, Side, compare, copy_bytes_per_second, main
from mstar_kernels.step_rewards import step_rewards

VOCABULARY, LABEL_IDS = 32_000, (9_642, 12)
TOKENS_PER_STEP, STEPS_PER_RESPONSE = 8, 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALE = 16 if DEVICE == "cuda" else 1


@dataclass(frozen=True, slots=True)
class Shape:
    """`steps` scored rows of `dim` elements; the peer multiplies with the whole head, or not."""

    steps: int
    dim: int
    dtype: torch.dtype
    whole_head: bool = False

    @property
    def name(self) -> str:
        return f"{self.steps} steps, D={self.dim}, {str(self.dtype).removeprefix('torch.')}"

    @property
    def read_bytes(self) -> int:
        return self.steps * self.dim * self.dtype.itemsize


SHAPES = (
    Shape(64, 3584, torch.float32, whole_head=True),
    Shape(64, 3584, torch.bfloat16, whole_head=True),
    Shape(64 * SCALE, 3584, torch.bfloat16),
    Shape(2048 * SCALE, 3584, torch.float32),
    Shape(2048 * SCALE, 3584, torch.bfloat16),
    Shape(2048 * SCALE, 896, torch.bfloat16),
)


def build(shape: Shape, device: str | torch.device = DEVICE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, rows of the peer's head, step_positions, response_steps."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, shape.dim, generator=generator, device=device).to(shape.dtype)

    hidden = normal(shape.steps * TOKENS_PER_STEP)
    offset = torch.randint(0, TOKENS_PER_STEP, (shape.steps,), generator=generator, device=device)
    positions = torch.arange(shape.steps, device=device) * TOKENS_PER_STEP + offset
    bounds = torch.arange(0, shape.steps + 1, STEPS_PER_RESPONSE, dtype=torch.int32, device=device)
    head = normal(VOCABULARY if shape.whole_head else 2) * shape.dim**-0.5
    return hidden, head, positions.int(), bounds


def in_torch(
    hidden: Tensor, head: Tensor, columns: tuple[int, int], positions: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores [S] and the least of each response [N]."""
    logits = hidden[positions] @ head.T
    scores = logits[:, columns].float().softmax(1)[:, 0]
    return scores, torch.segment_reduce(scores, "min", lengths=lengths)


def rows(quick: bool) -> Iterator[Row]:
    """One row a shape."""
    bandwidth = copy_bytes_per_second()
    print(f"copy {bandwidth / 1e9:.1f} GB/s read")
    for shape in SHAPES:
        hidden, head, positions, bounds = build(shape)
        columns = LABEL_IDS if shape.whole_head else (0, 1)
        label_rows = head[list(columns)].contiguous()
        positions_64, lengths = positions.long(), bounds.diff().long()

        def ours(arguments=(hidden, label_rows, positions, bounds)) -> Tensor:
            return step_rewards(*arguments).reduced

        def peer(arguments=(hidden, head, columns, positions_64, lengths)) -> Tensor:
            return in_torch(*arguments)[1]

        torch.testing.assert_close(ours(), peer(), rtol=2e-2, atol=2e-2)
        row = compare(
            shape.name,
            Side("step_rewards", ours),
            Side(f"torch gather, {VOCABULARY} logits" if shape.whole_head else "torch gather, label rows", peer),
            unit="us",
            per_second=lambda seconds: seconds * 1e6,
            repeats=(3 if quick else 11) if shape.whole_head else (5 if quick else 41),
            floor_value=shape.read_bytes / bandwidth * 1e6,
        )
        print(f"  {shape.read_bytes / 1e6:.1f} MB: {shape.read_bytes / row.ours_value / 1e3:.1f} GB/s")
        yield row


if __name__ == "__main__":
    main("step_rewards", rows)
