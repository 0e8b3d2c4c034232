"""Compiles Triton kernels for GPUs that need not be present, and tells what registers and shared memory they take.

Each op has a script compile_<op>.py with its variants, and a table resources/<op>.json of what they took;
test_compiled_kernels.py holds the one to the other. `python tests/kernels/compile_<op>.py --update` writes the table.
Scripts, since Triton cannot compile in a process in which its interpreter is on.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90, 100)
"""A100, H100 and H200, B200."""
RESOURCES = Path(__file__).with_name("resources")
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32"}
POINTERS |= {torch.int64: "*i64"}


@dataclass(frozen=True)
class Variant:
    """One of the forms in which launches compile a kernel.

    name: what distinguishes it, unique with the kernel's name.
    types: of arguments that are not int32, as in Triton's signatures ("*bf16", "fp32", "i64").
    constants: of constexpr arguments, and of those that a launch makes constants: None, and integers that are 1.
    multiples: integers that a launch would find to be multiples of 16. Pointers always are.
    options: num_warps, num_stages and so on, as launched.
    wide_copies: whether rows must be copied 16 bytes at a time ahead of their use (cp.async); None says nothing.
    """

    kernel: Any
    name: str
    types: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    multiples: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    wide_copies: bool | None = None


def compile_variant(variant: Variant, architecture: int) -> dict[str, Any]:
    """Registers a thread, bytes of shared memory a program, and of stack and local memory a thread (spills)."""
    names = variant.kernel.arg_names
    signature = {name: "constexpr" if name in variant.constants else variant.types.get(name, "i32") for name in names}
    multiples = [name for name in names if signature[name].startswith("*") or name in variant.multiples]
    source = ASTSource(
        variant.kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in multiples},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=dict(variant.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        dump = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", dump.stdout + dump.stderr))
    wide_copies = re.search(r"cp\.async\.cg\S* .*0x10", compiled.asm["ptx"]) is not None
    assert variant.wide_copies in (None, wide_copies), f"{variant.name}, sm_{architecture}: wide copies: {wide_copies}"
    return {
        "kernel": variant.kernel.__name__,
        "variant": variant.name,
        "architecture": architecture,
        "registers": int(usage["REG"]),
        "shared": int(compiled.metadata.shared),
        "stack": int(usage["STACK"]),
        "local": int(usage["LOCAL"]),
    }


def main(op: str, variants: Iterable[Variant]) -> None:
    """Compile all variants for all architectures and print the table; with --update, write it to resources/."""
    rows = [compile_variant(variant, architecture) for architecture in ARCHITECTURES for variant in variants]
    lines = ",\n".join(json.dumps(row) for row in rows)
    table = f'{{"triton": "{triton.__version__}", "kernels": [\n{lines}\n]}}\n'
    if "--update" in sys.argv:
        RESOURCES.mkdir(exist_ok=True)
        (RESOURCES / f"{op}.json").write_text(table)
    print(table)
