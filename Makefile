# The two commands of the README: `make demo` and `make test`. Both put everything into ./.venv first.
DEMO_DIR ?= demo-service
PYTHON_ = .venv/bin/python

.PHONY: help install demo checkov test test-slow test-all soak tag lint docs lock bench
help:       ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install:    ## the environment, into ./.venv
	@scripts/install.sh

demo: install    ## the whole road on embedded defaults, into DEMO_DIR (default ./demo-service)
	@$(PYTHON_) scripts/demo.py "$(DEMO_DIR)"

checkov: install
	@scripts/install-checkov.sh

PYTEST = $(PYTHON_) -m pytest --numprocesses=2 --dist=loadfile --durations=20

test: install    ## the fast tests; no external service is needed
	@$(PYTEST)

test-slow: checkov    ## the rest: tests that take long, or need Docker, S3, Zabbix, Go or PHP (CONTRIBUTING.md says how they are found)
	@$(PYTEST) -m "slow and not soak"

test-all: test test-slow    ## both

soak: install    ## what takes minutes: many more random cases (SOAK_EXAMPLES says how many), a real Zabbix server
	@eval "$$(scripts/debian-tools.sh server)"; $(PYTHON_) -m pytest --numprocesses=2 -m soak

tag:        ## the releases' tags, as CHANGELOG.md lists them
	@scripts/tag.sh

lint: install    ## ruff, mypy, import-linter, deptry
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy --strict mlops_build
	@.venv/bin/lint-imports
	@.venv/bin/deptry mlops_build

docs: install    ## the generated parts of docs/ and the JSON schema of service.yaml
	@$(PYTHON_) scripts/docs.py

lock: install    ## requirements.lock and requirements-checkov.lock anew
	@.venv/bin/uv pip compile pyproject.toml --universal --all-extras --group dev --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-emit-package torch --custom-compile-command "make lock" --quiet -o requirements.lock
	@echo "checkov>=3.2" | .venv/bin/uv pip compile - --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-find-links --custom-compile-command "make lock" --quiet -o requirements-checkov.lock

bench: install    ## the figures in the docs
	@$(PYTHON_) benchmarks/startup.py
	@$(PYTHON_) benchmarks/update.py
