"""What launches of the sampling kernels differ in: type, vocabulary, alignment, filters or none.

The functions of `sampling_terms_triton` are compiled into all of them.
"""

from __future__ import annotations

import torch
import triton
from compiled import POINTERS, Variant, main

from mstar_kernels import sampling_triton as module
from mstar_kernels.sampling_draw_triton import draw_kernel
from mstar_kernels.sampling_filter_triton import filter_kernel
from mstar_kernels.sampling_list_triton import list_kernel
from mstar_kernels.sampling_pass_triton import pass_kernel

INTS = ("logit_rows", "top_k", "sample", "position", "banned_ids", "list_places", "tokens")
FLOATS = ("temperature", "top_p", "min_p", "chunks_out", "chunks_in", "records")
TYPES = {"seed": "*i64", "problem": "*i64", "cuts": "*fp64", "rows_in": "*fp64", "rows_out": "*fp64"}
TYPES |= dict.fromkeys(INTS, "*i32") | dict.fromkeys(FLOATS, "*fp32")


def variants() -> list[Variant]:
    found = []
    for name, dtype, vocabulary in [
        ("bf16, V=151936", torch.bfloat16, 151_936),
        ("fp16, V=32000", torch.float16, 32_000),
        ("fp32, V=8192", torch.float32, 8192),
        ("bf16, V=50257, rows not aligned", torch.bfloat16, 50_257),
    ]:
        sizes, width = module.settings_of(vocabulary), module.width_of(vocabulary, dtype)
        types = {**TYPES, "logits": POINTERS[dtype], "list_logits": POINTERS[dtype]}
        multiples = ("vocabulary",) if vocabulary % 16 == 0 else ()
        chunks = triton.next_power_of_2(triton.cdiv(vocabulary, sizes.chunk))
        common = {"CHUNK": sizes.chunk, "WIDTH": width}

        def add(kernel, label, constants, options, types=types, multiples=multiples, common=common) -> None:
            found.append(Variant(kernel, label, types, {**common, **constants}, multiples, options))

        one_pass = {"REPEATS": sizes.lane // width, "LANES": 32, "STAGES": sizes.stages}
        add(pass_kernel, name, {**one_pass, "BANNED": module.BANNED_AT_ONCE}, module.PASS_OPTIONS)
        for filtered in (False, True):
            label = f"{name}, filters" if filtered else name
            add(draw_kernel, label, {"CHUNKS": chunks, "FILTERED": filtered}, module.ROW_OPTIONS)
        listed = {"STAGES": sizes.stages, "CAPACITY": sizes.capacity}
        add(list_kernel, name, {**listed, "CHUNKS": chunks, "SAMPLE": sizes.sample}, module.ROW_OPTIONS)
        bisected = {"PART": sizes.part, "SHIFT": module.SHIFTS[dtype]}
        add(filter_kernel, name, {**listed, **bisected}, module.ROW_OPTIONS)
    return found


if __name__ == "__main__":
    main("sampling", variants())
