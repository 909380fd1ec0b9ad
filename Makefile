# Two commands for a newcomer: `make demo` and `make test`.
#   PYTHON=python3.12         another interpreter (3.11 or newer)
#   CONSTRAINTS=file          other pinned versions; for a CUDA build of torch: make demo CONSTRAINTS=constraints-cuda.txt
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
RUN = $(VENV)/bin/python -m

.PHONY: demo test lint docs bench claims clean

demo: $(VENV)/.installed  ## train the embedded model by three methods; table, figure, report
	$(VENV)/bin/policydist compare grpo bnpo dcpo --config demo.yaml --seeds 3 --out $(or $(OUT),runs/demo)

test: $(VENV)/.dev .venv-verl/.installed lint  ## everything continuous integration checks
	$(RUN) pytest -n 2 --cov=policydist --cov-report=term:skip-covered
	.venv-verl/bin/python -m pytest -m verl tests/integrations
	$(RUN) policydist.claims.check
	$(VENV)/bin/mkdocs build --strict --quiet

lint: $(VENV)/.dev  ## style, types, floors, generated blocks
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python scripts/render_results.py --check

docs: $(VENV)/.dev  ## the site, in site/
	$(VENV)/bin/python scripts/render_results.py
	$(VENV)/bin/mkdocs build --strict

claims: $(VENV)/.dev  ## run every claim's full design
	$(VENV)/bin/policydist claim all

bench: $(VENV)/.dev  ## side by side with TRL; start-up times
	-$(VENV)/bin/python benchmarks/startup.py  # fails if an aim is missed; the other runs all the same
	$(VENV)/bin/python benchmarks/vs_trl.py

clean:
	rm -rf $(VENV) .venv-verl site runs/demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable .
	touch $@

$(VENV)/.dev: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@ $(VENV)/.installed

.venv-verl/.installed: scripts/verl-env.sh
	bash scripts/verl-env.sh
	touch $@
