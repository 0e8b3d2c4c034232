"""The Triton form of `sample_tokens`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from mstar_kernels.sampling_draw_triton import draw_kernel
from mstar_kernels.sampling_pass_triton import FIELDS, pass_kernel

CHUNK = 4096


def launch(logits, rows, banned_ids, tokens, records, filtered):
    count, vocabulary = len(tokens), logits.shape[1]
    chunks = triton.cdiv(vocabulary, CHUNK)
    width = 16 // logits.itemsize if vocabulary % 16 == 0 else 1
    left = torch.empty(count, FIELDS, chunks, dtype=torch.float32, device=logits.device)
    address = (rows["seed"].view(torch.int64), rows["problem"].view(torch.int64), rows["sample"], rows["position"])
    with torch.cuda.device_of(logits):
        pass_kernel[(chunks, count)](
            logits, rows["logit_rows"], rows["temperature"], *address, banned_ids, left, vocabulary, chunks, len(banned_ids),
            CHUNK=CHUNK, REPEATS=16 // width, LANES=32, WIDTH=width, STAGES=3, BANNED=512, num_warps=1, enable_fp_fusion=True)
        draw_kernel[(count,)](
            logits, rows["logit_rows"], rows["temperature"], *address, banned_ids, left, left, left, left, tokens, records,
            vocabulary, chunks, len(banned_ids), 0, CHUNK=CHUNK, CHUNKS=triton.next_power_of_2(chunks), FILTERED=False,
            num_warps=4, enable_fp_fusion=True)
