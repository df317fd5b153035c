# `make demo` and `make test` set up what they need: an environment in .venv, CPU or GPU builds as the machine has them.
PYTHON ?= python3
VENV ?= .venv
EXTRA := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
STAMP := $(VENV)/.installed-$(EXTRA)

.PHONY: demo test test-matrix test-bare lint install clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRA),image,adapters,postgres,dev]"
	touch $@

demo: $(STAMP)
	$(VENV)/bin/recotransfer demo

# One worker to a core.
test: $(STAMP)
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal

# The same under other processors, threads and seeds; make test-matrix ONLY="SSE41 generic" runs some.
test-matrix: $(STAMP)
	$(VENV)/bin/python tests/matrix.py $(if $(ONLY),--only $(ONLY))

# A plain install, without cpu or gpu, loads saved models and recommends.
test-bare: $(STAMP)
	tests/bare.sh $(VENV)/bin/python $(PYTHON)

lint: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) demo_out
