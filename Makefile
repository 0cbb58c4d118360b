# Every target sets itself up: a virtual environment in .venv with requirements.txt, made once and again when that changes.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && echo $$p && break; done)
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.requirements-$(shell cksum < requirements.txt | cut -d ' ' -f 1)

# One thread per test process: the workers already use the cores, and sums then do not depend on their number.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

PEERS := vector-quantize-pytorch==1.32.0
# Without their dependencies, all of which are here: they must not move torch.
PEERS_ALONE := torch-fidelity==0.4.0 prdc==0.2

.PHONY: demo demo-text test test-slow test-peers lint setup clean

demo: $(STAMP)
	$(BIN)/python -m demo

demo-text: $(STAMP)
	$(BIN)/python -m demo.text

# Coverage is asked of the libraries' own tests; counting lines in all others would take minutes.
LIBRARIES := rqstack rqvae rqtransformer
test: lint
	$(PYTEST) $(LIBRARIES:%=tests/%) $(LIBRARIES:%=--cov=%) --cov-report=term --cov-fail-under=90
	$(PYTEST) $(LIBRARIES:%=--ignore=tests/%)

test-slow: $(STAMP)
	$(PYTEST) -m "slow and not peer"

# `-m "peer and slow"` is left out here: FID of thousands of images through Inception, an hour on a CPU.
test-peers: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PEERS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PEERS_ALONE)
	$(PYTEST) -m "peer and not slow" tests/peers

lint: $(STAMP)
	$(BIN)/python -m ruff check .

setup: $(STAMP)

$(STAMP): requirements.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 to 3.13 found; set one with make PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@rm -f $(VENV)/.requirements-*
	@touch $@

clean:
	rm -rf .pytest_cache .ruff_cache .hypothesis .coverage htmlcov build dist *.egg-info
