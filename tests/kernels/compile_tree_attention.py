"""What launches of the tree_attention kernels differ in: types, group and head size, kind of tile, options."""

from __future__ import annotations

import torch
from compiled import POINTERS, Variant, main

from mstar_kernels import tree_attention_triton as module
from mstar_kernels.tree_attention_tiles import padded, tiles_of

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
INTS = dict.fromkeys(("block_table", "positions", "counts", "items", "row_slots", "slots"), "*i32")
FLOATS = dict.fromkeys(("tops", "totals", "sums"), "*fp32") | dict.fromkeys(("scale", "softcap"), "fp32")
MODELS = [
    ("bf16, 7 x 128", BF16, BF16, 7, 128, False),  # Qwen2.5-VL-7B
    ("bf16, 7 x 128, soft cap and window", BF16, BF16, 7, 128, True),
    ("fp16, 1 x 64", FP16, FP16, 1, 64, False),
    ("bf16, 2 x 80", BF16, BF16, 2, 80, False),  # and 96: the same tiles
    ("bf16, 20 x 128", BF16, BF16, 20, 128, False),
    ("bf16, 2 x 256, soft cap and window", BF16, BF16, 2, 256, True),
    ("fp32, 2 x 128", FP32, FP32, 2, 128, False),
    ("fp32 over bf16, 7 x 64", FP32, BF16, 7, 64, False),
]


def variants() -> list[Variant]:
    found = []
    for name, q_dtype, kv_dtype, group, head_dim, has_options in MODELS:
        types = {**INTS, **FLOATS, "q": POINTERS[q_dtype], "out": POINTERS[q_dtype]}
        types |= {"k_cache": POINTERS[kv_dtype], "v_cache": POINTERS[kv_dtype]}
        shape = {"GROUP": group, "HEAD_DIM": head_dim, "WIDTH": padded(head_dim)}
        narrow, wide = tiles_of(group, head_dim, q_dtype, kv_dtype)
        for kind, tile in [(module.NARROW, narrow), (module.WIDE, wide)]:
            constants = shape | {"KIND": kind, "FIELDS": module.FIELDS, "BLOCK_SIZE": 16}
            constants |= {"HAS_SOFTCAP": has_options, "HAS_WINDOW": has_options}
            constants |= {"LANES": tile.lanes, "KEYS": tile.keys, "STAGES": tile.stages, "WIDEN": False}
            found.append(
                Variant(
                    module.attend_kernel,
                    f"{name}, {'narrow' if kind == module.NARROW else 'wide'}",
                    types,
                    constants,
                    multiples=("q_row", "q_head"),
                    options={"num_warps": tile.warps, "enable_fp_fusion": True},
                    wide_copies=True,
                )
            )
        if not has_options:
            constants = shape | {"HEADS": module.merge_heads(group, padded(head_dim))}
            found.append(Variant(module.merge_kernel, name, types, constants, options=module.MERGE_OPTIONS))
    return found


if __name__ == "__main__":
    main("tree_attention", variants())
