"""`sample_tokens` against what a trainer writes in torch: softmax and multinomial, with the usual filters before.

Ours also returns three log-probabilities and the entropy of each token; the peer returns the token only. Logits are
normal with standard deviation 2, 64 rows, float32. The floor is one read of a row at the bandwidth of a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.harness import Row, Side, compare, copy_bytes_per_second, main
from mstar_kernels.sampling import sample_tokens

ROWS = 64
LARGE, SMALL = 152_064, 32_000


def arguments(
    temperature: float | Tensor, top_k: int, top_p: float, rows: int = ROWS, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """What `sample_tokens` is given beside the logits; `temperature` one for all rows, or float32 [rows]."""
    index = torch.arange(rows, device=device)
    degrees = torch.as_tensor(temperature, dtype=torch.float32, device=device)
    return {
        "logit_rows": index.int(),
        "temperature": degrees.expand(rows).contiguous(),
        "top_k": torch.full_like(index, top_k, dtype=torch.int32),
        "top_p": torch.full_like(index, top_p, dtype=torch.float32),
        "min_p": torch.zeros_like(index, dtype=torch.float32),
        "seed": torch.zeros_like(index),
        "problem": index,
        "sample": torch.zeros_like(index, dtype=torch.int32),
        "position": torch.zeros_like(index, dtype=torch.int32),
        "banned_ids": torch.zeros(0, dtype=torch.int32, device=device),
    }


def multinomial(logits: Tensor, temperature: float | Tensor) -> Tensor:
    return torch.multinomial((logits / temperature).softmax(-1), 1)


def top_k_multinomial(logits: Tensor, temperature: float | Tensor, top_k: int) -> Tensor:
    scaled = logits / temperature
    least = scaled.topk(top_k).values[:, -1:]
    return torch.multinomial(scaled.masked_fill(scaled < least, -torch.inf).softmax(-1), 1)


def top_p_multinomial(logits: Tensor, temperature: float | Tensor, top_p: float) -> Tensor:
    scaled = logits / temperature
    values, order = scaled.sort()
    drop = values.softmax(-1).cumsum(-1) <= 1 - top_p
    drop[:, -1:] = False
    return torch.multinomial(scaled.masked_fill(drop.scatter(1, order, drop), -torch.inf).softmax(-1), 1)


def rows(quick: bool) -> Iterator[Row]:
    bandwidth = copy_bytes_per_second()
    subjects: list[tuple[str, int, float, int, float, str, Callable[[Tensor], Tensor]]] = [
        ("temperature, V=152064", LARGE, 1.0, 0, 1.0, "torch softmax + multinomial", lambda x: multinomial(x, 1.0)),
        ("temperature 0.7, V=152064", LARGE, 0.7, 0, 1.0, "torch softmax + multinomial", lambda x: multinomial(x, 0.7)),
        ("top-p 0.95, V=152064", LARGE, 1.0, 0, 0.95, "torch sort, softmax + multinomial",
         lambda x: top_p_multinomial(x, 1.0, 0.95)),
        ("top-k 50, V=152064", LARGE, 1.0, 50, 1.0, "torch topk, softmax + multinomial",
         lambda x: top_k_multinomial(x, 1.0, 50)),
        ("greedy, V=152064", LARGE, 0.0, 0, 1.0, "torch argmax", lambda x: x.argmax(-1)),
        ("temperature, V=32000", SMALL, 1.0, 0, 1.0, "torch softmax + multinomial", lambda x: multinomial(x, 1.0)),
    ]  # fmt: skip
    for subject, vocabulary, temperature, top_k, top_p, peer, call in subjects:
        logits = torch.randn(ROWS, vocabulary, generator=torch.Generator().manual_seed(0)) * 2
        values = arguments(temperature, top_k, top_p)
        yield compare(
            subject,
            Side("sample_tokens", lambda logits=logits, values=values: sample_tokens(logits, **values)),
            Side(peer, lambda logits=logits, call=call: call(logits)),
            unit="us/row",
            per_second=lambda seconds: seconds * 1e6 / ROWS,
            repeats=3 if quick else 15,
            floor_value=vocabulary * 4 / bandwidth * 1e6,
        )


if __name__ == "__main__":
    main("sampling", rows)
