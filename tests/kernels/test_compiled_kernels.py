"""Every Triton kernel compiles ahead of time for A100, H100 and B200, spills nothing, and takes what its table says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OPS = sorted(path.stem.removeprefix("compile_") for path in HERE.glob("compile_*.py"))
MOST_SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that one program can have."""


def test_every_triton_module_is_compiled() -> None:
    modules = (HERE.parents[1] / "kernels" / "mstar_kernels").glob("*_triton.py")
    scripts = "".join((HERE / f"compile_{op}.py").read_text() for op in OPS)
    assert {path.stem for path in modules if path.stem not in scripts} == set()


@pytest.mark.parametrize("op", OPS)
def test_compiles_within_its_table(op: str) -> None:
    triton = pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    script = HERE / f"compile_{op}.py"
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-4000:]
    found, committed = json.loads(result.stdout), json.loads((HERE / "resources" / f"{op}.json").read_text())
    assert {row["architecture"] for row in found["kernels"]} == {80, 90, 100}
    for row in found["kernels"]:
        assert row["stack"] == row["local"] == 0, row
        assert row["shared"] <= MOST_SHARED[row["architecture"]], row
    if triton.__version__ == committed["triton"]:
        assert found["kernels"] == committed["kernels"], f"run {script} --update and look at the difference"
    else:  # another compiler allocates differently; which kernels there are does not change
        keys = ("kernel", "variant", "architecture")
        assert [[row[key] for key in keys] for row in found["kernels"]] == [
            [row[key] for key in keys] for row in committed["kernels"]
        ]
