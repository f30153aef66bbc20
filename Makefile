# Two commands on a fresh clone: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Each core has a process of its own, that runs one file at a time. `make test XDIST=` runs all in one.
XDIST ?= -n logical --maxprocesses 8 --dist loadfile

# What the oldest versions must do: everything that needs neither the exporters' quantizers nor torchao.
OLDEST ?= tests/test_config.py tests/test_remote_code.py tests/training tests/pruning tests/distillation tests/hub \
	tests/card tests/report tests/measurement tests/architecture
OLDEST_VENV ?= .venv-oldest
OLDEST_STAMP := $(OLDEST_VENV)/.installed

.PHONY: demo test test-oldest lint types slow gpu bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $(STAMP)

$(OLDEST_STAMP): pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --quiet -c constraints-oldest.txt -e '.[test-oldest]'
	touch $(OLDEST_STAMP)

demo: $(STAMP)
	$(BIN)/hf-compress run digits

test: $(STAMP) lint types
	$(BIN)/python -m pytest $(XDIST)

test-oldest: $(OLDEST_STAMP)
	$(OLDEST_VENV)/bin/python -m pytest $(XDIST) $(OLDEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

slow: $(STAMP)
	$(BIN)/python -m pytest $(XDIST) -m slow

gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

bench: $(STAMP)
	$(BIN)/python scripts/bench_trainer.py

clean:
	rm -rf $(VENV) $(OLDEST_VENV) runs .pytest_cache .mypy_cache .ruff_cache
