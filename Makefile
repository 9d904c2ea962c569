PYTHON ?= python

.PHONY: test test-all lint docs smoke

test:  ## the default tests, a few minutes
	$(PYTHON) -m pytest -n 2 --dist worksteal

test-all:  ## all tests, including the slow ones
	$(PYTHON) -m pytest -n 2 --dist worksteal -m "slow or not slow"

lint:  ## style, formatting, import contracts
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as lint; lint()"

docs:  ## the generated parts of the documents, and the site in site/
	$(PYTHON) docs/generate.py
	$(PYTHON) -m mkdocs build --strict

smoke:  ## the first command of the README
	$(PYTHON) cli.py fit --variant clafs
