"""What is said of a torchvision that is absent, or built for another torch: one line, and what to install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mstar_engine.models.image_library import misfit, processor_fault

SOURCE = Path(__file__).parents[2]


@pytest.mark.parametrize("error", [ValueError("one line\nand another"), OSError("one line"), ImportError("one line ")])
def test_other_errors_are_their_first_line(error: Exception) -> None:
    assert processor_fault(error) == "one line" and misfit(error) is None


def test_a_torchvision_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """As a wheel for another torch: there by name and version, it fails where it asks torch for its operators."""
    (tmp_path / "torchvision-9.8.7.dist-info").mkdir()
    (tmp_path / "torchvision-9.8.7.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 9.8.7\n")
    (tmp_path / "torchvision").mkdir()
    asked = "import torch\n\ntorch._C._dispatch_has_kernel_for_dispatch_key('torchvision::nms', 'Meta')\n"
    (tmp_path / "torchvision" / "__init__.py").write_text(asked)
    paths = [str(tmp_path), str(SOURCE), str(SOURCE / "kernels")]
    ended = subprocess.run(
        [sys.executable, "-m", "mstar_engine.run", "smoke", "--dry_run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("mstar_engine: torchvision 9.8.7 does not fit torch ")
    assert "pip uninstall torchvision" in ended.stderr and ended.stderr.count("\n") == 1
