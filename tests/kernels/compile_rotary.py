"""What launches of the rotary kernel differ in: type, head size, strides."""

from __future__ import annotations

from collections.abc import Iterator

from compiled import Variant, main

from mstar_kernels import rotary_triton as module

ALIGNED = tuple(name for name in module.STRIDES if not name.endswith("element"))
SIDE_BY_SIDE = {name: 1 for name in module.STRIDES if name.endswith("element")}


def variants() -> Iterator[Variant]:
    for name, dtype, dim, heads, constants, multiples in [
        ("bf16, 28 x 128, a token a row", "bf16", 128, 28, SIDE_BY_SIDE, ALIGNED),
        ("fp16, 8 x 80", "fp16", 80, 8, SIDE_BY_SIDE, ALIGNED),
        ("fp32, 16 x 256", "fp32", 256, 16, SIDE_BY_SIDE, ALIGNED),
        ("bf16, 3 x 6, strided", "bf16", 6, 3, {}, ()),
    ]:
        types = dict.fromkeys(("q", "k", "cos", "sin", "q_out", "k_out"), f"*{dtype}")
        shape = {"DIM": dim, **module.tile_of(dim, heads)}
        yield Variant(module.rotary_kernel, name, types, shape | constants, multiples, module.OPTIONS)


if __name__ == "__main__":
    main("rotary", list(variants()))
