# `make demo` and `make test` need Python >= 3.10 and make, nothing else; everything is made in $(VENV).

VENV ?= .venv
LEVELS ?= 1,2,4,8,16,32
MINUTES ?= 30

bin := $(VENV)/bin
recipe := scripts/environment.sh pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help demo test test-backends lint versions test-versions test-soak test-faults fuzz soak format clean bench

help: ## Show what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## / | /' | while IFS='|' read -r name text; do printf '  make %-15s%s\n' "$$name" "$$text"; done

demo: SECONDS ?= 10
demo: $(VENV)/.demo ## Real vLLM under rising load: where each request's time goes (LEVELS=1,2,4 SECONDS=10)
	@$(bin)/python -m otel_llm.demo --levels $(LEVELS) --seconds $(SECONDS)

test: $(VENV)/.test lint ## Style, types and all tests, real engines and real telemetry backends included
	@tests/backends/install.sh || echo "their tests are skipped, or fail if OTEL_LLM_REQUIRE_ENGINES=1"
	$(bin)/python -m pytest

test-backends: $(VENV)/.test ## Telemetry through every collector and database, the OpenTelemetry Collector too (built once, 300 MB)
	@tests/backends/install.sh
	@tests/backends/collector/build.sh
	OTEL_LLM_REQUIRE_ENGINES=1 $(bin)/python -m pytest tests/backends tests/dashboards

pictures: $(VENV)/.test ## Every dashboard of a real run, looked at: docs/images (wants node, npm and chromium)
	@tests/backends/install.sh victoria-metrics
	PYTHONPATH=tests/backends $(bin)/python tools/dashboard-preview/record.py docs/images

lint: $(VENV)/.test ## Style and types: ruff, mypy --strict, pyright
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/pyright

versions: $(VENV)/.test ## Hold the hooks to the sources of every engine version that is claimed (downloads their wheels)
	$(bin)/python tools/versions.py

test-versions: $(VENV)/.test ## Run the engines' tests on several of their releases, and bring the README's table up to date (40 minutes)
	$(bin)/python tools/run_versions.py
	$(bin)/python tools/run_versions.py transformers

test-soak: $(VENV)/.test ## 2,000 requests at a vLLM server, many of them aborted or refused: every one is accounted for
	OTEL_LLM_REQUIRE_ENGINES=1 $(bin)/python -m pytest -m soak tests/engines

test-faults: $(VENV)/.test ## Every fault of every collector, 150 forks, 100,000 model names, all ends of a process (10 minutes)
	OTEL_LLM_REQUIRE_ENGINES=1 $(bin)/python -m pytest -m "slow or not slow" tests/faults tests/engines/test_vllm_end.py

fuzz: SECONDS ?= 60
fuzz: $(VENV)/.test ## Fuzz each reader of the outside, guided by coverage (SECONDS=60 for each, TARGETS="header report")
	@PYTHON=$(bin)/python tests/fuzz/atheris.sh .cache/atheris
	@PYTHONPATH=.cache/atheris $(bin)/python -m tests.fuzz --seconds $(SECONDS) $(TARGETS)

soak: $(VENV)/.test ## A vLLM server under mixed traffic while its collector comes and goes: memory, threads, account (MINUTES=30)
	$(bin)/python -m tests.faults.soak --minutes $(MINUTES)

bench: $(VENV)/.test ## What it costs, on real engines and against peers too (downloads those; wants a machine that does nothing else)
	@PYTHON=$(bin)/python benchmarks/peers.sh .cache/peers
	@$(bin)/python -m benchmarks --engines --peers .cache/peers

format: $(VENV)/.test ## Put all files into the common style
	$(bin)/ruff check --fix
	$(bin)/ruff format

clean: ## Remove the virtual environment, caches and what the demo wrote
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist otel-llm-demo.html

# The tests need all that the demo needs, so one stamp does for both.
$(VENV)/.demo: $(recipe)
	@scripts/environment.sh $(VENV) demo
	@touch $@

$(VENV)/.test: $(recipe)
	@scripts/environment.sh $(VENV) test
	@touch $@ $(VENV)/.demo
