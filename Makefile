# `make demo` and `make test` need Python 3.11 or 3.12 and pip, nothing else; both set up .venv first.
#   VENV=system      use the Python of the machine or image and the torch that it brings, which stays as it is
#   PYTHON=python3.12  the Python that .venv is made with
#   PARAMS=params/x.yaml  another run for `make run`

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV   ?= .venv
PARAMS ?= params/demo.yaml

ifeq ($(VENV),system)
  PY    := $(PYTHON)
  READY := outputs/.system-ready
else
  PY    := $(VENV)/bin/python
  READY := $(VENV)/.ready
endif

TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
export OMP_NUM_THREADS ?= 1

# Rented images log in as root, which Jupyter refuses unless it is told.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
AS_ADMIN := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: help demo drive seeds run report test test-browser bench backbones lint check parameters lab setup rocm cuda pictures clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make demo    the seven notebooks on the embedded default, no GPU, no account; then again for the next 6.4 s
demo: $(READY)
	$(PY) -m avomni_lib run params/demo.yaml
	$(PY) -m avomni_lib run params/demo_future.yaml

## make drive   the second run's model at the wheel of a simulated car; what it needs is run first
drive: $(READY)
	$(PY) -m avomni_lib run params/demo_drive.yaml --only 01 02 03 04 05 06 08

## make seeds   the demo in three worlds: mean and spread of the score (15 minutes)
SEEDS := 11 12 13
seeds: $(READY)
	set -e; for seed in $(SEEDS); do $(PY) -m avomni_lib run params/demo.yaml --set run.name=seed_$$seed \
	  --set run.seed=$$seed --set dataset.world.seed=$$seed --set dataset.local_dir=outputs/data/seed_$$seed; done
	$(PY) -m avomni_lib.evaluation.comparison $(SEEDS:%=outputs/seed_%)

## make run     the same for PARAMS=params/mi300x.yaml
run: $(READY)
	$(PY) -m avomni_lib run $(PARAMS)

## make report  a run's executed notebooks as pages that need no network, for PARAMS=params/demo.yaml
report: $(READY)
	$(PY) -m avomni_lib.notebook.pages.web $(PARAMS)

## make test    lint, types and every test but the browser's, two files at a time (TESTS=1 one after another)
TESTS ?= 2
# In the order of the folders, not by the number of tests: the notebooks' few take longest and come first.
# These kill processes and fill disks at moments of their work: beside others the moment is over
# before it is seen.
ALONE := $(wildcard tests/test_*_kills.py) tests/test_workers.py tests/test_prefetch.py
test: $(READY) lint
	$(PY) -m pytest -n $(TESTS) --dist loadfile --no-loadscope-reorder $(ALONE:%=--ignore=%)
	$(PY) -m pytest $(ALONE)

## make test-browser  the notebooks in JupyterLab and Voilà, in a chromium (Debian's is installed if there is none)
CHROMIUM = command -v chromium || command -v chromium-browser || command -v google-chrome || command -v chrome
test-browser: $(READY)
	@{ $(CHROMIUM); } > /dev/null && fc-list 2> /dev/null | grep -qi dejavu || \
	  { $(AS_ADMIN) apt-get update -q && $(AS_ADMIN) apt-get install -y -q chromium fonts-dejavu fontconfig; } || true
	@{ $(CHROMIUM); } > /dev/null || { echo "no chromium, and apt-get could not install one: the notebooks' pages are not tested"; exit 1; }
	$(PY) -m pytest -n $(TESTS) --dist loadfile tests/browser

## make bench   decoding, ETL, catalog and loader measured on this machine, into outputs/benchmarks (22 minutes)
bench: $(READY)
	$(PY) -m tests.benchmarks.decode
	$(PY) -m tests.benchmarks.catalog
	$(PY) -m tests.benchmarks.etl
	$(PY) -m tests.benchmarks.loader

## make backbones  a small model of each family from scratch on the same rendered drives, one table (an hour on one core)
backbones: $(READY)
	$(PY) -m avomni_world.compare_backbones

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

## make check   lint, types and the fast tests, in two minutes
# Fast tests are of files that start no process and train, render, encode and serve nothing.
FAST := $(wildcard $(addprefix tests/test_, backoff.py baselines.py bootstrap.py disk_budget.py cache_page.py \
  checkpoints.py choice_cost.py claims.py comparison.py manoeuvre.py metrics.py packaging.py \
  slices.py split.py targets*.py tiling.py trajector*.py windows.py))
check: lint
	$(PY) -m pytest -q -n $(TESTS) --dist loadfile $(FAST)

## make parameters  the table of docs/parameters.md, from the schema
parameters: $(READY)
	$(PY) -m tests.parameter_page

## make lab     JupyterLab on the notebooks
lab: $(READY)
	$(PY) -m jupyter lab $(AS_ROOT) --notebook-dir=. notebooks

## make setup   only the environment
setup: $(READY)

# torch first and alone: with the CPU build present nothing below asks for another one. The +cpu in the version keeps
# the CUDA build of several GB out, whichever index answers first.
$(VENV)/.ready: pyproject.toml constraints-cpu.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 13) else \
	  f"Python 3.11 or 3.12 is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --retries 1 --extra-index-url $(TORCH_CPU_INDEX) -c constraints-cpu.txt torch
	$(PY) -m pip install --quiet -c constraints-cpu.txt -e '.[train,scale,world,test]'
	touch $@

# A rented image brings a torch built for its card: everything else is installed around exactly that one.
outputs/.system-ready: pyproject.toml constraints-rocm7.2.txt
	$(PY) -c 'import torch; print(f"torch=={torch.__version__}")' > outputs/.own-versions.txt || \
	  { echo "VENV=system uses the image's own torch, and $(PY) has none: use make demo, make rocm or make cuda"; exit 1; }
	grep -vE '^(torch|torchvision|unsloth)' constraints-rocm7.2.txt >> outputs/.own-versions.txt
	$(PY) -m pip install --quiet -c outputs/.own-versions.txt -e '.[train,scale,world,test]'
	touch $@

## make rocm    an AMD machine: .venv with ROCm 7.2's torch (ROCM=6.4 for the older one). Not tested on the card.
# The order matters: torch from the ROCm index, then our set under the constraints (which name that very torch), then
# Unsloth with --no-deps, because its dependencies bring PyPI's triton, which unpacks over ROCm's (both are the folder
# site-packages/triton), and xformers, which is CUDA only.
ROCM ?= 7.2
rocm:
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -c constraints-rocm$(ROCM).txt --index-url https://download.pytorch.org/whl/rocm$(ROCM) torch torchvision
	$(PY) -m pip install -c constraints-rocm$(ROCM).txt --extra-index-url https://download.pytorch.org/whl/rocm$(ROCM) -e '.[train,scale,world,test]'
	$(PY) -m pip install -c constraints-rocm$(ROCM).txt --no-deps unsloth unsloth_zoo
	$(PY) -m pip install -c constraints-rocm$(ROCM).txt cut-cross-entropy --no-deps
	$(PY) -m pip install tyro msgspec typer structlog hf_transfer einops protobuf sentencepiece
	touch $(VENV)/.ready

## make cuda    an NVIDIA machine: .venv with PyPI's torch (CUDA) and Unsloth
cuda:
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -c constraints-cuda.txt torch torchvision
	$(PY) -m pip install -c constraints-cuda.txt -e '.[train,gpu,scale,world,test]'
	touch $(VENV)/.ready

## make pictures  the pages' pictures, from the demo's run
pictures: demo
	mkdir -p docs
	cp outputs/demo/04_tiles/figures/tiles.png docs/tiles.png
	cp outputs/demo/05_train/figures/before_after.png docs/before_after.png
	cp outputs/demo/06_evaluate/figures/ladder.png docs/ladder.png
	cp outputs/demo/06_evaluate/figures/predicted.png docs/predicted.png
	$(PY) -m avomni_world.portrait docs/world.png

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis
