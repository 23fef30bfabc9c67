# Every target first makes the project's own environment in .venv; the system's Python is only
# asked to create it.  Another interpreter: make test PYTHON=python3.13

PYTHON ?= python3
RUN    := .venv/bin/python -m
# A worker that has run out of tests takes some of another's.
PYTEST := $(RUN) pytest -n auto --maxprocesses 8 --dist worksteal
# What is never imported need not be compiled.
PIP    := $(RUN) pip install --no-input --no-compile --disable-pip-version-check --quiet -c constraints.txt

# The editable install links file by file, so a new, renamed or deleted file needs another one.  The
# stamp's name therefore holds a digest of the list of files, and of what decides the installation.
# It lies in build/, beside the links, so that removing either of .venv and build/ is noticed.
DIGEST := $(shell { pwd; cat pyproject.toml constraints.txt; \
    find models inference -type f ! -name '*.py[co]' ! -name '.*' | LC_ALL=C sort; } | cksum | tr ' ' -)
READY  := build/ready-$(DIGEST)

# Random models against Pyro's enumeration.  One of them again, as a program of its own:
# .venv/bin/python -m tests.fuzz --seed 17 --show
SEED   ?= 0
MODELS ?= 1000
DATA_SETS ?= 500
JOBS   ?= $(shell nproc 2>/dev/null || echo 1)

.PHONY: test thorough processors demo lint tutorials bench speed fuzz coverage clean
.DEFAULT_GOAL := test

# One thread for each worker: the tensors of the tests are small, and the workers fill the cores.
test: $(READY)
	OMP_NUM_THREADS=1 $(PYTEST)

# The same with further cases, and with all tutorials.
thorough: $(READY)
	OMP_NUM_THREADS=1 $(PYTEST) -m 'thorough or not thorough'

# The tests once more as other processors would run them: without vector instructions, with those
# of another kernel of OpenBLAS, and with two threads for each operation.
processors: $(READY)
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default OPENBLAS_CORETYPE=Haswell \
	    $(PYTEST) -q
	OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -q

demo: $(READY)
	.venv/bin/ember demo

lint: $(READY)
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

# Executes each tutorial script and writes the notebook beside it; tqdm's advice to install widgets
# is kept out of the notebook.
tutorials: export PYTHONWARNINGS = ignore:IProgress not found
tutorials: $(READY)
	@for script in $$(grep -l '^# %%' tutorials/*.py); do \
	    $(RUN) jupytext --quiet --to ipynb --set-kernel python3 "$$script" && \
	    .venv/bin/jupyter-execute --inplace "$${script%.py}.ipynb" || exit 1; \
	done

# Threads that wait actively slow each other down on a busy machine.
bench: $(READY)
	@for script in tests/benchmarks/bench_*.py; do \
	    OMP_WAIT_POLICY=passive .venv/bin/python "$$script" || exit 1; \
	done

# The table of speeds in tutorials/reference.md, measured anew.
speed: $(READY)
	OMP_WAIT_POLICY=passive $(RUN) tests.benchmarks.speed_table

fuzz: $(READY)
	OMP_NUM_THREADS=1 $(RUN) tests.fuzz --seed $(SEED) --models $(MODELS) --jobs $(JOBS)

# How often 95 % intervals cover the truth, over many data sets of five populations.
coverage: $(READY)
	OMP_NUM_THREADS=1 $(RUN) tests.coverage --data-sets $(DATA_SETS) --jobs $(JOBS)

clean:
	rm -rf .venv build dist pyro_ember.egg-info

# setuptools comes first, so that linking again needs no build environment and no network.
$(READY): .venv/bin/pip
	rm -f build/ready-*
	$(PIP) setuptools
	$(PIP) --no-build-isolation -e '.[dev]'
	mkdir -p build && touch $@

.venv/bin/pip:
	@command -v $(PYTHON) >/dev/null || { echo "Ember needs Python 3.11 or newer; '$(PYTHON)' was not found." \
	    "Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Ember needs Python 3.11 or newer;" \
	    " $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=/path/to/python3")'
	$(PYTHON) -m venv .venv
