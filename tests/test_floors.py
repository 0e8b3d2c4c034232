"""Each floor imports only floors below it; packages of one floor do not import each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "run": 9,
    "integrations": 9,
    "evolve": 8,
    "report": 7,
    "train": 6,
    "reward": 5,
    "rollout": 4,
    "models": 3,
    "data": 2,
}
LOWEST = 1  # types, config, journal: the modules at the top of the package
FILES = sorted(path for part in ("mstar_engine", "kernels/mstar_kernels") for path in (ROOT / part).rglob("*.py"))


def floor_of(module: list[str]) -> tuple[int, str]:
    """Floor and package of a dotted module name."""
    if module[0] == "mstar_kernels":
        return 0, "mstar_kernels"
    name = module[1] if len(module) > 1 else ""
    return FLOORS.get(name, LOWEST), name if name in FLOORS else ""


def imported(path: Path, module: list[str]) -> list[list[str]]:
    """Dotted names of everything of ours that a file imports, type-checking imports included."""
    package = module if path.name == "__init__.py" else module[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            found += [[*base, alias.name] for alias in node.names]
    return [name for name in found if name[0] in ("mstar_engine", "mstar_kernels")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    relative = path.relative_to(ROOT / "kernels" if "kernels" in path.parts else ROOT)
    module = list(relative.with_suffix("").parts)
    if module[-1] == "__init__":
        module.pop()
    floor, package = floor_of(module)
    for name in imported(path, module):
        below, other = floor_of(name)
        assert below < floor or (below == floor and other == package), (
            f"{relative} (floor {floor}) imports {'.'.join(name)}"
        )


def test_kernels_folder_is_no_package() -> None:
    """An importable top-level `kernels` would shadow the package of that name, which transformers probes for."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "tests" / "__init__.py").exists()
    subprocess.run([sys.executable, "-c", "import transformers"], cwd=ROOT, check=True)


def test_kernels_import_torch_and_triton_only() -> None:
    allowed = {"torch", "triton", "mstar_kernels", "__future__", *sys.stdlib_module_names}
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert {name.split(".")[0] for name in names} <= allowed, path
