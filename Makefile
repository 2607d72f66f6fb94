# Everything is installed in .venv; every target installs it first if need be. `make` lists the targets.

# CLUSTER=simulated: DEVICE is a described one of conf/device, and the paper's layer runs on it once.
CLUSTER  ?= emulated
SIMULATED = $(filter simulated,$(CLUSTER))
SCALE    ?= $(if $(SIMULATED),paper,laptop)
DEVICE   ?= $(if $(SIMULATED),a100_sxm,$(if $(filter nccl,$(CLUSTER)),cuda,cpu))
TIER     ?= $(if $(SIMULATED),once,quick)
CAMPAIGN ?= results/all
RETRY    ?=
CHECKOUT ?=
CONFIG_DIR ?=
SYSTEM   ?=
ARGS        ?=
PYTEST_ARGS ?=
TORCH_INDEX ?=
PYTHON      ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c '$(IN_RANGE)' 2>/dev/null && { echo $$python; break; }; done)
IN_RANGE    := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))

# Real ranks that are held against emulated ones; many short launches, because launches of both are compared.
REAL_RANKS ?= 2
FIDELITY    = cluster.world_size=$(REAL_RANKS) tier.rounds=4

# torch's CUDA build brings the Triton it wants; beside the CPU build the tests run kernels in this one's interpreter.
TRITON = triton==3.7.1
STK    = stanford-stk==0.7.1

BIN    := .venv/bin
STAMP  := .venv/.setup
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow test-all lint conformance status resume figures report verify-paper clean
.PHONY: validate-devices validate-here samples docs
.PHONY: quality league calibrate fidelity fidelity-hosts attribution crossover scaling bench-engines bench-layer gpu gpu-visit
.PHONY: reproduce-fig1 reproduce-layers reproduce-fig3 reproduce-fig4 reproduce-skew reproduce-sections reproduce-all

help:  ## list the targets and the variables
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  SCALE=$(SCALE)  CLUSTER=$(CLUSTER)  DEVICE=$(DEVICE)  TIER=$(TIER)  CAMPAIGN=$(CAMPAIGN)"
	@echo "  ARGS='more Hydra overrides'  PYTEST_ARGS='more pytest arguments'"

setup: $(STAMP)  ## install everything in .venv (TORCH_INDEX=https://download.pytorch.org/whl/cpu avoids the CUDA packages)
	@echo "setup: .venv is complete for requirements.lock and pyproject.toml"

# The lock goes first: a version range in pyproject.toml must never choose the torch build.
$(STAMP): requirements.lock pyproject.toml
	@$(or $(PYTHON),false) -c '$(IN_RANGE)' || { \
		echo "make setup needs Python 3.11 or 3.12$(if $(PYTHON), and $(PYTHON) is neither); try make setup PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || { echo "setup: creating .venv with $(PYTHON)"; $(PYTHON) -m venv .venv; }
	@echo "setup: installing $$(grep -c == requirements.lock) packages from requirements.lock (minutes the first time)"
	@$(INSTALL) -r requirements.lock
	@test "$$(uname -s)" != Linux || { $(BIN)/python -c 'import triton' 2>/dev/null || $(INSTALL) $(TRITON); $(INSTALL) --no-deps $(STK); }
	@echo "setup: installing this project in place"
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'from importlib.metadata import version as v; import sys; \
		print("setup: Python " + sys.version.split()[0], *(f"{n} {v(n)}" for n in ("torch", "deepspeed", "transformers")), sep=", ")'
	@touch $@

# Two files at a time, each on one worker: most of the time goes into launches that the tests of a file share.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(STAMP)  ## run the tests, less the slow ones (PYTEST_ARGS='-n 0': one after the other)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: $(STAMP)  ## run the tests that `make test` leaves out
	$(PYTEST) -m slow $(PYTEST_ARGS)

test-all: test test-slow  ## run all tests

lint: $(STAMP)  ## check style, unsafe calls, imports, formatting and types
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/ruff format --check .
	$(BIN)/pyright

conformance: $(STAMP)  ## check that every system, or SYSTEM=its yaml, name or package.module.Class, equals the dense model
	$(if $(SYSTEM),$(BIN)/python -m experiments.judge $(SYSTEM),$(BIN)/python -m pytest tests/systems/test_conformance.py -q $(PYTEST_ARGS))

quality: $(STAMP)  ## what outputs are worth on held-out text: every system, and what dropping tokens costs by capacity factor
	$(BIN)/python -m experiments.run experiment=quality $(ARGS)
	$(BIN)/python -m experiments.run experiment=quality_capacity $(ARGS)

SETTINGS = scale=$(SCALE) cluster=$(CLUSTER) $(if $(SIMULATED),,cluster.)device=$(DEVICE) tier=$(TIER)$(NETWORK)
# What scale=laptop matches is a CPU core; an emulated GPU stands beside the link that it is known for.
NETWORK  = $(if $(filter laptop-emulated-cuda,$(SCALE)-$(CLUSTER)-$(DEVICE)), network=nvlink3)

reproduce-fig1: $(STAMP)  ## Figure 1: tokens per expert of a learned router, first and last MoE layer
	$(BIN)/python -m experiments.run experiment=fig1 $(SETTINGS) $(ARGS)

reproduce-layers: $(STAMP)  ## section 4.2: latency of each MoE layer under real loads
	$(BIN)/python -m experiments.run experiment=layers $(SETTINGS) $(ARGS)

reproduce-fig3: $(STAMP)  ## Figure 3: speed-up over DeepSpeed against the number of experts and the batch size
	$(BIN)/python -m experiments.run experiment=fig3 $(SETTINGS) $(ARGS)

reproduce-fig4: $(STAMP)  ## Figure 4: MoEShard with and without the fused engine
	$(BIN)/python -m experiments.run experiment=fig4 $(SETTINGS) $(ARGS)

reproduce-skew: $(STAMP)  ## the skew that the paper only sampled: alpha_r and k_r
	$(BIN)/python -m experiments.run experiment=skew $(SETTINGS) $(ARGS)

reproduce-sections: $(STAMP)  ## time per section of the MoE layer and rank
	$(BIN)/python -m experiments.run experiment=sections $(SETTINGS) $(ARGS)

reproduce-all: $(STAMP)  ## all of these as one campaign in results/all
	$(BIN)/python -m experiments.run experiment=all $(SETTINGS) $(ARGS)

zoo: league  # its former name
league: $(STAMP)  ## the league table: every system at the paper's point, with permuted and drifting hot experts, recorded loads and tokens
	$(BIN)/python -m experiments.run experiment=league $(SETTINGS) $(ARGS)

attribution: $(STAMP)  ## why MoEShard is faster than DeepSpeed: measured counterfactuals, step by step
	$(BIN)/python -m experiments.run experiment=attribution $(SETTINGS) $(ARGS)

crossover scaling: CLUSTER = simulated

crossover: $(STAMP)  ## maps: which system wins, over imbalance, batch, experts, ranks (simulated; CLUSTER=emulated runs them)
	$(BIN)/python -m experiments.run experiment=crossover $(SETTINGS) $(ARGS)

scaling: $(STAMP)  ## layer time and memory on 2 to 512 ranks, in nodes of eight (simulated)
	$(BIN)/python -m experiments.run experiment=scaling $(SETTINGS) $(ARGS)

calibrate: $(STAMP)  ## measure the collectives of this machine's cores: conf/network/gloo_here.yaml
	$(BIN)/python -m scripts.calibrate_network --ranks $(REAL_RANKS) --max-bytes 32M $(ARGS)

conf/network/gloo_here.yaml: scripts/calibrate_network.py $(wildcard scripts/calibration/*.py) clusters/session.py
	$(MAKE) calibrate ARGS=

fidelity: $(STAMP) conf/network/gloo_here.yaml  ## the emulator's error: the same cells on real processes and emulated
	$(BIN)/python -m experiments.run experiment=fidelity tier=$(TIER) tier.launches=6 $(FIDELITY) $(ARGS)
	$(BIN)/python -m analysis.studies.fidelity results/fidelity

fidelity-hosts: $(STAMP)  ## the same on two hosts that this machine plays, joined by wires of 1 Gbit/s and 100 Mbit/s (root, Linux)
	scripts/fidelity_hosts.sh $(BIN)/python $(TIER) $(FIDELITY)

validate-devices: $(STAMP)  ## how far simulated A100s are from the published runs: results/validate/validation.md (make samples renews the page)
	$(BIN)/python -m experiments.run experiment=validate $(ARGS)
	$(BIN)/python -m analysis.studies.validation results/validate $(TRACKED)

conf/device/here.yaml:
	$(BIN)/python -m scripts.describe_device here

validate-here: $(STAMP) conf/device/here.yaml  ## how far this machine, described, is from itself: measured and simulated cells (alone on the machine)
	$(BIN)/python -m experiments.run experiment=validate_here tier=$(TIER) $(ARGS)
	$(BIN)/python -m analysis.studies.validation results/validate_here

bench-engines: $(STAMP)  ## the engines in percent of a dense product
	$(BIN)/python -m scripts.bench_engines $(ARGS)

bench-layer: $(STAMP)  ## the MoE layer at full width: every system in percent of its bound
	$(BIN)/python -m experiments.run experiment=bench_layer $(SETTINGS) $(ARGS)

gpu: $(STAMP)  ## what needs a GPU, on one that plays four ranks: tests, engines, Figures 3 and 4, skew, attribution
	scripts/gpu_campaign.sh $(BIN)/python $(TIER)

gpu-visit: $(STAMP)  ## the same in ten minutes on a borrowed one: results/gpu-visit (VISIT_DEVICE=cpu rehearses it; docs/gpus.md)
	scripts/gpu_visit.sh $(BIN)/python results/gpu-visit

samples: $(STAMP)  ## measure the samples under results/ and the page of validation anew (two and a quarter hours on two cores; resumable; ARGS='fig3 league')
	$(BIN)/python -m scripts.samples $(ARGS)
	$(if $(ARGS),,$(MAKE) validate-devices TRACKED='--document docs/validation.md --errors devices/validated.json')

status: $(STAMP)  ## where the campaign CAMPAIGN stands
	$(BIN)/python -m experiments.status $(CAMPAIGN)

resume: $(STAMP)  ## go on with the campaign CAMPAIGN; nothing is measured twice (RETRY=failed, oom, ... or all: such cells again)
	$(BIN)/python -m experiments.status $(CAMPAIGN) --resume $(if $(RETRY),--retry $(RETRY))

report: $(STAMP)  ## rebuild report.html, figures and tables of the stored campaign CAMPAIGN from raw rows
	$(BIN)/python -m analysis $(CAMPAIGN)

figures: report  ## the same

verify-paper: $(STAMP)  ## published | recomputed | ours | verdict; CHECKOUT=the authors' repository, if you have it
	$(BIN)/python -m analysis.studies.paper $(CHECKOUT) --campaign $(if $(wildcard $(CAMPAIGN)/plan.json),$(CAMPAIGN),results/sample-paper)

docs: $(STAMP)  ## build the documentation site: site/index.html (CONFIG_DIR=a folder with system/*.yaml of your own: their cards too)
	@$(BIN)/python -c 'import material, mkdocs, mkdocstrings_handlers.python' 2>/dev/null || \
		$(INSTALL) --no-build-isolation -e '.[docs]'
	CONFIG_DIR=$(CONFIG_DIR) NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean --quiet
	@$(BIN)/python -m scripts.docs_site.check site

clean:  ## remove .venv, caches and the built site, keep results
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
