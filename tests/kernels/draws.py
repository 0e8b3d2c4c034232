"""Arguments for the sample_tokens tests, and the forms that they run beside C++ on the CPU.

Triton runs on a CUDA device where there is one, and in its interpreter in a process of its own: TRITON_INTERPRET counts
when Triton is imported.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from mstar_kernels.sampling import Samples, sample_tokens

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)
TRITON_FORMS = ["interpreted"] if INTERPRETED else [CUDA]

FILTERS = (
    {},
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"temperature": 1.6},
    {"temperature": 1e-6},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 600, "temperature": 1.3},
    {"top_p": 0.0},
    {"top_p": 0.1},
    {"top_p": 0.95, "temperature": 0.7},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.02, "temperature": 1.2},
)
NO_FILTERS = FILTERS[:5]
SHARE_ROUNDING = 2e-6
"""How far a sum of float32 terms may move top_p: within this of a share, either of two neighbouring cuts is right."""


def rows(count: int, num_logits: int, banned: tuple[int, ...] = (), **values: float) -> dict[str, Tensor]:
    """Arguments of `count` rows, cycling over the logits rows, each with an address of its own."""
    index = torch.arange(count)
    return {
        "logit_rows": (index % num_logits).int(),
        "temperature": torch.full((count,), values.get("temperature", 1.0)),
        "top_k": torch.full((count,), int(values.get("top_k", 0)), dtype=torch.int32),
        "top_p": torch.full((count,), values.get("top_p", 1.0)),
        "min_p": torch.full((count,), values.get("min_p", 0.0)),
        "seed": torch.full((count,), int(values.get("seed", 7))),
        "problem": index // 5 - 2,
        "sample": (index % 5).int(),
        "position": (3 * index).int(),
        "banned_ids": torch.tensor(banned, dtype=torch.int32),
    }


def rows_of(filters: tuple[dict[str, float], ...], num_logits: int, banned: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """Arguments of one row each with these values."""
    arguments = rows(len(filters), num_logits, banned)
    for row, values in enumerate(filters):
        for name, value in values.items():
            arguments[name][row] = value
    return arguments


def select(arguments: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {name: t if name == "banned_ids" else t[index].contiguous() for name, t in arguments.items()}


def assert_same(got: Samples, expected: Samples) -> None:
    assert torch.equal(got.tokens, expected.tokens)
    # Single precision sums of up to a few thousand terms: 1e-5 relative, 2e-6 absolute.
    torch.testing.assert_close(got.records, expected.records, rtol=1e-5, atol=2e-6)


def run(form: str, logits: Tensor, **arguments: object) -> Samples:
    """`sample_tokens` in a Triton form, the result on the CPU."""
    device = "cuda" if form == "cuda" else "cpu"
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}
    got = sample_tokens(logits.to(device), **moved, backend="triton")
    return Samples(got.tokens.cpu(), got.records.cpu())


def compare(form: str, logits: Tensor, **arguments: Tensor) -> Samples:
    """A Triton form against the reference: row for row the same, or the same as with a top_p that rounding allows."""
    got = run(form, logits, **arguments)
    wanted = sample_tokens(logits, **arguments, backend="reference")
    close = torch.isclose(got.records, wanted.records, rtol=1e-5, atol=2e-6).all(1) & (got.tokens == wanted.tokens)
    for row in (~close).nonzero().flatten().tolist():
        one = select(arguments, torch.tensor([row]))
        assert one["top_p"] < 1, (row, got.tokens[row], got.records[row], wanted.tokens[row], wanted.records[row])
        found = Samples(got.tokens[row : row + 1], got.records[row : row + 1])
        down, up = (
            sample_tokens(logits, **{**one, "top_p": (one["top_p"] * factor).clamp(max=1)}, backend="reference")
            for factor in (1 - SHARE_ROUNDING, 1 + SHARE_ROUNDING)
        )
        assert_same(found, down if torch.equal(found.tokens, down.tokens) else up)
    return got
