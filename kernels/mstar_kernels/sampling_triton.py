"""The Triton form of `sample_tokens`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from mstar_kernels.sampling_draw_triton import draw_kernel
from mstar_kernels.sampling_filter_triton import filter_kernel
from mstar_kernels.sampling_pass_triton import FIELDS, pass_kernel

CHUNK = 4096
SHIFT={torch.float32:0,torch.bfloat16:16,torch.float16:13}
CAPACITY, SAMPLE, PIVOTS = 16384, 4096, 64


def launch(logits, rows, banned_ids, tokens, records, filtered):
    count, vocabulary = len(tokens), logits.shape[1]
    chunks = triton.cdiv(vocabulary, CHUNK)
    width = 16 // logits.itemsize if vocabulary % 16 == 0 else 1
    device = logits.device
    left = torch.empty(count, FIELDS, chunks, dtype=torch.float32, device=logits.device)
    address = (rows["seed"].view(torch.int64), rows["problem"].view(torch.int64), rows["sample"], rows["position"])
    with torch.cuda.device_of(logits):
        pass_kernel[(chunks, count)](
            logits, rows["logit_rows"], rows["temperature"], *address, banned_ids, left, vocabulary, chunks, len(banned_ids),
            CHUNK=CHUNK, REPEATS=16 // width, LANES=32, WIDTH=width, STAGES=3, BANNED=512, num_warps=1, enable_fp_fusion=True)
        cuts, values, ids, capacity = left, left, left, 0
        if filtered:
            capacity = CAPACITY
            cuts = torch.empty(count, 4, dtype=torch.float64, device=device)
            values = torch.empty(count, capacity, dtype=torch.float32, device=device)
            ids = torch.empty(count, capacity, dtype=torch.int32, device=device)
            filter_kernel[(count,)](
                logits, rows["logit_rows"], rows["temperature"], rows["top_k"], rows["top_p"], rows["min_p"],
                banned_ids, left, cuts, values, ids, vocabulary, chunks, len(banned_ids),
                CHUNK=CHUNK, CHUNKS=triton.next_power_of_2(chunks), LANES=512, WIDTH=width, STAGES=3, SHIFT=SHIFT[logits.dtype],
                CAPACITY=capacity, SAMPLE=SAMPLE, PIVOTS=PIVOTS, num_warps=16, enable_fp_fusion=True)
        draw_kernel[(count,)](
            logits, rows["logit_rows"], rows["temperature"], *address, banned_ids, left, cuts, values, ids, tokens, records,
            vocabulary, chunks, len(banned_ids), capacity, CHUNK=CHUNK, CHUNKS=triton.next_power_of_2(chunks), FILTERED=filtered,
            num_warps=8, enable_fp_fusion=True)
