"""What launches of the silu_mul kernel differ in: type and alignment."""

from __future__ import annotations

from collections.abc import Iterator

from compiled import Variant, main

from mstar_kernels import silu_mul_triton as module


def variants() -> Iterator[Variant]:
    for name, dtype, multiples in [
        ("bf16", "bf16", ("count",)),
        ("fp16, a count of any size", "fp16", ()),
        ("fp32", "fp32", ("count",)),
    ]:
        types = dict.fromkeys(("gate", "up", "out"), f"*{dtype}")
        yield Variant(module.silu_mul_kernel, name, types, {"WIDTH": module.WIDTH}, multiples, module.OPTIONS)


if __name__ == "__main__":
    main("silu_mul", list(variants()))
