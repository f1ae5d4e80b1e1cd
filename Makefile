# The project's commands; `make help` lists them. Works with GNU make 3.81 and later.

PYTHON ?= python3
VENV ?= .venv
CONFIG = configs/quickstart.py

bin := $(VENV)/bin
UV ?= $(firstword $(wildcard $(bin)/uv) uv)
# These have no wheel; they are pure Python and built by the setuptools that the lock pins. Nothing is compiled.
no_wheel := cellpylib python-baseconv varint zss
wheels_only := --only-binary :all: $(addprefix --no-binary ,$(no_wheel))
pip := $(bin)/python -m pip --disable-pip-version-check
pip_install := $(pip) install -qq --no-deps $(wheels_only)

WORKERS ?= 2
# The tests' programs are tiny, and XLA compiles them in an eighth of the time so; `make test-all` tests what users run.
quickly := JAX_DISABLE_MOST_OPTIMIZATIONS=true XLA_FLAGS="$$XLA_FLAGS --xla_cpu_use_fusion_emitters=false"
# Of an environment that keeps no bytecode every worker would rewrite all tests again, and every process compile us.
bytecode := PYTHONDONTWRITEBYTECODE=
pytest := $(bytecode) JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(bin)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help run test test-all lint lock contracts clean install install-dev

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.installed  ## run the quickstart, and go on where an earlier run stopped (CONFIG=..., ARGS=...)
	$(bytecode) $(bin)/python -m experiments.run --config $(CONFIG) --resume $(ARGS)

test: $(VENV)/.installed-dev  ## run the tests, but for the slow ones (ARGS=... are pytest's; WORKERS=1 for one at a time)
	$(quickly) $(pytest) -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-dev  ## run all tests
	$(pytest) $(ARGS)

lint: $(VENV)/.installed-dev  ## check style, formatting and types
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

install: $(VENV)/.installed  ## create the environment: what `make run` needs (PYTHON=python3.12 to choose, VENV=DIR)
install-dev: $(VENV)/.installed-dev  ## ... and what tests and lint need

$(VENV)/.installed: requirements.lock
	@if [ -x $(bin)/python ]; then python=$(bin)/python; else python=$(PYTHON); fi; \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  echo "rlswarm_jax needs Python 3.11, 3.12 or 3.13, but '$$python --version' says: `"$$python" --version 2>&1`. Say which to use, for example: make PYTHON=python3.12 $(MAKECMDGOALS)"; \
	  exit 1; }
	@$(pip) --version >/dev/null 2>&1 || { \
	  echo "creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@if [ -e $@ ]; then echo "bringing $(VENV) up to date with requirements.lock"; \
	else echo "installing requirements.lock into $(VENV): about 1.4 GB, 2 to 3 minutes"; fi
	@$(pip_install) `sed -n 's/^\(setuptools==[^ ]*\).*/\1/p' requirements.lock`
	@$(pip_install) --no-build-isolation -r requirements.lock
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	@echo "installing the tools for tests and lint into $(VENV)"
	@$(pip_install) -r requirements-dev.lock
	@touch $@

# The lock keeps the pins that still fit; `make lock UPGRADE=1` takes the newest versions.
resolve := pip compile pyproject.toml --universal --python-version 3.11 --group build $(wheels_only) \
           --no-emit-index-url --annotation-style line --no-header --quiet $(if $(UPGRADE),--upgrade)

lock:  ## resolve the dependencies of pyproject.toml again (UPGRADE=1 for the newest versions)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: 'make install-dev' installs it"; exit 1; }
	@set -e; new=`mktemp -d`; trap 'rm -rf "$$new"' EXIT; \
	for lock in requirements.lock requirements-dev.lock; do if [ -f $$lock ]; then cp $$lock $$new/; fi; done; \
	$(UV) $(resolve) -o $$new/requirements.lock; \
	{ echo "# Everything rlswarm_jax runs on, for CPython 3.11 to 3.13 on Linux and macOS. Made by \`make lock\`:"; \
	  echo "#   uv $(resolve) -o requirements.lock"; \
	  echo "# Install it with \`make install\`, or: pip install --no-deps -r requirements.lock"; \
	  echo "# It is complete, and differs from what its packages ask for in two places (why: [tool.uv] in pyproject.toml):"; \
	  echo "# libp2p asks for fastecdsa==2.3.2, and reasoning-gym for pycosat. Both would need a compiler."; \
	  echo "# All are wheels, but for four pure-Python packages, built by the setuptools below."; \
	  echo "--only-binary :all:"; for name in $(no_wheel); do echo "--no-binary $$name"; done; \
	  cat $$new/requirements.lock; } > requirements.lock; \
	$(UV) $(resolve) --extra dev -c requirements.lock -o $$new/requirements-dev.lock; \
	{ echo "# What the tests and lint need on top of requirements.lock. Made by \`make lock\`:"; \
	  echo "#   uv $(resolve) --extra dev -c requirements.lock"; \
	  echo "# less the lines that are in requirements.lock."; \
	  awk '{ line = $$0; sub(/ *#.*/, ""); if (NR == FNR) seen[$$0] = 1; else if (!($$0 in seen)) print line }' \
	    requirements.lock $$new/requirements-dev.lock; } > requirements-dev.lock
	@echo "wrote requirements.lock and requirements-dev.lock"

contracts := rlswarm_jax/chain/contracts

contracts:  ## compile the contracts again (needs node and npm; nothing else does)
	@command -v npm >/dev/null || { echo "make contracts needs node and npm: it compiles with the solc of $(contracts)/package.json"; exit 1; }
	@set -e; new=`mktemp -d`; trap 'rm -rf "$$new"' EXIT; cp $(contracts)/*.sol $(contracts)/*.json $(contracts)/*.mjs $(contracts)/.npmrc $$new; \
	(cd $$new && npm ci --ignore-scripts --no-audit --no-fund --silent && \
	node compile.mjs Coordinator > coordinator.json && node compile.mjs Court > court.json); \
	cp $$new/coordinator.json $$new/court.json $(if $(TO),$(TO),$(contracts))
	@echo "compiled coordinator.json and court.json in $(if $(TO),$(TO),$(contracts))"

clean:  ## remove the environment and all caches, but never runs/
	@if [ -f $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .jax_cache build dist *.egg-info
	@find . -name __pycache__ -type d -not -path './runs/*' -not -path './.venv/*' -prune -exec rm -rf {} +
