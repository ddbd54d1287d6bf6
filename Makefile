# Everything a reader types. Set-up happens by itself, once, in .venv.
PAPER ?=
PROFILE ?=
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1
export PYTHONUTF8 := 1

.PHONY: help setup repro test lint lab bench check clean

help:  ## list these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(READY)  ## make the virtual environment with the pinned packages

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else 1)' \
	  || { echo "tokenarium needs Python 3.11 or newer; name one with PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "Python lacks venv: install it with 'apt-get install python3-venv'"; exit 2; }
	@command -v git >/dev/null || { echo "git is missing: install it with 'apt-get install git'"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --requirement requirements.lock
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	$(VENV)/bin/python -W ignore -m jupyter_client.kernelspecapp install --log-level=ERROR --sys-prefix --name tokenarium lib/tokenarium/run/warm/kernelspec
	@touch $@

repro: $(READY)  ## reproduce PAPER=slug (all papers without it), at PROFILE=smoke|cpu|gpu (cpu without it)
	@tokenarium repro $(PAPER) $(if $(PROFILE),--profile $(PROFILE))

test: $(READY) lint  ## run every test: methods, data, pipeline, and each notebook at smoke
	@OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile

lint: $(READY)  ## ruff, format and lint, on code and notebooks
	@ruff check . && ruff format --check .

lab: $(READY)  ## open JupyterLab at the notebooks
	@JUPYTER_DEFAULT_PROVISIONER_NAME=tokenarium-warm jupyter lab --ip=127.0.0.1 notebooks

bench: $(READY)  ## time matching, OMP, caches, taps, GPU leases, parallel repro, warm kernels, BPE, visual tokens
	@python -m benchmarks.matching
	@python -m benchmarks.omp
	@python -m benchmarks.kv_cache
	@python -m benchmarks.taps
	@python -m benchmarks.gpu_lease
	@python -m benchmarks.parallel_repro
	@python -m benchmarks.warm_kernels
	@python -m benchmarks.bpe
	@python -m benchmarks.visual_tokens

check: $(READY)  ## say whether the committed results belong to this code, without running anything
	@tokenarium check

clean:  ## remove the virtual environment and scratch runs; data, models and reports stay
	rm -rf $(VENV) .tokenarium
