# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -name '*.cpp' -o -name '*.h')
ARGS ?=
BENCHMARKS := sampling scheduler_step step_rewards tree_attention rollout_throughput prm_scoring temperature_sweep answers data_reading

.DEFAULT_GOAL := help
.PHONY: help setup run test test-cpp bench bench-gpu lint clean

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## create .venv, install, build the C++ core

$(READY): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mstar_engine needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Set PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "mstar_engine needs Python's venv. Install it: apt-get install python3-venv"; exit 1; }
	@command -v $(firstword $(CXX)) >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { echo "mstar_engine needs a C++20 compiler. Install one: apt-get install g++"; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig; assert os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h"))' 2>/dev/null || { echo "mstar_engine needs Python's headers. Install them: apt-get install python3-dev"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing mstar_engine and its dependencies into $(VENV) (some minutes the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $(READY)

run: $(READY)  ## self-evolve the default model on handwritten digits (runs/digits; ARGS='key=value ...')
	@$(BIN)/python -m mstar_engine.run --resume $(ARGS)

test: $(READY)  ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-cpp: $(READY)  ## C++ unit tests
	@$(BIN)/pip install --quiet --disable-pip-version-check cmake
	@$(BIN)/cmake -S . -B build/cpp -DMSTAR_PYTHON=OFF -DMSTAR_TESTS=ON -DCMAKE_BUILD_TYPE=Release > build/cpp.log && $(BIN)/cmake --build build/cpp -j >> build/cpp.log && $(BIN)/ctest --test-dir build/cpp --output-on-failure

bench: $(READY)  ## run every benchmark; results go to build/bench (ARGS=--quick for a short look)
	@mkdir -p build/bench
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --json build/bench/$$name.json $(ARGS) || exit 1; done

bench-gpu: $(READY)  ## on a GPU: its tests, then every measurement (ARGS='--only sampling', ARGS='--tiny --device cpu' for a rehearsal)
	@$(BIN)/python -m benchmarks.gpu_suite $(ARGS)

lint: $(READY)  ## check style
	@test -x $(BIN)/ruff || $(BIN)/pip install --quiet --disable-pip-version-check 'ruff>=0.6'
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:  ## remove what was built (keeps runs/)
	rm -rf build $(VENV) *.egg-info kernels/mstar_kernels/_C*.so
