# Two commands: "make demo" and "make test". Needed: make, and Python 3.11 or newer (PYTHON= says which).

VENV = .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
DEMO_STAMP = $(VENV)/.installed-for-demo
MINIMUM_COVERAGE = 95
JOBS = 3
PEERS = .venv-peers
COMPILED = build/compiled
COPIED = fastapi_otpless_session pytest_otpless_session.py tests example_app docs README.md
AS_COMPILED = PYTHONPATH=$(CURDIR)/$(COMPILED)

# Whatever the shell says, what was compiled is kept: the tests start many processes, and each would compile them all again.
unexport PYTHONDONTWRITEBYTECODE

help:
	@echo 'make demo     run the example shop with the OTPLESS emulator   PORT= EMULATOR_PORT='
	@echo 'make test     lint, check types and run the tests              JOBS= PYTEST_ARGS= MINIMUM_COVERAGE= REQUIRE_SERVERS='
	@echo 'make test SLOW=1   … and the long ones: loads, outages, fleets of workers'
	@echo 'make compiled   a copy of all this in $(COMPILED), with the modules that each request goes through compiled by mypyc'
	@echo 'make test-compiled   the tests of behaviour, in that copy   PYTEST_ARGS='
	@echo 'make bench    what a request costs: table, docs/bench.json, docs/bench.svg   BENCH_ARGS="--only believed --rounds 15"'
	@echo 'make bench-peers   … and what people use instead, in an environment of their own   BENCH_ARGS='
	@echo 'make bench-growth  what stores cost by how many sessions they hold   STORES= SIZES='
	@echo 'make lint     lint and check types only'
	@echo 'make types    what other type checkers see of the public names'
	@echo 'make wheel    build the packages, install them in empty environments and try them there'
	@echo 'make format   format the code and mend what the linter can'
	@echo 'make clean    remove the virtual environment, caches and reports'

# The demo needs a ninth of what the tests need; where all that is there, it does.
demo: $(firstword $(wildcard $(STAMP)) $(DEMO_STAMP))
	@PORT='$(PORT)' EMULATOR_PORT='$(EMULATOR_PORT)' exec $(BIN)/python -m example_app

# Much of a test's time is waiting: on two cores three at a time take a fifth less than two.
# The long tests compare what they measure, and have the machine to themselves; coverage would take half of it.
# Tests that need Redis or PostgreSQL are skipped where it is not installed, and fail with REQUIRE_SERVERS=1. Coverage is
# only judged when none was skipped.
test: lint
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m 'not slow' -n $(JOBS) --dist worksteal $(PYTEST_ARGS)
	$(if $(SLOW),$(BIN)/pytest -m slow $(PYTEST_ARGS))
	$(BIN)/coverage combine --quiet
	@missing=$(if $(PYTEST_ARGS),'PYTEST_ARGS chose some of them.',$$($(BIN)/python tests/backends.py)) || exit; \
	if [ -z "$$missing" ]; then \
	    $(BIN)/coverage report --fail-under=$(MINIMUM_COVERAGE); \
	else \
	    $(BIN)/coverage report && printf '\n%s\n' "Tests were skipped, and coverage not judged:" "$$missing"; \
	fi

# What is compiled lies beside its source, and would be taken for it after a change: so it is made in a copy.
compiled: $(COMPILED)/.compiled

$(COMPILED)/.compiled: $(STAMP) $(shell find $(COPIED) -name '*.py' -o -name '*.md' -o -name '*.js') pyproject.toml
	rm -rf $(COMPILED)
	mkdir -p $(COMPILED)
	cp -R $(COPIED) pyproject.toml $(COMPILED)
	cd $(COMPILED) && HATCH_BUILD_HOOK_ENABLE_MYPYC=1 $(CURDIR)/$(BIN)/python -m hatchling build --target wheel
	@touch $@

# From Python 3.12 on, what mypyc compiles warns when it is cancelled: https://github.com/mypyc/mypyc/issues/1214.
OF_MYPYC = -W 'ignore:the (type, exc, tb) signature of throw() is deprecated:DeprecationWarning'

test-compiled: compiled
	cd $(COMPILED) && $(AS_COMPILED) $(CURDIR)/$(BIN)/pytest -m 'not slow and not varied' $(OF_MYPYC) \
	    -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

# The package as it is, and then compiled.
bench: compiled
	$(BIN)/python tests/bench/bench.py $(BENCH_ARGS)
	$(AS_COMPILED) $(BIN)/python tests/bench/bench.py $(BENCH_ARGS)

# Their versions are theirs to choose: what they need is no part of this package's environment.
bench-peers: $(PEERS)/.installed bench

bench-growth: $(STAMP)
	$(BIN)/python tests/bench/growth.py $(if $(STORES),--stores $(STORES)) $(if $(SIZES),--sizes $(SIZES))

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# pyright finds the package by the environment that is active: with --verifytypes it takes no other's word for it.
types: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --verifytypes fastapi_otpless_session --ignoreexternal
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright tests/typing_public.py

wheel: $(STAMP)
	$(BIN)/pytest tests/wheel_check.py

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define new_venv
@for python in $(PYTHON) python3.11 python3 python3.12 python3.13 python3.14 python; do \
    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found=$$python && break; \
done; \
if [ -z "$$found" ]; then \
    echo 'error: this needs Python 3.11 or newer. Say where it is, as in: make test PYTHON=/path/to/python3.11' >&2; \
    exit 1; \
fi; \
$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "Making $(VENV) with $$found"; "$$found" -m venv $(VENV); }
endef

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# pip's first: the one that comes with Python may be too old for --group.
$(STAMP): pyproject.toml constraints.txt
	$(new_venv)
	@echo 'Installing all that development needs into $(VENV), once: 700 MB, which takes a minute or more.'
	$(INSTALL) 'pip>=25.1'
	$(INSTALL) --editable '.[cli,fast,redis,postgres]' --group dev
	@touch $@

$(DEMO_STAMP): pyproject.toml constraints.txt
	$(new_venv)
	@echo 'Installing what the demo needs into $(VENV), once: 80 MB, which takes some 20 seconds.'
	$(INSTALL) --editable '.[cli]'
	@touch $@

$(PEERS)/.installed: tests/bench/peers/requirements.txt | $(STAMP)
	$(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

.PHONY: help demo test compiled test-compiled bench bench-peers bench-growth lint types wheel format clean
