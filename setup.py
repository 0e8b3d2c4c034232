"""Builds the C++ core (csrc/) into `mstar_kernels._C` with CMake.

Everything declarative is in pyproject.toml. The build folder persists under build/, so a second
`pip install --no-build-isolation -e .` compiles only what changed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def require_compiler() -> None:
    """Stop with one line when no C++ compiler is there; CMake's own message fills a screen."""
    named = os.environ.get("CXX", "").split()
    if not any(shutil.which(cxx) for cxx in [*named[:1], "c++", "g++", "clang++"]):
        sys.exit("mstar_engine: no C++20 compiler found. Install one: apt-get install g++ (or set CXX).")


class CMakeBuild(build_ext):
    """Configure, build and install the extension beside the Python files of its package."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        require_compiler()
        prefix = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        # The build environment of an isolated install is a new folder each time, so its ninja and
        # pybind11 are named on every configure instead of being trusted to the CMake cache.
        ninja = shutil.which("ninja")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        for command in (
            [
                "cmake",
                "-S",
                ROOT,
                "-B",
                build,
                *generator,
                "-DCMAKE_BUILD_TYPE=Release",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            ],
            ["cmake", "--build", build, "--target", "_C"],
            ["cmake", "--install", build, "--prefix", prefix],
        ):
            subprocess.run([str(part) for part in command], check=True)


setup(ext_modules=[Extension("mstar_kernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
