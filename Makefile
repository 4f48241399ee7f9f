# Every target prepares .venv by itself. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
READY := .venv/.ready
ARGS ?=

# Telemetry of dependencies is off in everything that is started from here
export MLFLOW_DISABLE_TELEMETRY := true
export GRADIO_ANALYTICS_ENABLED := False
export HF_HUB_OFFLINE := 1
export ORT_DISABLE_TELEMETRY := 1
export RAY_USAGE_STATS_ENABLED := 0
# The suite starts hundreds of Python processes: they find their modules compiled, also where the caller's shell forbids that
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help quickstart lab test check notebooks lint lessons tests docs readme \
	bench-serving bench-durability bench-monitoring bench-report debian clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 20

$(READY): settings.ini setup.py scripts/env.sh
	@scripts/env.sh
	@touch $@

quickstart: $(READY)  ## the whole job on real patient data (ARGS=--no-wait ends when all is up)
	@$(PY) -m deploy_assist.cli quickstart $(ARGS)

lab: $(READY)  ## JupyterLab, opened on the tutorial
	@$(PY) -m deploy_assist.cli lab $(ARGS)

test: debian check  ## everything that CI runs, with Chromium and PostgreSQL from Debian's packages when root

check: notebooks lint lessons tests  ## notebooks clean and in step, ruff, import-linter, lesson cells, pytest

notebooks: $(READY)  ## notebooks clean, library and README in step with them
	@$(PY) scripts/in_step.py

lint: $(READY)  ## ruff and the floors (import-linter)
	@$(PY) -m ruff check .
	@$(PY) -c 'from importlinter.cli import lint_imports_command as main; main()' --no-logo

lessons: $(READY)  ## the notebooks' cells, run in a copy
	@$(PY) scripts/lessons.py $(ARGS)

tests: $(READY)  ## pytest in two processes, a file in one of them (ARGS="-k name" for some)
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

readme: $(READY)  ## README.md from nbs/index.ipynb
	@$(PY) scripts/readme.py

docs: $(READY)  ## the documentation as a web site, in _docs/
	@$(PY) scripts/docs.py

bench-serving bench-durability bench-monitoring bench-report: $(READY)
	@if [ -f benchmarks/$(subst -,_,$@).py ]; then $(PY) benchmarks/$(subst -,_,$@).py $(ARGS); \
	else echo "$@: not written yet (benchmarks/$(subst -,_,$@).py)" >&2; exit 1; fi

debian:  ## Chromium and PostgreSQL for the tests, when missing and when root
	@scripts/debian.sh

clean:  ## remove what was made, .venv too
	rm -rf .venv _proc _docs build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .grimp_cache
