"""The Triton form of `sample_tokens`: a pass over the logits, the filters where a row has any, and the draw.

The floor is one read of the logits: 256 x 151,936 in bfloat16 are 18 us at 4.3 TB/s. The pass is bound by instructions
instead, about 26 an element with its overhead (23 where t is 1): 132 SMs that issue 4 x 32 of them a clock need 35 us
(30) at 1.755 GHz. Measured so on an H200: the pass 39 us (35), the draw 11, with top-p 15. Rows with filters are read
once more: with top-p 182 us in all, of which bracket, lists and filter are 128, where 49 were predicted (10, 27, 12).
The launches follow from the sizes and from `filtered` alone: nothing is read back, so the whole can be captured in a
CUDA graph once it has run (which compiles it).

Import it on first use only: Triton is not installed on every platform. Under TRITON_INTERPRET=1, set before Triton is
imported, the same kernels run on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mstar_kernels.sampling_bracket_triton import ROW_FIELDS, bracket_kernel
from mstar_kernels.sampling_draw_triton import CUT_FIELDS, draw_kernel
from mstar_kernels.sampling_filter_triton import filter_kernel
from mstar_kernels.sampling_list_triton import ABOVE_FIELDS, list_kernel
from mstar_kernels.sampling_pass_triton import FIELDS, pass_kernel
from mstar_kernels.sampling_row_filter_triton import row_filter_kernel


@dataclass(frozen=True)
class Settings:
    """How a launch is cut. It depends on the vocabulary and the type of the logits alone, so neither do the records
    depend on the batch.

    chunk: ids of a program of the pass, and of one look of the draw.
    lane: logits that a thread of the pass takes at a time.
    stages: tiles on their way from memory, and the one at work.
    capacity: entries that a row's list holds.
    tile: entries of a list that its program keeps in registers.
    sample: logits of the sample that brackets the end of a filter.
    part: entries of a longer list's rest that it takes at a time.
    """

    chunk: int
    lane: int
    stages: int
    capacity: int
    tile: int
    sample: int
    part: int


SETTINGS = {
    "large": Settings(chunk=4096, lane=16, stages=3, capacity=16384, tile=8192, sample=4096, part=1024),
    "small": Settings(chunk=1024, lane=16, stages=3, capacity=16384, tile=8192, sample=4096, part=1024),
}
"""For Hopper (H100, H200), by arithmetic: a thread of the pass then keeps 16 logits in 72 to 96 registers, so that 20
programs of one warp share an SM and 40 KiB are on their way to it. Small: up to 16,384 ids."""
SHIFTS = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}
"""Low bits of a float32 that no logit of the type has."""
OPTIONS = {"enable_fp_fusion": True}
PASS_OPTIONS = {"num_warps": 1, "maxnreg": 128, **OPTIONS}
ROW_OPTIONS = {"num_warps": 8, "maxnreg": 128, **OPTIONS}
"""A program a row, two on an SM: 256 rows run at once on 132."""
LIST_OPTIONS = {"num_warps": 8, "maxnreg": 64, **OPTIONS}
"""Four programs on an SM, 16 logits a thread."""
BANNED_AT_ONCE = 512


def settings_of(vocabulary: int) -> Settings:
    """The settings for a vocabulary: small chunks too where rows are not aligned, since single loads take registers."""
    return SETTINGS["small" if vocabulary <= 16384 or vocabulary % 16 else "large"]


def width_of(vocabulary: int, dtype: torch.dtype) -> int:
    """Logits that a thread loads at once: 16 bytes, or one where rows do not begin at multiples of that."""
    return 16 // dtype.itemsize if vocabulary % 16 == 0 else 1


def padded(chunks: int) -> int:
    """A power of two of at least 64 that a row's chunks fit in: fewer would not be faster, but more kernels."""
    return max(64, triton.next_power_of_2(chunks))


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
    chunks_of_row = padded(chunks)
    address = (rows["seed"].view(torch.int64), rows["problem"].view(torch.int64), rows["sample"], rows["position"])
    of_chunks = torch.empty(count, FIELDS.value, chunks, dtype=torch.float32, device=device)
    cuts, lists = of_chunks, banned_ids  # stand for arguments that are not read
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
            above = torch.empty(count, ABOVE_FIELDS.value, chunks, dtype=torch.float32, device=device)
            listed = torch.empty(count, dtype=torch.int32, device=device)
            lists = torch.empty(count, sizes.capacity, dtype=torch.int64, device=device)
            of_row = (rows["temperature"], rows["top_k"], rows["top_p"], rows["min_p"])
            shared = (logits, rows["logit_rows"], *of_row, banned_ids, of_chunks, of_rows)
            bracket_kernel[(count,)](
                *shared, listed, vocabulary, chunks, banned,
                CHUNKS=chunks_of_row, SAMPLE=sizes.sample, FEW=sizes.tile, **ROW_OPTIONS,
            )  # fmt: skip
            list_kernel[(count * chunks,)](
                logits, rows["logit_rows"], rows["temperature"], banned_ids, of_chunks, of_rows, listed, lists, above,
                vocabulary, chunks, banned,
                CHUNK=sizes.chunk, WIDTH=width, CAPACITY=sizes.capacity, **LIST_OPTIONS,
            )  # fmt: skip
            filter_kernel[(count,)](
                *of_row, of_rows, above, listed, lists, cuts, vocabulary, chunks,
                CHUNK=sizes.chunk, CHUNKS=chunks_of_row, TILE=sizes.tile, PART=sizes.part,
                SHIFT=SHIFTS[logits.dtype], CAPACITY=sizes.capacity, **ROW_OPTIONS,
            )  # fmt: skip
            row_filter_kernel[(count,)](
                *shared, cuts, vocabulary, chunks, banned,
                CHUNK=sizes.chunk, SHIFT=SHIFTS[logits.dtype], **ROW_OPTIONS,
            )  # fmt: skip
        draw_kernel[(count,)](
            logits, rows["logit_rows"], rows["temperature"], *address, banned_ids, of_chunks, cuts, lists,
            tokens, records, vocabulary, chunks, banned,
            CHUNK=sizes.chunk, CHUNKS=chunks_of_row, CAPACITY=sizes.capacity, FILTERED=filtered, **ROW_OPTIONS,
        )  # fmt: skip
