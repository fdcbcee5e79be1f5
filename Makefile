# `make help` lists the targets. Each does its own set-up and is safe to run again.
PYTHON ?= python3
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
TRAIN_ARGS ?=
FUZZ_SECONDS ?= 60
BENCHMARK_ARGS ?= --shape=S
SOAK_ARGS ?=
SLOW_ARGS ?=
QWEN ?= qwen2.5-coder-0.5b
QWEN_DIR ?= runs/$(QWEN)
QWEN_ARGS ?=
# What guards the most for the least: rules, losses, settings, and six steps of the embedded policy.
FAST ?= $(addprefix tests/,rewards tasks report models/test_config.py models/test_parameters.py \
  models/test_rope.py test_advantages.py test_alarms.py test_architecture.py test_config.py \
  test_digest.py test_grid.py test_losses.py test_moved.py test_settings.py)

# A pyenv shim exists for each installed version but runs only the selected ones: look there too.
INTERPRETER := $(shell $(PYTHON) -c 'import sys; print(sys.executable)' 2>/dev/null || \
  ls -d $$(pyenv root 2>/dev/null)/versions/*/bin/$(PYTHON) 2>/dev/null | sort -V | tail -n 1)
VERSION := $(if $(INTERPRETER),$(shell $(INTERPRETER) -c \
  'import sys; sys.version_info >= (3, 11) and print("%d.%d" % sys.version_info[:2])'))
ifneq ($(filter train qwen test test-fast test-slow fuzz soak lint benchmark,$(MAKECMDGOALS)),)
  $(if $(VERSION),,$(error Python >= 3.11 is needed, and PYTHON=$(PYTHON) is not one that runs))
endif

# The default interpreter gets .venv; any other gets a folder of its own beside it.
VENV ?= $(if $(filter python3 python,$(PYTHON)),.venv,.venv-$(VERSION))
BIN := $(VENV)/bin
# jax 0.10 is the last for Python 3.11; one set of pins serves 3.12 and newer.
CONSTRAINTS := constraints/$(if $(filter 3.11,$(VERSION)),py311,py312).txt
STAMP := $(VENV)/.installed-$(VERSION)

export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.2
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= -1
# Keep freed memory in the heap: fresh large allocations cost page faults in every training step.
export GLIBC_TUNABLES ?= glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=30000000000:glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1

.PHONY: help train qwen test test-fast test-slow fuzz soak lint benchmark clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10
	@echo "variables: PYTHON=$(PYTHON) PYTEST_ARGS='$(PYTEST_ARGS)' TRAIN_ARGS='$(TRAIN_ARGS)'"
	@echo "  QWEN=$(QWEN) QWEN_ARGS='$(QWEN_ARGS)' BENCHMARK_ARGS='$(BENCHMARK_ARGS)'"

train: $(STAMP)-run ## train the embedded policy and show what it gained
	$(BIN)/python experiments/train_grpo.py --preset=tiny $(TRAIN_ARGS)

qwen: $(STAMP)-fetch ## fetch a real Qwen 2.5, warm it up, train it with GRPO, show what each gained
	$(BIN)/python experiments/fetch_model.py --name=$(QWEN) --out=runs/models/$(QWEN)
	$(BIN)/python experiments/recipe.py --model=runs/models/$(QWEN) --run_dir=$(QWEN_DIR) $(QWEN_ARGS)

test: $(STAMP)-test ## run the whole test suite
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: $(STAMP)-test ## run the tests for the inner loop, a minute or so
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(FAST)

lint: $(STAMP)-dev ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(STAMP)-test ## run the tests that fetch and run real pretrained models
	$(BIN)/python -m pytest -m slow $(SLOW_ARGS)

fuzz: $(STAMP)-fuzz ## fuzz the parser and the rewards for a minute
	$(BIN)/python tests/rewards/fuzz_rewards.py -max_total_time=$(FUZZ_SECONDS)

soak: $(STAMP)-test ## kill a small run 30 times and compare its end with an undisturbed one
	$(BIN)/python tests/soak_kills.py $(SOAK_ARGS)

benchmark: $(STAMP)-run ## time a step against the machine; BENCHMARK_ARGS=--compare=trl adds a peer
	$(BIN)/python experiments/benchmark.py $(BENCHMARK_ARGS)

clean: ## remove environments and caches; runs/ stays
	rm -rf .venv .venv-3.* .benchmark .jax_cache .pytest_cache .ruff_cache .mypy_cache .hypothesis \
	  build dist *.egg-info
	find grpo_jax experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of extras: `run` is the package alone, the others name an extra.
$(STAMP)-%: pyproject.toml $(CONSTRAINTS)
	@echo "installing into $(VENV): some minutes the first time"
	$(INTERPRETER) -m venv $(if $(wildcard $(VENV)/lib/python$(VERSION)),,--clear) $(VENV)
	$(BIN)/python -m pip install -q -e '.$(if $(filter run,$*),,[$*])' -c $(CONSTRAINTS)
	@touch $@
