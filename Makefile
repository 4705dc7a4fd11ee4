# `make` lists what there is. Everything happens in .venv; nothing needs activating.

.DEFAULT_GOAL := help
.PHONY: help install demo test bench check format docs lock clean

VENV := .venv/bin

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## .venv with the postern command in it
	@scripts/install runtime

demo: install ## Postern, a stand-in Logto and a sample app on http://localhost:3000
	@$(VENV)/postern demo

test: ## every test, after installing what they need; PYTEST_ARGS="tests/test_x.py -x" runs a part
	@scripts/system-packages tests/system-packages.txt
	@scripts/install test
	@scripts/browser
	@$(VENV)/python -m pytest $(or $(PYTEST_ARGS),--cov=proxy --cov-branch)

bench: ## Postern beside nginx, Caddy, Apache and the naive gateway; BENCH_ARGS=--quick: in three minutes
	@scripts/system-packages bench/system-packages.txt
	@scripts/install bench
	@$(VENV)/python -m bench $(BENCH_ARGS)

check: ## lint, format, types, shell scripts, Dockerfile, locks
	@scripts/install dev
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(VENV)/mypy
	$(VENV)/shellcheck scripts/browser scripts/install scripts/system-packages .ci/run
	$(VENV)/hadolint Dockerfile
	$(VENV)/python scripts/lock.py --check

format: ## rewrites the code the way `make check` wants it
	@scripts/install dev
	$(VENV)/ruff check --fix
	$(VENV)/ruff format

docs: ## the table of settings in docs/settings.md anew from the code
	@scripts/install dev
	$(VENV)/python scripts/docs.py

lock: ## requirements/*.txt anew from pyproject.toml; `make lock UPGRADE=1` takes the newest versions
	@scripts/install dev
	$(VENV)/python scripts/lock.py $(if $(UPGRADE),--upgrade)

clean: ## removes .venv and every cache
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* dist build
