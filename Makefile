# Every target sets itself up: an environment in .venv, made once and again when what is asked of it changes.
#   make LATEST=1 ...    the newest releases that requirements.txt allows, not the tested ones of constraints.txt
PYTHON ?= $(call first_python,python3.11 python3.12 python3.13 python3.10 python3,(3, 10),(3, 13))
# The oldest numpy and scipy that are claimed have no wheels for later ones.
OLDEST_PYTHON ?= $(call first_python,python3.10 python3.11 python3.12 python3,(3, 10),(3, 12))
VENV ?= .venv
WORKERS ?= 2
LATEST ?=

first_python = $(shell for p in $(1); do \
	$$p -c 'import sys; sys.exit(not $(2) <= sys.version_info[:2] <= $(3))' >/dev/null 2>&1 && echo $$p && break; done)
# An environment is complete when it holds the stamp of all that it was made from.
stamp = $(1)/.installed-$(shell cat $(2) | cksum | cut -d ' ' -f 1)
PIP := -m pip --quiet --disable-pip-version-check

BIN := $(VENV)/bin
STAMP := $(call stamp,$(VENV),requirements.txt $(if $(LATEST),,constraints.txt))$(if $(LATEST),-latest)
OLDEST := .venv-oldest
OLDEST_STAMP := $(call stamp,$(OLDEST),requirements.txt constraints-oldest.txt)
WHEEL := .venv-wheel
WHEEL_OLDEST := .venv-wheel-oldest

# A file's tests share what they prepare, so they stay in one worker; files go out in their order, the long ones in the
# middle. One thread per process: the workers already use the cores, and sums then do not depend on their number.
PYTEST_OPTIONS := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_OPTIONS)

PEERS := vector-quantize-pytorch==1.32.0
# Without their dependencies, all of which are here: they must not move torch.
PEERS_ALONE := torch-fidelity==0.4.0 prdc==0.2

GRADIO := 'gradio>=6.31,<7'
PLAYWRIGHT := playwright==1.65.2
SCREENSHOTS := runs/web-screenshots

.PHONY: demo demo-text web docs pictures quick test test-oldest test-slow test-peers test-web wheel-test wheel-test-oldest dist lint setup clean

demo: $(STAMP)
	$(BIN)/python -m demo

demo-text: $(STAMP)
	$(BIN)/python -m demo.text

# What an extra of pyproject.toml names, into the environment of the experiments.
install-extra = sed -n 's/^$(1) = \[\(.*\)\]$$/\1/p' pyproject.toml | tr ',' ' ' | \
	xargs $(BIN)/python $(PIP) install $(if $(LATEST),,-c constraints.txt)

# The pictures of README and documents, from committed results and from the demo's models, which are trained if need be.
pictures: $(STAMP)
	test -d runs/demo/stage2 || $(BIN)/python -m demo
	$(BIN)/python -m demo.pictures
	$(BIN)/python -m benchmarks.quantizer_comparison --result benchmarks/results/quantizer_comparison.json \
		--document docs/quantizers.md

# The documentation site: build/docs/index.html. A warning is an error.
docs: $(STAMP)
	$(call install-extra,docs)
	$(BIN)/python -m sphinx -W --keep-going -q -c docs -b html . build/docs
	@echo build/docs/index.html

# Coverage is asked of the libraries' own tests; counting lines in all others would take minutes.
LIBRARIES := rqstack rqvae rqtransformer
test: lint
	$(PYTEST) $(LIBRARIES:%=tests/%) $(LIBRARIES:%=--cov=%) --cov-report=term --cov-fail-under=90
	$(PYTEST) $(LIBRARIES:%=--ignore=tests/%)

# What says most for its time: laws, golden numbers, shapes of the tree. About a minute on two cores.
QUICK := tests/test_architecture.py tests/test_requirements.py tests/rqstack/quantizers/test_quantizer_laws.py \
	tests/rqvae/test_golden_rqvae.py tests/rqtransformer/test_golden.py tests/rqtransformer/test_model.py \
	tests/evaluation/metrics tests/training/optimization/test_optimizer.py tests/training/optimization/test_schedule.py \
	tests/runtime/test_cli.py tests/runtime/test_config.py tests/data/test_noise_and_order.py
quick: $(STAMP)
	$(PYTEST) $(QUICK)

# The oldest releases that requirements.txt allows.
test-oldest: $(OLDEST_STAMP)
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest $(PYTEST_OPTIONS)

test-slow: $(STAMP)
	$(PYTEST) -m "slow and not peer"

# `-m "peer and slow"` is left out here: FID of thousands of images through Inception, an hour on a CPU.
test-peers: $(STAMP)
	$(BIN)/python $(PIP) install $(PEERS)
	$(BIN)/python $(PIP) install --no-deps $(PEERS_ALONE)
	$(PYTEST) -m "peer and not slow" tests/peers

# Gradio wants a Pillow below 13, which requirements.txt allows.
web: $(STAMP)
	$(BIN)/python $(PIP) install $(GRADIO)
	$(BIN)/python -m demo.web

# The web demo and the documentation site in a Chromium that is on this machine, found or named by CHROMIUM=PATH; it
# leaves screenshots for a person to look at.
test-web: $(STAMP)
	$(BIN)/python $(PIP) install $(GRADIO) $(PLAYWRIGHT)
	$(call install-extra,docs)
	SCREENSHOTS=$(SCREENSHOTS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m web tests/demo tests/test_site_in_browser.py

# The wheel in an environment of its own, with what pip takes for it. The check runs outside of the checkout.
wheel-test:
	rm -rf build dist $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python $(PIP) wheel --no-deps --wheel-dir dist .
	$(WHEEL)/bin/python $(PIP) install dist/*.whl
	cd / && $(CURDIR)/$(WHEEL)/bin/python -I $(CURDIR)/tests/wheel_alone.py

# What a release uploads, in dist/: the source archive, and the wheel built from it. Both are checked; nothing is uploaded.
DIST := .venv-dist
dist:
	rm -rf build dist $(DIST)
	$(PYTHON) -m venv $(DIST)
	$(DIST)/bin/python $(PIP) install build twine
	$(DIST)/bin/python -m build --outdir dist . >/dev/null
	$(DIST)/bin/python -m twine check --strict dist/*
	$(DIST)/bin/python tests/dist_contents.py dist

# The same on the oldest releases that it claims, and the libraries' tests, which ask for no more than the wheel does.
wheel-test-oldest:
	rm -rf build dist $(WHEEL_OLDEST)
	$(OLDEST_PYTHON) -m venv $(WHEEL_OLDEST)
	$(WHEEL_OLDEST)/bin/python $(PIP) wheel --no-deps --wheel-dir dist .
	$(WHEEL_OLDEST)/bin/python $(PIP) install -c constraints-wheel.txt dist/*.whl
	cd / && $(CURDIR)/$(WHEEL_OLDEST)/bin/python -I $(CURDIR)/tests/wheel_alone.py
	$(WHEEL_OLDEST)/bin/python $(PIP) install -c constraints-wheel.txt "$$(echo dist/*.whl)[losses,dev]"
	OMP_NUM_THREADS=1 $(WHEEL_OLDEST)/bin/python -m pytest $(PYTEST_OPTIONS) $(LIBRARIES:%=tests/%)

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

setup: $(STAMP)

$(STAMP): requirements.txt constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 to 3.13 found; set one with make PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) install -r requirements.txt $(if $(LATEST),--upgrade --upgrade-strategy eager,-c constraints.txt)
	@rm -f $(VENV)/.installed-*
	@touch $@

$(OLDEST_STAMP): requirements.txt constraints-oldest.txt
	@test -n "$(OLDEST_PYTHON)" || { echo "error: no Python 3.10 to 3.12 found; set one with make OLDEST_PYTHON=..." >&2; exit 2; }
	test -x $(OLDEST)/bin/python || $(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP) install -r requirements.txt -c constraints-oldest.txt
	@rm -f $(OLDEST)/.installed-*
	@touch $@

clean:
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage htmlcov build dist *.egg-info
	rm -rf $(OLDEST) $(WHEEL) $(WHEEL_OLDEST) $(DIST)
