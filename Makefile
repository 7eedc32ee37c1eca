# Every target makes .venv, installs and fetches what it needs; done once, it starts in seconds.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
BENCH := .venv.bench
FETCH := $(BIN)/mmsft assets fetch

export TOKENIZERS_PARALLELISM := false
# The tests' models are tiny: threads would only wait for each other.
test check: export OMP_NUM_THREADS := 1

.PHONY: help demo bench test check assets install clean

help:
	@echo "make demo    train a vision-language assistant on real data, here, in minutes"
	@echo "make bench   speed and memory beside the peers, in environments of their own (ARGS=\"--only T1 --rounds 1\")"
	@echo "make test    all tests"
	@echo "make check   lint, format, types, layers, then all tests"
	@echo "make assets  fetch the weights and data of demo and tests (about 120 MB, once)"
	@echo "make clean   remove .venv and the tools' caches; fetched assets and runs stay"

demo: assets
	$(BIN)/python scripts/demo.py

bench: assets $(BENCH)/peers/.installed $(BENCH)/llamafactory/.installed
	$(BIN)/python -m scripts.bench.run $(ARGS)

$(BENCH)/%/.installed: scripts/bench/%.txt
	@test -x $(BENCH)/$*/bin/python || $(PYTHON) -m venv $(BENCH)/$*
	@echo "installing the peers of $< (minutes, once) ..."
	@$(BENCH)/$*/bin/python -m pip --disable-pip-version-check install -qq --requirement $<
	@$(BENCH)/$*/bin/python -m pip freeze > $@.aside && mv $@.aside $@

test: assets
	$(BIN)/pytest -n 2

check: assets
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2

assets: install
	$(FETCH)

install: $(INSTALLED)

# torch first and alone: its wheels are the large ones, and pip then looks for nothing newer.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "mmsft needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch (minutes, once) ..."
	@$(PIP) install -qq --constraint constraints.txt torch torchvision torchaudio
	@echo "installing mmsft and its tools ..."
	@$(PIP) install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
