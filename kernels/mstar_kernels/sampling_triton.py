"""The Triton form of `sample_tokens`: a pass over the logits, the filters where a row has any, and the draw.

The floor is one read of the logits: 256 x 151,936 in bfloat16 are 18 us at 4.3 TB/s. The pass is bound by instructions
instead, about 26 an element with its overhead (23 where t is 1): 132 SMs that issue 4 x 32 of them a clock need 35 us
(30) at 1.755 GHz. Rows with filters are read once more. The launches follow from the sizes and from `filtered` alone:
nothing is read back, so the whole can be captured in a CUDA graph once it has run (which compiles it).

Import it on first use only: Triton is not installed on every platform. Under TRITON_INTERPRET=1, set before Triton is
imported, the same kernels run on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mstar_kernels.sampling_draw_triton import CUT_FIELDS, draw_kernel
from mstar_kernels.sampling_filter_triton import filter_kernel
from mstar_kernels.sampling_list_triton import ROW_FIELDS, list_kernel
from mstar_kernels.sampling_pass_triton import FIELDS, pass_kernel


@dataclass(frozen=True)
class Settings:
    """How a launch is cut. It depends on the vocabulary and the type of the logits alone, so neither do the records
    depend on the batch.

    chunk: ids of a program of the pass, and of one look of the draw.
    lane: logits that a thread of the pass takes at a time.
    stages: tiles on their way from memory, and the one at work.
    capacity: groups that a row's list holds, of as many logits as 16 bytes hold.
    sample: logits of the sample that brackets the end of a filter.
    part: logits that bisection over a whole row takes at a time.
    """

    chunk: int
    lane: int
    stages: int
    capacity: int
    sample: int
    part: int


SETTINGS = {
    "large": Settings(chunk=4096, lane=16, stages=3, capacity=10240, sample=4096, part=1024),
    "small": Settings(chunk=1024, lane=16, stages=3, capacity=10240, sample=4096, part=1024),
}
"""For Hopper (H100, H200), by arithmetic: a thread of the pass then keeps 16 logits in 72 to 96 registers, so that 20
programs of one warp share an SM and 40 KiB are on their way to it. Small: up to 16,384 ids."""
SHIFTS = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}
"""Low bits of a float32 that no logit of the type has."""
OPTIONS = {"enable_fp_fusion": True}
PASS_OPTIONS = {"num_warps": 1, "maxnreg": 128, **OPTIONS}
ROW_OPTIONS = {"num_warps": 8, "maxnreg": 128, **OPTIONS}
"""A program a row, two on an SM: 256 rows run at once on 132."""
BANNED_AT_ONCE = 512


def settings_of(vocabulary: int) -> Settings:
    """The settings for a vocabulary: small chunks too where rows are not aligned, since single loads take registers."""
    return SETTINGS["small" if vocabulary <= 16384 or vocabulary % 16 else "large"]


def width_of(vocabulary: int, dtype: torch.dtype) -> int:
    """Logits that a thread loads at once: 16 bytes, or one where rows do not begin at multiples of that."""
    return 16 // dtype.itemsize if vocabulary % 16 == 0 else 1


def launch(
    logits: Tensor, rows: Mapping[str, Tensor], banned_ids: Tensor, tokens: Tensor, records: Tensor, filtered: bool
) -> None:
    """Fill tokens [R] and records [R, 4] on the logits' device; R at least 1. Unchecked, and the result not looked at.

    logits [B, V] and banned_ids [n] are as `sample_tokens` says, and so are `rows`, its arguments of one value a row.
    filtered: whether a row may have top_k, top_p or min_p; without, they are not looked at.
    The token of a row that holds NaN or +inf is -1, of one that has no finite logit outside banned_ids -2; its record
    is of no use.
    """
    count, vocabulary, device = len(tokens), logits.shape[1], logits.device
    sizes, width = settings_of(vocabulary), width_of(vocabulary, logits.dtype)
    chunks, banned = triton.cdiv(vocabulary, sizes.chunk), len(banned_ids)
    chunks_of_row = triton.next_power_of_2(chunks)
    room = sizes.capacity + sizes.chunk // width
    address = (rows["seed"].view(torch.int64), rows["problem"].view(torch.int64), rows["sample"], rows["position"])
    of_chunks = torch.empty(count, FIELDS.value, chunks, dtype=torch.float32, device=device)
    cuts, list_logits, list_places = of_chunks, logits, banned_ids  # stand for arguments that are not read
    with torch.cuda.device_of(logits):
        pass_kernel[(count * chunks,)](
            logits, rows["logit_rows"], rows["temperature"], *address, banned_ids, of_chunks,
            vocabulary, chunks, banned,
            CHUNK=sizes.chunk, REPEATS=sizes.lane // width, LANES=32, WIDTH=width, STAGES=sizes.stages,
            BANNED=BANNED_AT_ONCE, **PASS_OPTIONS,
        )  # fmt: skip
        if filtered:
            cuts = torch.empty(count, CUT_FIELDS.value, dtype=torch.float64, device=device)
            of_rows = torch.empty(count, ROW_FIELDS.value, dtype=torch.float64, device=device)
            list_logits = torch.empty(count, room, width, dtype=logits.dtype, device=device)
            list_places = torch.empty(count, room, dtype=torch.int32, device=device)
            filters = (rows[name] for name in ("logit_rows", "temperature", "top_k", "top_p", "min_p"))
            shared = (logits, *filters, banned_ids, of_chunks, of_rows, list_logits, list_places)
            list_kernel[(count,)](
                *shared, vocabulary, chunks, banned,
                CHUNK=sizes.chunk, CHUNKS=chunks_of_row, WIDTH=width, STAGES=sizes.stages, CAPACITY=sizes.capacity,
                SAMPLE=sizes.sample, **ROW_OPTIONS,
            )  # fmt: skip
            filter_kernel[(count,)](
                *shared, cuts, vocabulary, chunks, banned,
                CHUNK=sizes.chunk, PART=sizes.part, WIDTH=width, STAGES=sizes.stages, SHIFT=SHIFTS[logits.dtype],
                CAPACITY=sizes.capacity, **ROW_OPTIONS,
            )  # fmt: skip
        draw_kernel[(count,)](
            logits, rows["logit_rows"], rows["temperature"], *address, banned_ids, of_chunks, cuts, list_logits,
            list_places, tokens, records, vocabulary, chunks, banned, room,
            CHUNK=sizes.chunk, CHUNKS=chunks_of_row, WIDTH=width, FILTERED=filtered, **ROW_OPTIONS,
        )  # fmt: skip
