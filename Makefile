# Builds, tests and shows pfimg; `make` lists the targets. Everything that is missing is set up in .venv and target/, and again only when its
# sources change. What must be there: git, make, Python 3.11+, a C compiler and cargo 1.89+; with Go 1.26+, nginx and skopeo the tests
# talk to real servers.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test quick soak servers engines fuzz lint bench bench-check fmt clean python-found cargo-found

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
ENGINES_VENV ?= .venv-engines
# Processes that share the tests; more than processors, since tests wait for disks and servers most of the time.
WORKERS ?= 4
# How long each target of `fuzz` runs.
FUZZ_SECONDS ?= 60
# For instance --rounds 3, --only zstd or --disk DIR; `python -m benches.compare --help` lists them.
BENCH_ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet install
MODULE := $(VENV)/.module
RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)
# The same profile as the module: what both depend on is compiled once.
CARGO_TEST := cargo test --locked --release -p pfimg-core

# rustup and Go install there, and a shell that was not restarted since does not know it.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/go/bin
# What maturin tells the build of pyo3: told something else, each run of cargo would build again what maturin has built.
AS_MATURIN = PYO3_BUILD_EXTENSION_MODULE=1 PYO3_PYTHON=$(abspath $(PY)) PYTHON_SYS_EXECUTABLE=$(abspath $(PY)) \
	PYO3_ENVIRONMENT_SIGNATURE=$$($(PY) -c 'import sys; print("cpython-%d.%d-64bit" % sys.version_info[:2])') \
	PYO3_CONFIG_FILE=$$(ls "$(CURDIR)"/target/maturin/pyo3-config-*.txt | head -n 1)

# Make tells in MAKE_TERMOUT whether it writes to a terminal; the output of some commands goes through tee, so that they cannot see it.
colour := $(if $(and $(MAKE_TERMOUT),$(if $(NO_COLOR),,1)),yes,no)
say = printf '$(if $(filter yes,$(colour)),\033[1m==> %s\033[0m,==> %s)\n' "$(1)"

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(MODULE) ## Carry real KV pages and a directory to a registry and back, and compare every byte
	@$(PY) examples/demo.py

test: $(MODULE) $(VENV)/.test cargo-found ## Run all tests in their short form
	@mkdir -p .cache
	@$(call say,Python tests)
	@$(PY) -m pytest -q -n $(WORKERS) --dist worksteal --color=$(colour) $(PYTEST_ARGS) | tee .cache/python.log
	@$(call say,Rust tests)
	@$(CARGO_TEST) 2>&1 | tee .cache/rust.log
	@python=$$(tail -n 1 .cache/python.log | sed -E 's/\x1b\[[0-9;]*m//g; s/ in .*//; s/ passed/ Python/'); \
	rust=$$(awk '/^test result: ok/ { n += $$4 } END { print n }' .cache/rust.log); \
	$(call say,all tests passed: $$python; $$rust Rust)

quick: $(MODULE) $(VENV)/.test ## Run the unit, property and conformance tests of Python
	@$(PY) -m pytest -q -n $(WORKERS) --dist worksteal $(PYTEST_ARGS) $(wildcard tests/unit tests/property tests/conformance)

soak: $(MODULE) $(VENV)/.test ## Let processes use a store, registries and caches at random, each for PFIMG_SOAK_SECONDS, 300 unless set
	@PFIMG_SOAK_SECONDS=$${PFIMG_SOAK_SECONDS:-300} $(PY) -m pytest -q $(PYTEST_ARGS) --timeout=0 tests/faults/test_soak.py tests/faults/test_cache_soak.py

servers: $(VENV)/.test ## Get the servers that the registry tests talk to
	@$(PY) -m tests.servers get

# The versions that were tested. They would bring ten times as much if they brought what they depend on.
ENGINES := lmcache==0.5.6 sglang==0.5.23 vllm==0.33.0
# Engines warn of much that is not ours.
engines: $(MODULE) ## Test the plug-ins in the real engines, in .venv-engines: 8 GB with PyTorch, no accelerator
	@[ -x $(ENGINES_VENV)/bin/python ] || $(PYTHON) -m venv $(ENGINES_VENV)
	@$(call say,installing the engines and what importing them takes)
	@$(ENGINES_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --upgrade 'pip>=25.1'
	@$(ENGINES_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --group engines --group test
	@$(ENGINES_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps $(ENGINES)
	@PFIMG_REQUIRE_ENGINES=1 PYTHONPATH=python $(ENGINES_VENV)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal -W default \
		$(PYTEST_ARGS) tests/engines

# The compiler of the toolchain at hand, told to take the options that only its nightly form takes by itself. Bytes that no earlier ones were
# like go into .cache/fuzz; what breaks a promise, and how to see it again, is printed.
fuzz: $(MODULE) $(VENV)/.test cargo-found ## Feed the parsers hostile bytes, FUZZ_SECONDS for each
	@cargo fuzz --version >/dev/null 2>&1 || { echo "make fuzz needs cargo-fuzz: cargo install cargo-fuzz --locked" >&2; exit 1; }
	@RUSTC_BOOTSTRAP=1 cargo fuzz build --fuzz-dir tests/fuzz --target-dir target/fuzz
	@for target in $(patsubst tests/fuzz/targets/%.rs,%,$(wildcard tests/fuzz/targets/*.rs)); do \
		$(call say,$$target); mkdir -p ".cache/fuzz/$$target"; \
		RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz --target-dir target/fuzz "$$target" ".cache/fuzz/$$target" "tests/fuzz/corpus/$$target" -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -max_len=16384 -verbosity=0 -print_final_stats=1; \
	done
	@$(call say,what is parsed in Python)
	@PFIMG_FUZZ_EXAMPLES=$$(($(FUZZ_SECONDS) * 150)) $(PY) -m pytest -q --timeout=0 tests/property/test_hostile_words.py
	@$(call say,nothing that arrived broke a promise)

lint: $(MODULE) $(VENV)/.lint $(VENV)/.test $(VENV)/.bench cargo-found ## Check style and types in both languages, the stub against the binary, and licences
	@$(call say,ruff)
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/ruff format --quiet --check .
	@$(call say,mypy)
	@$(PY) -m mypy
	@$(PY) -m mypy.stubtest pfimg._core --concise
	@$(call say,clippy and rustfmt)
	@cargo fmt --all --check
	@$(AS_MATURIN) cargo clippy --locked --release --workspace --all-targets -- --deny warnings
	@$(call say,licences)
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --log-level warn check bans licenses sources; \
	else echo "cargo-deny is not installed (cargo install cargo-deny --locked); only the licence test of the test suite looks"; fi
	@$(call say,nothing to complain about)

bench: $(MODULE) $(VENV)/.bench cargo-found ## Measure the kernels, the public calls, and all beside the peers; writes docs/performance.md
	@$(call say,kernels)
	@cargo bench --locked -p pfimg-core -- --quiet
	@$(call say,public calls)
	@$(PY) -m pytest -q benches --benchmark-only --benchmark-sort=fullname --benchmark-columns=median,iqr,rounds $(PYTEST_ARGS)
	@$(call say,beside the peers)
	@$(PY) -m benches.peers
	@$(PY) -m benches.compare $(BENCH_ARGS)
	@$(PY) -m benches.report
	@$(call say,docs/performance.md has the new tables)

bench-check: $(MODULE) $(VENV)/.bench ## Measure briefly and fail where a ratio fell behind benches/baseline.json
	@$(PY) -m benches.peers
	@$(PY) -m benches.check $(BENCH_ARGS)

fmt: $(VENV)/.lint cargo-found ## Format Python and Rust
	@$(VENV)/bin/ruff format --quiet .
	@$(VENV)/bin/ruff check --quiet --fix-only .
	@cargo fmt --all

clean: ## Remove everything that was built here
	@rm -rf .venv .venv-* .cache dist target python/pfimg/*.so
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What the targets above stand on. A stamp is as old as what was installed last.

$(VENV)/.made: | python-found
	@$(call say,making $(VENV))
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) --upgrade 'pip>=25.1'
	@touch $@

# One stamp for each dependency group of pyproject.toml.
$(VENV)/.build $(VENV)/.test $(VENV)/.lint $(VENV)/.bench: $(VENV)/.%: pyproject.toml $(VENV)/.made
	@$(call say,installing what '$*' needs)
	@$(PIP) --group $*
	@touch $@

$(MODULE): $(RUST_SOURCES) pyproject.toml $(VENV)/.build | cargo-found
	@$(call say,building the extension)
	@PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1 VIRTUAL_ENV=$(abspath $(VENV)) $(VENV)/bin/maturin develop --release
	@touch $@

python-found:
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "pfimg needs Python 3.11 or newer with venv as $(PYTHON): apt-get install python3 python3-venv, or name another with make PYTHON=python3.12" >&2; exit 1; }

cargo-found:
	@minor=$$({ cargo --version 2>/dev/null || true; } | sed -nE 's/^cargo 1\.([0-9]+).*/\1/p'); \
	[ "$${minor:-0}" -ge 89 ] || { echo "pfimg needs cargo 1.89 or newer: $$(command -v rustup >/dev/null && echo rustup update stable || \
		echo 'curl --proto =https -sSf https://sh.rustup.rs | sh -s -- -y')" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "pfimg needs a C compiler: apt-get install build-essential" >&2; exit 1; }
