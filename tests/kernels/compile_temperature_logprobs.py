"""What launches of the temperature_logprobs kernels differ in: types, alignment of rows, numbers of temperatures."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from compiled import POINTERS, Variant, main

from mstar_kernels import temperature_logprobs_triton as module

TYPES = {"tokens": "*i32", "logit_rows": "*i32", "temperatures": "*fp32", "banned_ids": "*i32", "sums": "*fp32"}
TYPES |= {"logprobs": "*fp32"}


def variants() -> Iterator[Variant]:
    for name, dtype, vocabulary, degrees in [
        ("bf16, V=151936, 14 temperatures", torch.bfloat16, 151936, 16),
        ("fp16, V=50257, rows not aligned", torch.float16, 50257, 2),
        ("fp32, V=1, one temperature", torch.float32, 1, 1),
    ]:
        types = {**TYPES, "logits": POINTERS[dtype]}
        known = {"vocabulary": 1} if vocabulary == 1 else {}
        multiples = ("vocabulary",) if vocabulary % 16 == 0 else ()
        sums = {**known, "CHUNK": module.CHUNK, "BANNED": module.BANNED_AT_ONCE}
        yield Variant(module.sums_kernel, name, types, sums, multiples, module.OPTIONS)
        chunks = 1 << (-(-vocabulary // module.CHUNK) - 1).bit_length()
        logprobs = {**known, "CHUNKS": chunks, "DEGREES": degrees}
        yield Variant(module.logprobs_kernel, name, types, logprobs, multiples, module.OPTIONS)


if __name__ == "__main__":
    main("temperature_logprobs", list(variants()))
