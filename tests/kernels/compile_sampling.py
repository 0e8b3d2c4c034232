"""What launches of the sampling kernels differ in: type, vocabulary, alignment, filters or none.

The functions of `sampling_terms_triton` are compiled into all of them.
"""

from __future__ import annotations

import torch
import triton
from compiled import POINTERS, Variant, main

from mstar_kernels import sampling_triton as module
from mstar_kernels.sampling_bracket_triton import bracket_kernel
from mstar_kernels.sampling_draw_triton import draw_kernel
from mstar_kernels.sampling_filter_triton import filter_kernel
from mstar_kernels.sampling_list_triton import list_kernel
from mstar_kernels.sampling_pass_triton import pass_kernel
from mstar_kernels.sampling_row_filter_triton import row_filter_kernel

INTS = ("logit_rows", "top_k", "sample", "position", "banned_ids", "listed", "tokens")
FLOATS = ("temperature", "top_p", "min_p", "chunks_out", "chunks_in", "above_in", "above_out", "records")
TYPES = {"seed": "*i64", "problem": "*i64", "cuts": "*fp64", "rows_in": "*fp64", "rows_out": "*fp64", "lists": "*i64"}
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
        types = {**TYPES, "logits": POINTERS[dtype]}
        multiples = ("vocabulary",) if vocabulary % 16 == 0 else ()
        chunks = module.padded(triton.cdiv(vocabulary, sizes.chunk))
        common = {"CHUNK": sizes.chunk}

        def add(kernel, label, constants, options, types=types, multiples=multiples, common=common) -> None:
            found.append(Variant(kernel, label, types, {**common, **constants}, multiples, options))

        one_pass = {"REPEATS": sizes.lane // width, "LANES": 32, "WIDTH": width, "STAGES": sizes.stages}
        add(pass_kernel, name, {**one_pass, "BANNED": module.BANNED_AT_ONCE}, module.PASS_OPTIONS)
        listed = {"CAPACITY": sizes.capacity}
        for filtered in (False, True):
            label = f"{name}, filters" if filtered else name
            add(draw_kernel, label, {**listed, "CHUNKS": chunks, "FILTERED": filtered}, module.ROW_OPTIONS)
        sample = {"CHUNKS": chunks, "SAMPLE": sizes.sample, "FEW": sizes.tile}
        found.append(Variant(bracket_kernel, name, types, sample, multiples, module.ROW_OPTIONS))
        add(list_kernel, name, {**listed, "WIDTH": width}, module.LIST_OPTIONS)
        in_list = {**listed, "PART": sizes.part, "CHUNKS": chunks, "TILE": sizes.tile, "SHIFT": module.SHIFTS[dtype]}
        add(filter_kernel, name, in_list, module.ROW_OPTIONS)
        add(row_filter_kernel, name, {"SHIFT": module.SHIFTS[dtype]}, module.ROW_OPTIONS)
    return found


if __name__ == "__main__":
    main("sampling", variants())
