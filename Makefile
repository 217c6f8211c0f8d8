# Everything runs in .venv, which `make setup` creates. RNNFAST_CUDA, TORCH_CUDA_ARCH_LIST, RNNFAST_DEBUG, CUDA_HOME
# and CXX steer the build: docs/environment.md.
.PHONY: setup demo test test-all lint docs bench gpu-check rehearse sdist wheel check-dist clean FORCE
.DELETE_ON_ERROR:
SHELL := /bin/bash

VENV := .venv
PY := $(VENV)/bin/python
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

# The Python and torch of .venv, where they are asked for: make test PYTHON=3.12 TORCH=2.11.0
PYTHON :=
TORCH :=
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11 python3.10 python
VERSION_CHECK := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 15))

# The pip nvcc is a large download: only where it can be of use, or is asked for.
WANT_NVCC := $(shell if [ "$$RNNFAST_CUDA" = 0 ]; then :; elif [ "$$RNNFAST_CUDA" = 1 ] || [ "$$FORCE_CUDA" = 1 ] || \
  [ "$$TORCH_CUDA_ARCH_LIST" ] || nvidia-smi -L >/dev/null 2>&1; then echo yes; fi)
# Stamps, in the order in which they are made: what a build needs, the extension, the package with the other tools.
TOOLS := $(VENV)/.stamp-tools$(if $(WANT_NVCC),-cuda)
EXT := $(VENV)/.stamp-ext
INSTALLED := $(VENV)/.stamp-installed
DOCS := $(VENV)/.stamp-docs
SETTINGS := $(VENV)/.settings
ASKED := $(VENV)/.asked
RELEASE := $(VENV)/.stamp-release

BUILD_FILES := setup.py $(wildcard rnnfast/_build/*.py)
CSRC := $(shell find csrc -type f 2>/dev/null)

# The texts of the demo and of the tests: from a folder that several clones share, where one lies beside this clone; else
# from the cache, else they are downloaded (docs/demo.md).
ifeq ($(origin RNNFAST_DATA),undefined)
ifneq ($(wildcard ../shared/data),)
export RNNFAST_DATA := $(abspath ../shared/data)
endif
endif

# $(STEP) "what" command …: says what it does, and how long it took.
STEP = step() { local what=$$1 from=$$SECONDS; shift; echo "== $$what"; \
  "$$@" || { local status=$$?; echo "== $$what: failed" >&2; exit $$status; }; \
  echo "== $$what: done in $$((SECONDS - from)) s"; }; step

setup: $(INSTALLED) $(EXT)

$(PY):
	@for p in $(if $(PYTHON),python$(PYTHON),$(PYTHONS)); do \
	  if "$$p" -c '$(VERSION_CHECK)' 2>/dev/null; then exec "$$p" -m venv $(VENV); fi; \
	done; echo "make setup: no Python $(or $(PYTHON),3.10 to 3.14) on PATH" \
	  "(tried: $(if $(PYTHON),python$(PYTHON),$(PYTHONS)))" >&2; exit 1

# A .venv of another Python than the one asked for is not used; one of another torch gets that torch.
$(ASKED): FORCE | $(PY)
	@$(PY) -c 'import sys; has = "%d.%d" % sys.version_info[:2]; has == (sys.argv[1] or has) or \
	  sys.exit(f"make setup: $(VENV) has Python {has}, not {sys.argv[1]}: make clean, or VENV=another")' "$(PYTHON)"
	@if [ ! -e $@ ] || { [ "$(TORCH)" ] && [ "$(TORCH)" != "$$(cat $@)" ]; }; then echo "$(TORCH)" > $@; fi

$(TOOLS): pyproject.toml $(ASKED)
	@$(STEP) "installing torch and the tools of the build (gigabytes, where nothing is cached)" \
	  $(PY) -m pip install -q "setuptools>=77" wheel ninja "torch$(if $(TORCH),==$(TORCH),>=2.11)" \
	  $(if $(WANT_NVCC),$(NVCC_WHEELS))
	@touch $@

# Read from the extras, so that the pins stand in one place.
NVCC_WHEELS = $$($(PY) -c 'import re, pathlib; t = pathlib.Path("pyproject.toml").read_text(); print(*re.findall(r"\"(nvidia-[^\"]+)\"", t))')

$(SETTINGS): FORCE | $(PY)
	@echo "$$RNNFAST_CUDA|$$FORCE_CUDA|$$TORCH_CUDA_ARCH_LIST|$$RNNFAST_DEBUG|$$CUDA_HOME|$$CXX|$$RNNFAST_PORTABLE|$$RNNFAST_FAST_TANH" > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# Here and not by the `pip install` below, because pip hides what a build prints.
$(EXT): $(TOOLS) $(SETTINGS) $(BUILD_FILES) $(CSRC)
	@$(STEP) "compiling the extension" $(PY) setup.py -q build_ext --inplace
	@touch $@

$(INSTALLED): pyproject.toml setup.py rnnfast/_version.py | $(EXT)
	@$(STEP) "installing rnnfast and what its tests and tools need" \
	  $(PY) -m pip install -q --no-build-isolation -e ".[dev]"
	@touch $@

# The quick tier: does it work here? CONTRIBUTING.md
test: setup
	@$(STEP) "compiling the C++ tests" $(CMAKE_BUILD) --target rnnfast_tests
	ctest --test-dir build/cmake --output-on-failure -L core
	$(PYTEST) --tier quick $(PYTEST_ARGS)

# All of it: what CI runs.
test-all: lint
	@$(STEP) "compiling the C++ tests, the kernels on the executor among them" $(CMAKE_BUILD)
	ctest --test-dir build/cmake --output-on-failure
	$(PYTEST) $(PYTEST_ARGS)

# Two at least: many tests wait for processes of their own.
JOBS := $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 2 ? 2 : n > 8 ? 8 : n)))
PYTEST = $(PY) -m pytest -n $(JOBS) --dist worksteal
CMAKE_BUILD = bash -c 'cmake -S . -B build/cmake -G Ninja -DCMAKE_BUILD_TYPE=Release --log-level=WARNING && \
  exec cmake --build build/cmake "$$@"' cmake

lint: setup
	ruff check .
	ruff format --check .
	mypy rnnfast
	find csrc tests/cpp tests/deploy -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs clang-format --dry-run -Werror
	check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	check-jsonschema -q --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	check-jsonschema -q --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	check-jsonschema -q --builtin-schema vendor.dependabot .github/dependabot.yml
	check-jsonschema -q --builtin-schema vendor.citation-file-format CITATION.cff

# The site of docs/, in build/site; to read it: python3 -m http.server -d build/site. Needs .venv, but neither torch nor
# the extension, and no network once its tools are there.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(DOCS)
	@$(STEP) "building the site in build/site" $(PY) -m mkdocs build --strict --quiet

$(DOCS): pyproject.toml | $(PY)
	@$(STEP) "installing what makes the site" $(PY) -m pip install -q $(call packages,docs)
	@touch $@

demo: setup
	$(PY) -m rnnfast demo

bench: setup
	$(PY) -m benchmarks.run

# With .venv, which may take long to install, and the time begins after that. Without network:
# python3 benchmarks/gpu_check/first.py. ARGS are those of first.py: docs/gpu-check.md.
gpu-check:
ifeq (,$(findstring --prebuilt,$(ARGS))$(findstring --dry-run,$(ARGS)))
	@nvidia-smi -L || { echo "make gpu-check: no NVIDIA GPU here (nvidia-smi found none)" >&2; exit 1; }
	RNNFAST_CUDA=1 $(MAKE) --no-print-directory setup
endif
	$(PY) benchmarks/gpu_check/first.py $(ARGS)

# The same without a GPU, and without .venv: in a new environment of a Python and a torch, with nothing to download once
# that is there. Slow, and not part of CI. ARGS are those of benchmarks/gpu_check/rehearse.py.
rehearse:
	@for p in $(PYTHONS); do \
	  if "$$p" -c '$(VERSION_CHECK)' 2>/dev/null; then \
	    exec "$$p" -m benchmarks.gpu_check.rehearse --torch $(or $(TORCH),2.11.0) --python $(or $(PYTHON),3.12) $(ARGS); fi; \
	done; echo "make rehearse: no Python 3.10 to 3.14 on PATH (tried: $(PYTHONS))" >&2; exit 1

# What a release uploads, into dist: CONTRIBUTING.md. The wheel is for every Python and torch (docs/build.md).
$(RELEASE): pyproject.toml | $(PY)
	@$(STEP) "installing what makes a release" $(PY) -m pip install -q $(call packages,release)
	@touch $@

# The names in an extra of pyproject.toml.
packages = $$($(PY) -c 'import re, pathlib; t = pathlib.Path("pyproject.toml").read_text(); \
  print(*re.findall(r"^  \"(.+?)\"", t.split("\n$(1) = [")[1].split("\n]")[0], re.MULTILINE))')

WHEEL_CUDA := $(if $(filter 1,$(RNNFAST_CUDA)),1,0)

sdist: $(RELEASE)
	$(PY) -m build --sdist --no-isolation --outdir dist .

# auditwheel says how old a glibc may be. The libraries that torch brings along are not packed. With
# RNNFAST_CUDA=1 it has the kernels for GPUs, and goes into dist/cuda: its name is the other's.
wheel: $(TOOLS) $(RELEASE)
	rm -rf build/wheel
	RNNFAST_PORTABLE=1 RNNFAST_CUDA=$(WHEEL_CUDA) $(PY) -m build --wheel --no-isolation --outdir build/wheel .
	auditwheel repair --wheel-dir dist$(if $(filter 1,$(WHEEL_CUDA)),/cuda) --exclude 'libtorch*' --exclude 'libcudart*' \
	  build/wheel/*.whl

# Installed as a user does it, in an environment of its own that sees the torch of .venv.
check-dist: $(TOOLS) $(RELEASE)
	twine check --strict dist/*
	$(PY) -m tests.build.installed dist/*

clean:
	rm -rf build dist .venv *.egg-info rnnfast/_C*.so rnnfast/_cpu.abi3.so rnnfast/librnnfast*.so rnnfast/_build_info.json \
	  .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
