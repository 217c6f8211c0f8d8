# Everything runs in .venv, which `make setup` creates. RNNFAST_CUDA, TORCH_CUDA_ARCH_LIST, RNNFAST_DEBUG, CUDA_HOME
# and CXX steer the build: docs/environment.md.
.PHONY: setup demo test lint bench gpu-check clean FORCE
.DELETE_ON_ERROR:
SHELL := /bin/bash

VENV := .venv
PY := $(VENV)/bin/python
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

PYTHONS := python3 python3.14 python3.13 python3.12 python3.11 python3.10 python
VERSION_CHECK := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 15))

# The pip nvcc is a large download: only where it can be of use, or is asked for.
WANT_NVCC := $(shell if [ "$$RNNFAST_CUDA" = 1 ] || { [ "$$RNNFAST_CUDA" != 0 ] && nvidia-smi -L >/dev/null 2>&1; }; then echo yes; fi)
# Stamps, in the order in which they are made: what a build needs, the extension, the package with the other tools.
TOOLS := $(VENV)/.stamp-tools$(if $(WANT_NVCC),-cuda)
EXT := $(VENV)/.stamp-ext
INSTALLED := $(VENV)/.stamp-installed
SETTINGS := $(VENV)/.settings

BUILD_FILES := setup.py $(wildcard rnnfast/_build/*.py)
CSRC := $(shell find csrc -type f 2>/dev/null)

ifeq ($(origin RNNFAST_DATA),undefined)
ifneq ($(wildcard ../shared/data),)
export RNNFAST_DATA := $(abspath ../shared/data)
endif
endif

setup: $(INSTALLED) $(EXT)

$(PY):
	@for p in $(PYTHONS); do \
	  if "$$p" -c '$(VERSION_CHECK)' 2>/dev/null; then exec "$$p" -m venv $(VENV); fi; \
	done; echo "make setup: no Python 3.10 to 3.14 on PATH (tried: $(PYTHONS))" >&2; exit 1

$(TOOLS): pyproject.toml | $(PY)
	$(PY) -m pip install -q "setuptools>=77" wheel ninja "torch>=2.9" $(if $(WANT_NVCC),$(NVCC_WHEELS))
	@touch $@

# Read from the `cuda` extra, so that the pins stand in one place.
NVCC_WHEELS = $$($(PY) -c 'import re, pathlib; t = pathlib.Path("pyproject.toml").read_text(); print(*re.findall(r"\"(nvidia-[^\"]+)\"", t))')

$(SETTINGS): FORCE | $(PY)
	@echo "$$RNNFAST_CUDA|$$TORCH_CUDA_ARCH_LIST|$$RNNFAST_DEBUG|$$CUDA_HOME|$$CXX" > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# Here and not by the `pip install` below, because pip hides what a build prints.
$(EXT): $(TOOLS) $(SETTINGS) $(BUILD_FILES) $(CSRC)
	$(PY) setup.py -q build_ext --inplace
	@touch $@

$(INSTALLED): pyproject.toml setup.py rnnfast/_version.py | $(EXT)
	$(PY) -m pip install -q --no-build-isolation -e ".[dev]"
	@touch $@

test: setup
	cmake -S . -B build/cmake -G Ninja -DCMAKE_BUILD_TYPE=Release --log-level=WARNING
	cmake --build build/cmake
	ctest --test-dir build/cmake --output-on-failure
	$(PY) -m pytest $(PYTEST_ARGS)

lint: setup
	ruff check .
	ruff format --check .
	mypy rnnfast
	find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs clang-format --dry-run -Werror

demo: setup
	$(PY) -m rnnfast demo

bench: setup
	$(PY) -m benchmarks.run

# ARGS=--prebuilt: what is installed is checked, nothing is compiled. ARGS=--dry-run: without a GPU. docs/gpu-check.md
gpu-check:
ifeq (,$(findstring --dry-run,$(ARGS)))
	@nvidia-smi -L || { echo "make gpu-check: no NVIDIA GPU here (nvidia-smi found none)" >&2; exit 1; }
endif
ifeq (,$(findstring --prebuilt,$(ARGS))$(findstring --dry-run,$(ARGS)))
	RNNFAST_CUDA=1 $(MAKE) --no-print-directory setup
	$(PY) -m benchmarks.gpu_check --build-rates
endif
	$(PY) -m benchmarks.gpu_check $(ARGS)

clean:
	rm -rf build dist .venv *.egg-info rnnfast/_C*.so rnnfast/_build_info.json \
	  .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
