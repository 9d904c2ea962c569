PYTHON ?= python

.PHONY: test test-all lint docs smoke

test:  ## what takes minutes
	$(PYTHON) -m pytest -n 2 --dist worksteal

test-all:  ## the slow tests too
	$(PYTHON) -m pytest -n 2 --dist worksteal -m "slow or not slow"

lint:  ## style, layout, import rules
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as lint; lint()"

docs:  ## write what documents say of the code
	$(PYTHON) docs/generate.py

smoke:  ## the README's first command
	$(PYTHON) cli.py fit --variant clafs
