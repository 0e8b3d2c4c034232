"""What launches of the store_kv and copy_blocks kernels differ in: element type, shape, strides, blocks."""

from __future__ import annotations

from compiled import Variant, main

from mstar_kernels import paged_kv_triton as module

ALIGNED = ("k_token", "k_head", "v_token", "v_head")
IDS = dict.fromkeys(("slots", "src", "dst"), "*i32")


def variants() -> list[Variant]:
    found = []
    for name, dtype, kv_heads, head_dim, constants, multiples in [
        ("bf16, 4 x 128", "bf16", 4, 128, {"k_element": 1, "v_element": 1}, ALIGNED),
        ("fp32, 8 x 80", "fp32", 8, 80, {"k_element": 1, "v_element": 1}, ALIGNED),
        ("fp16, 1 x 256", "fp16", 1, 256, {"k_element": 1, "v_element": 1, "kv_heads": 1}, ALIGNED),
        ("bf16, 3 x 5, strided", "bf16", 3, 5, {}, ()),
    ]:
        types = IDS | dict.fromkeys(("k", "v", "k_cache", "v_cache"), f"*{dtype}")
        shape = {"HEAD_DIM": head_dim, "BLOCK_SIZE": 16, **module.store_tile(kv_heads, head_dim)}
        found.append(Variant(module.store_kernel, name, types, shape | constants, multiples, module.OPTIONS))
        size = kv_heads * 16 * head_dim
        tile = {"SIZE": size, "WIDTH": min(module.COPY, 1 << (size - 1).bit_length())}
        layers = ("k_layer", "v_layer")
        found.append(Variant(module.copy_kernel, name, types, tile, layers, module.OPTIONS))
    return found


if __name__ == "__main__":
    main("paged_kv", variants())
