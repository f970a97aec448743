# Every target works on a fresh machine with Python (3.10 or newer, with venv) and a C++ compiler, and needs no other
# command before it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH ?= --compile
GPU_CHECK ?=
TRITON ?= 3.6.0
JOBS ?= 2
SEED ?= 0
CXX_FILES := $(shell find csrc kernels tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
SOURCES := setup.py pyproject.toml requirements-dev.txt $(filter csrc/% kernels/%,$(CXX_FILES))

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench gpu-check kernel-report triton-release cuda-link clean

help:  ## Say what the targets do
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 16

install: $(STAMP)  ## Create .venv with the package, built in place, and everything to develop it

$(STAMP): $(SOURCES) kernels # the folder changes with every leaf that joins it, which an installation must map
	@echo "Installing into $(VENV): PyTorch, the package with its C++ kernels, and the tools (a few minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## Cure a network of a spurious correlation: decoy digits, with and without a prior (seconds, once installed)
	$(BIN)/xattr-cuda demo

test: $(STAMP)  ## Run the tests, a file to a process and JOBS processes at once, on inputs drawn from SEED
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --seed $(SEED) # long files first

lint: $(STAMP)  ## Check style and types: ruff, clang-format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy -p xattr_cuda
	$(BIN)/mypy --cache-dir .mypy_cache/kernels -p kernels.reference -p kernels.triton

format: $(STAMP)  ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(STAMP)  ## Time every case and operator, renew the figures of README.md and docs/ (long, for torch.compile; BENCH= leaves it out: ten minutes)
	$(BIN)/xattr-cuda bench --case all --memory --count --scaling --overhead $(BENCH) --output build/bench --readme README.md
	$(BIN)/python -m pytest benchmarks/operators.py --benchmark-only --benchmark-columns=median,iqr,rounds

kernel-report: $(STAMP)  ## Compile every GPU kernel for every architecture, without a GPU: registers, spills, instructions
	PYTHONPATH=tests $(BIN)/python -m gpuless.kernel_report --output build/kernel-report.json

cuda-link: $(STAMP)  ## Build, link and import the CUDA kernels with a CUDA build of torch, without a GPU; needs nvcc (downloads gigabytes)
	PYTHONPATH=tests $(BIN)/python -m gpuless.cuda_link

triton-release: $(STAMP)  ## Run the tests of the kernels on another release of Triton: make triton-release TRITON=3.6.0
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/triton-$(TRITON) triton==$(TRITON)
	PYTHONPATH=build/triton-$(TRITON) $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --seed $(SEED) tests/gpuless tests/test_tuned.py tests/test_traced.py

gpu-check:  ## On a machine with a GPU, torch and triton, without network or .venv: build, test and time there (under 8 minutes)
	$(PYTHON) benchmarks/gpu_check.py $(GPU_CHECK)

clean:  ## Remove what was built, and the environment
	rm -rf $(VENV) build dist *.egg-info xattr_cuda/*.so
