"""Where the Triton form of an op is refused. What else `resolve` decides is tested beside `sample_tokens`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mstar_kernels.dispatch import resolve


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    every = ("triton", "cpu", "reference")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resolve("auto", "cuda", every) == "reference"
    with pytest.raises(ValueError, match="Triton is not installed"):
        resolve("triton", "cuda", every)


def test_a_late_switch_to_the_interpreter_is_refused() -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    script = """if True:
        import os, torch, triton
        from mstar_kernels.dispatch import resolve
        os.environ["TRITON_INTERPRET"] = "1"
        resolve("triton", "cpu", ("triton",))"""
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert "ValueError: backend='triton'" in result.stderr and "before Triton is imported" in result.stderr
