# Targets that need packages install them into ./.venv first.
DEMO_DIR ?= demo-service
PYTHON_ = .venv/bin/python

.PHONY: help install demo checkov test test-slow test-all soak tag lint docs site lock bench
help:       ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install:    ## install everything into ./.venv
	@scripts/install.sh

demo: install    ## run the whole pipeline with embedded defaults in DEMO_DIR (default ./demo-service)
	@$(PYTHON_) scripts/demo.py "$(DEMO_DIR)"

checkov: install
	@scripts/install-checkov.sh

PYTEST = $(PYTHON_) -m pytest --dist=loadfile --no-loadscope-reorder --durations=20

# A test often waits for a process or a disk: three workers keep two cores busy.
test: install    ## run the fast tests; no external service is needed
	@$(PYTEST) --numprocesses=3

test-slow: checkov    ## run the rest: tests that take long, or need Docker, S3, Zabbix, Go or PHP (CONTRIBUTING.md says how they are found)
	@$(PYTEST) --numprocesses=3 -m "slow and not soak"

test-all: test test-slow    ## run both

soak: install    ## run the tests that take minutes to hours (SOAK_EXAMPLES sets the number of random cases)
	@eval "$$(scripts/debian-tools.sh)"; eval "$$(scripts/debian-tools.sh server)"; $(PYTHON_) -m pytest --numprocesses=2 -m soak

tag:        ## create the release tags listed in CHANGELOG.md
	@scripts/tag.sh

lint: install    ## run ruff, mypy, import-linter, deptry and a strict build of the docs site, and print the size of the code
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy --strict mlops_build
	@.venv/bin/lint-imports
	@.venv/bin/deptry mlops_build
	@$(PYTHON_) scripts/size.py
	@site=$$(mktemp -d) && trap 'rm -rf "$$site"' EXIT && NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --site-dir "$$site"

docs: install    ## regenerate parts of docs/, cookiecutter.json and the JSON schema of service.yaml
	@$(PYTHON_) scripts/docs.py

site: install    ## serve docs/ as a searchable site on http://127.0.0.1:8000
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs serve

lock: install    ## resolve requirements.lock and requirements-checkov.lock again
	@.venv/bin/uv pip compile pyproject.toml --universal --all-extras --group dev --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-emit-package torch --custom-compile-command "make lock" --quiet -o requirements.lock
	@echo "checkov>=3.2" | .venv/bin/uv pip compile - --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-find-links --custom-compile-command "make lock" --quiet -o requirements-checkov.lock

bench: install    ## measure the figures of the docs for start-up, commands and updates
	@$(PYTHON_) benchmarks/startup.py
	@$(PYTHON_) benchmarks/commands.py
	@$(PYTHON_) benchmarks/update.py
