PYTHON ?= python

.PHONY: test lint docs smoke

test:  ## the whole suite
	$(PYTHON) -m pytest

lint:  ## style, layout, import rules
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as lint; lint()"

docs:  ## write what documents say of the code
	$(PYTHON) docs/generate.py

smoke:  ## the README's first command
	$(PYTHON) cli.py fit --variant clafs
