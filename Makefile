# make demo: train, evaluate, generate.  make test: all checks, as CI runs them.  make test-processors: as other processors would.
VENV ?= .venv
PYTHON ?= python3
TORCH_VERSION ?= 2.13.0
# Where the torch wheel comes from, if not from pip's own index: TORCH_ARGS="--index-url URL".
TORCH_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUN ?= runs/demo
DEMO_SECONDS ?= 120

.PHONY: setup dev demo test test-processors bench extras clean

setup: $(VENV)/.installed
dev: $(VENV)/.installed-dev

# Without an NVIDIA driver the CPU build is asked for first: it is an order of magnitude smaller. A torch that is there
# already is kept, and whichever it is gets frozen, so that nothing installed later can swap it.
$(VENV)/torch.lock: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null \
	  || { ! command -v nvidia-smi >/dev/null && $(PIP) install -q $(TORCH_ARGS) 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null; } \
	  || $(PIP) install -q $(TORCH_ARGS) 'torch==$(TORCH_VERSION)'
	$(BIN)/python -W ignore -c 'import torch; print("torch==" + torch.__version__)' > $@

$(VENV)/.installed: $(VENV)/torch.lock pyproject.toml
	$(PIP) install -q -c $(VENV)/torch.lock -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -q 'pip>=25.1'  # the first that reads dependency groups
	$(PIP) install -q -c $(VENV)/torch.lock -c constraints.txt -e '.[download,dashboard,hub,hf,compare,tensorboard]' --group dev
	touch $@

demo: setup
	$(BIN)/btlm train stdlib --preset tiny --seconds $(DEMO_SECONDS) --out $(RUN) --overwrite
	$(BIN)/btlm generate $(RUN) --prompt 'def ' --bytes 400 --temperature 0.7 --seed 1

test: dev
	PATH="$(abspath $(BIN)):$$PATH" scripts/check

# The tests of numerics and training under the settings of other processors, as far as one machine can act them out.
test-processors: dev
	$(BIN)/python scripts/processors

bench: dev
	$(PIP) install -q -c $(VENV)/torch.lock -c constraints.txt -e '.[bench]'

# Libraries of other people's tools; with them, the tests that need them run too.
extras: dev
	$(PIP) install -q -c $(VENV)/torch.lock -c constraints.txt -e '.[lm-eval,datasets,trackio,wandb]'

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
