"""What launches of the step_rewards kernels differ in: types, head, bias or none, arguments that are 1, alignment."""

from __future__ import annotations

import torch
from compiled import POINTERS, Variant, main

from mstar_kernels import step_rewards_triton as module
from mstar_kernels.step_rewards import REDUCTIONS

TYPES = {"bias": "*fp32", "step_positions": "*i32", "scores": "*fp32", "response_steps": "*i32", "reduced": "*fp32"}
TYPES |= {"weakest": "*i32"}


def variants() -> list[Variant]:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    found = []
    for name, hidden, labels, constants, aligned in [
        ("bf16, softmax", bf16, bf16, {"HEAD": "softmax", "bias": None}, True),
        ("fp32, softmax, rows not aligned", fp32, fp32, {"HEAD": "softmax"}, False),
        ("fp16 under fp32, sigmoid, one step", fp16, fp32, {"HEAD": "sigmoid", "labels": 1, "steps": 1}, True),
        ("bf16, hidden size 1", bf16, bf16, {"HEAD": "softmax", "dim": 1}, False),
    ]:
        types = {**TYPES, "hidden": POINTERS[hidden], "label_rows": POINTERS[labels]}
        tile = {"ROWS": module.ROWS, "WIDTH": module.width_of(constants.get("dim", 3584), hidden)}
        multiples = ("dim",) if aligned else ()
        found.append(
            Variant(module.scores_kernel, name, types, constants | tile, multiples, module.OPTIONS, wide_copies=aligned)
        )
    tile = {"RESPONSES": module.RESPONSES, "STEPS": module.STEPS}
    for reduction in REDUCTIONS:
        constants = {"REDUCTION": reduction} | tile
        found.append(Variant(module.reduce_kernel, reduction, TYPES, constants, options=module.OPTIONS))
    return found


if __name__ == "__main__":
    main("step_rewards", variants())
