# make demo | test | parity | table | lint | format | clean. Needs Python 3.11 or newer and nothing else:
# the virtual environment .venv is made, and refreshed whenever setup.cfg changes.

PYTHON ?= python3
# Arguments for pytest, for example PYTEST_ARGS="-n 2 tests/models". The tests of a file share programs and models.
PYTEST_ARGS ?= -n 2 --dist loadfile
# `make table` compares all editing methods: the paper's table, on 200 facts of a small model. It resumes where it was
# stopped. TABLE_ARGS are flags of eval.compare, for example TABLE_ARGS="--algs=ROME,KN --output=table.md".
TABLE_ARGS ?=
# `make parity` installs torch too, pinned, and runs the tests that need it: live comparisons with Hugging Face models.
# With PARITY=1 `make test` runs them among the others.
PARITY ?=
TORCH ?= 2.13.0

VENV := .venv
PY := $(VENV)/bin/python
REQUIREMENTS_base := -e .
REQUIREMENTS_table := -e '.[eval,plot]'
REQUIREMENTS_test := -e '.[test]'
REQUIREMENTS_parity := -e '.[test,parity]' 'torch==$(TORCH)'
CHECKS := $(VENV)/.installed-$(if $(filter 1,$(PARITY)),parity,test)

.PHONY: demo test parity table lint format clean

demo: $(VENV)/.installed-base
	$(PY) -m eval.edit

test: $(CHECKS)
	$(PY) -m pytest $(PYTEST_ARGS)

parity: $(VENV)/.installed-parity
	$(PY) -m pytest $(PYTEST_ARGS) -m parity

table: $(VENV)/.installed-table
	$(PY) -m eval.compare $(TABLE_ARGS)

lint: $(CHECKS)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(CHECKS)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-%: setup.cfg pyproject.toml | $(VENV)/.created
	@echo "Installing rome_jax into $(VENV); the first time this takes a minute or two."
	$(PY) -m pip install --quiet --disable-pip-version-check $(REQUIREMENTS_$*)
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
