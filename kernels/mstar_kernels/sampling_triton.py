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
CAPACITY, SAMPLE = 10240, 4096


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
        cuts, lists, places, room = left, left, left, 0
        if filtered:
            capacity = CAPACITY
            cuts = torch.empty(count, 4, dtype=torch.float64, device=device)
            room = capacity + CHUNK // width
            lists = torch.empty(count, room, width, dtype=logits.dtype, device=device)
            places = torch.empty(count, room, dtype=torch.int32, device=device)
            filter_kernel[(count,)](
                logits, rows["logit_rows"], rows["temperature"], rows["top_k"], rows["top_p"], rows["min_p"],
                banned_ids, left, cuts, lists, places, vocabulary, chunks, len(banned_ids),
                CHUNK=CHUNK, CHUNKS=triton.next_power_of_2(chunks), WIDTH=width, STAGES=3, SHIFT=SHIFT[logits.dtype],
                CAPACITY=capacity, SAMPLE=SAMPLE, num_warps=8, enable_fp_fusion=True)
        draw_kernel[(count,)](
            logits, rows["logit_rows"], rows["temperature"], *address, banned_ids, left, cuts, lists, places, tokens, records,
            vocabulary, chunks, len(banned_ids), room, WIDTH=width, CHUNK=CHUNK, CHUNKS=triton.next_power_of_2(chunks), FILTERED=filtered,
            num_warps=8, enable_fp_fusion=True)
