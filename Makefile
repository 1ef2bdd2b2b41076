# The two commands to know are `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## set up .venv with everything, from the pinned constraints

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode constraints.txt
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --editable .
	touch $@

constraints: ## pin again the versions that pyproject.toml allows
	$(BIN)/uv pip compile --universal --python-version 3.11 --all-extras --generate-hashes --no-header \
		--upgrade --quiet pyproject.toml --output-file constraints.txt

demo: install ## fine-tune a small chat model here and talk to it; no cluster, no GPU
	$(BIN)/python examples/quickstart/demo.py

demo-cluster: install ## the same demo on the local cluster, by helm, kubectl and the OpenAI client
	$(BIN)/python examples/quickstart/demo_cluster.py

# The local cluster's pods wait more than they compute, so the others run beside them, one after the other.
test: lint test-unit test-trainer ## everything that CI runs
	$(MAKE) --jobs 2 --keep-going test-with-cluster test-with-api-server test-server test-bases

lint: install ## style, types, drift of generated files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy crds operator trainer server client cli
	$(BIN)/python -m hone_api.schema.generate --check

generate: install ## write the CRDs and the reference pages from the models
	$(BIN)/python -m hone_api.schema.generate

pod-schema: install ## read the types of pods that users write from the local cluster's API server again
	$(BIN)/python tests/cluster/pod_schema.py

test-unit: install ## pure tests
	$(BIN)/pytest tests/unit -n 2 --dist loadfile

test-trainer: install ## the trainer with real torch on the CPU
	$(BIN)/pytest tests/trainer -n 2 --dist loadfile

test-server: install ## the embedded engine with real torch on the CPU
	$(BIN)/pytest tests/server -n 2 --dist loadfile

test-bases: install ## their core on the Pythons and torches of base images
	PYTHONPATH=tests $(BIN)/python tests/bases/run.py $(TESTS)

test-long: install ## all cases of the long matrices, of which `make test` runs a random sample
	$(BIN)/pytest --long tests/unit
	$(BIN)/pytest --long tests/trainer -n 2 --dist loadfile
	$(BIN)/pytest --long tests/server -n 2 --dist loadfile

ACCEPT_PYTHON ?= $(BIN)/python
accept-gpu: $(if $(filter $(BIN)/python,$(ACCEPT_PYTHON)),install) ## try on this machine's GPU what no GPU has run yet, and write a report
	PYTHONPATH=tests $(ACCEPT_PYTHON) -m acceptance $(ARGS)

soak: install ## the embedded engine and vLLM under 10,000 requests of 32 clients, and killed 20 times
	$(BIN)/pytest --long -s tests/server/process/test_soak.py

test-cluster: install ## the whole of Hone on a real Kubernetes
	$(MAKE) --jobs 2 test-with-cluster test-with-api-server

test-with-cluster: install ## its part that uses the local cluster
	$(BIN)/pytest tests/cluster -m needs_cluster

test-with-api-server: install ## its part that starts API servers, or nothing; it may run at the same time
	$(BIN)/pytest tests/cluster -m 'not needs_cluster'

cluster-up: ## start the local one-node Kubernetes (Linux, root, Go); built on the first call
	tests/cluster/local/cluster up

cluster-down: ## stop it; its state and its images stay
	tests/cluster/local/cluster down

.PHONY: help install constraints demo demo-cluster test lint generate pod-schema test-unit test-trainer test-server test-bases \
	test-long soak accept-gpu test-cluster test-with-cluster test-with-api-server cluster-up cluster-down
