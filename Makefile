# Two commands for everybody: `make demo` and `make test`. Each makes .venv first, from requirements.lock.
.PHONY: demo test check notebooks clean
PYTHON ?= python3
BIN := .venv/bin
PACKAGE := $(shell find eve_pyro models guides -name '*.py')
NOTEBOOKS := $(patsubst examples/%.py,build/notebooks/%.html,$(shell grep -l '%% \[markdown\]' examples/*.py))

.venv/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: .venv/.ready
	$(BIN)/eve-pyro demo

test: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

check: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The examples that are notebooks, executed at full size, as .ipynb and .html.
notebooks: $(NOTEBOOKS)

build/notebooks/%.html: examples/%.py $(PACKAGE) | .venv/.ready
	mkdir -p $(@D)
	$(BIN)/jupytext --quiet --to ipynb --set-kernel python3 --output $(@:.html=.ipynb) $<
	env -u CI PYTHONWARNINGS="ignore:IProgress not found" $(BIN)/jupyter nbconvert --log-level ERROR \
		--coalesce-streams --execute --to notebook --inplace $(@:.html=.ipynb)
	$(BIN)/jupyter nbconvert --log-level ERROR --to html $(@:.html=.ipynb)

clean:
	rm -rf .venv
