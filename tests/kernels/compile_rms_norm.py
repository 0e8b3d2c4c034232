"""What launches of the rms_norm kernel differ in: types, lengths of rows, where the weight is rounded."""

from __future__ import annotations

from collections.abc import Iterator

from compiled import Variant, main

from mstar_kernels import rms_norm_triton as module


def variants() -> Iterator[Variant]:
    for name, dtype, dim, offset, in_float32, multiples in [
        ("bf16, D=3584", "bf16", 3584, 0.0, False, ("stride",)),
        ("bf16, D=8192", "bf16", 8192, 0.0, False, ("stride",)),
        ("bf16, D=256, 1 + weight in float32", "bf16", 256, 1.0, True, ("stride",)),
        ("fp16, D=128, rows not aligned", "fp16", 128, 0.0, False, ()),
        ("fp32, D=12288, read twice", "fp32", 12288, 0.0, False, ("stride",)),
        ("fp32, D=1", "fp32", 1, 1.0, False, ()),
    ]:
        types = dict.fromkeys(("x", "weight", "out"), f"*{dtype}") | {"eps": "fp32"}
        tile = module.tile_of(dim)
        options = {"num_warps": tile.pop("num_warps")}
        constants = {"DIM": dim, "OFFSET": offset, "WEIGHT_IN_FLOAT32": in_float32, **tile}
        if dim == 1:
            constants["stride"] = 1
        yield Variant(module.rms_norm_kernel, name, types, constants, multiples, options)


if __name__ == "__main__":
    main("rms_norm", list(variants()))
