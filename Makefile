PYTHON ?= python

.PHONY: test lint docs bench smoke

test:  ## the whole suite
	$(PYTHON) -m pytest

lint:  ## style, layout, import rules
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as lint; lint()"

docs:  ## the documents say what the code does
	$(PYTHON) -m pytest tests/test_docs.py

bench:  ## every benchmark, one JSON each
	set -e; for benchmark in benchmarks/*.py; do $(PYTHON) $$benchmark; done

smoke:  ## the README's first command
	$(PYTHON) cli.py fit --variant clafs
