"""Compiles the Triton kernels of step_rewards for GPUs that need not be present: a JSON line a kernel, on stdout.

A script, since Triton cannot compile in a process in which its interpreter is on. "aligned" says that rows begin at
multiples of 16 bytes, "wide_copies" that they are copied 16 bytes at a time, ahead of the multiplications.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mstar_kernels import step_rewards_triton as module
from mstar_kernels.step_rewards import REDUCTIONS

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
POINTERS = {"bias": "*fp32", "step_positions": "*i32", "scores": "*fp32", "response_steps": "*i32", "reduced": "*fp32"}
POINTERS |= {"weakest": "*i32"}
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def compile_kernel(kernel, architecture: int, types: dict[str, str], constants: dict, aligned: bool) -> dict:
    """Compile as a launch does: arguments not in `constants` are pointers of `types` or int32. A launch makes constants
    of arguments that are None or 1, and tells the compiler of multiples of 16."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    multiples = [name for name in names if signature[name].startswith("*") or (aligned and name == "dim")]
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in multiples},
    )
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=module.OPTIONS)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        dump = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", dump.stdout + dump.stderr))
    return {
        "kernel": kernel.__name__,
        "architecture": architecture,
        "constants": {name: value for name, value in constants.items() if value is not None},
        "registers": int(usage["REG"]),
        "stack": int(usage["STACK"]),
        "local": int(usage["LOCAL"]),
        "aligned": aligned,
        "wide_copies": re.search(r"cp\.async\.cg\S* .*0x10", compiled.asm["ptx"]) is not None,
    }


def variants() -> list[tuple]:
    """What launches differ in: types, head, bias or none, arguments that are 1, rows aligned or not."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    found = []
    for hidden, labels, constants, aligned in [
        (bf16, bf16, {"HEAD": "softmax", "bias": None}, True),
        (fp32, fp32, {"HEAD": "softmax"}, False),
        (fp16, fp32, {"HEAD": "sigmoid", "labels": 1, "steps": 1}, True),
        (bf16, bf16, {"HEAD": "softmax", "dim": 1}, False),
    ]:
        types = {**POINTERS, "hidden": f"*{NAMES[hidden]}", "label_rows": f"*{NAMES[labels]}"}
        tile = {"ROWS": module.ROWS, "WIDTH": module.width_of(constants.get("dim", 3584), hidden)}
        found.append((module.scores_kernel, types, constants | tile, aligned))
    tile = {"RESPONSES": module.RESPONSES, "STEPS": module.STEPS}
    for reduction in REDUCTIONS:
        found.append((module.reduce_kernel, POINTERS, {"REDUCTION": reduction} | tile, False))
    return found


if __name__ == "__main__":
    for architecture in (80, 90, 100):
        for kernel, types, constants, aligned in variants():
            print(json.dumps(compile_kernel(kernel, architecture, types, constants, aligned)), flush=True)
