# Two commands for everybody: `make demo` and `make test`. Each makes .venv first, from requirements.lock.
.PHONY: demo test check clean
PYTHON ?= python3
BIN := .venv/bin

.venv/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: .venv/.ready
	$(BIN)/eve-pyro demo

test: .venv/.ready
	$(BIN)/pytest

check: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv
