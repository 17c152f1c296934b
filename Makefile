# Every target sets up what it needs and can be repeated. `make help` lists them.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SOURCES := setup.py $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)

# The build is in place, and this folder is on the path of the virtual environment.
#
# If $(PYTHON) has a suitable torch, the virtual environment sees all its packages and works without a network. Otherwise
# the version of torch that the project is tested with is installed.
TORCH := torch==2.13.0
HAS_TORCH := import sys, torch; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11))
LEND := import site, sys; print("\n".join([*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]))
# Required packages; and optional ones, for plots, Parquet, safetensors, a progress bar and more tests.
NEEDED := setuptools numpy ninja pybind11 pytest
WANTED := tqdm matplotlib safetensors pyarrow hypothesis scikit-learn pytest-xdist
LINTERS := ruff clang-format
DOCUMENTERS := mkdocs-material mkdocstrings[python]
MISSING := import importlib.util as u, sys; names = {"scikit-learn": "sklearn", "clang-format": "clang_format", "pytest-xdist": "xdist"}; \
	print(*(n for n in sys.argv[1:] if not u.find_spec(names.get(n, n))))
# With pytest-xdist, tests run on all cores: each worker begins with its share, and idle workers take tests from busy ones.
# Threads wait passively, since spinning takes the cores from other tests and halves the rate of 16-bit steps.
WORKERS := import importlib.util as u; print("-n auto --maxprocesses 8 --dist worksteal" if u.find_spec("xdist") else "")
LINT := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

# Run a command with its output in a log, and show what it installs or compiles, with the elapsed seconds. The exit
# status is the command's.
define PROGRESS
import re, signal, subprocess, sys, time
log, *command = sys.argv[1:]
shown = (
    (r"Collecting (\S+)$$", "looking for {}"),
    (r"\s*(?:Downloading|Using cached) (?:\S*/)?([^-/\s]+)-([^-/\s]+)-\S+\.whl (\(.*\))$$", "downloading {} {} {}"),
    (r"Installing collected packages: (.*)", "installing {}"),
    (r"(linreg_ext: .*)", "{}"),
    (r"\[(\d+/\d+)\] .* -c (?:\S*/)?((?:csrc|build/cpu)/\S+)", "compiled {} {}"),
    (r"\S*(?:[gc]\+\+|gcc|cc|clang|nvcc) .* -c (?:\S*/)?((?:csrc|build/cpu)/\S+)", "compiling {}"),
)
began = time.monotonic()
with open(log, "w") as file, subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
) as child:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in child.stdout:
        file.write(line)
        for pattern, words in shown:
            if found := re.match(pattern, line):
                print(f"{time.monotonic() - began:4.0f} s  {words.format(*found.groups())}", flush=True)
                break
sys.exit(child.returncode if child.returncode >= 0 else 128 - child.returncode)
endef
export PROGRESS
SHOW := $(PYTHON) -c "$$PROGRESS"
PIP := -m pip install --disable-pip-version-check --progress-bar off --retries 1

.PHONY: help train test test-all mutants bench examples docs lint format build sanitize versions cuda-compile gpu-check clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

train: build ## fit the shipped table: progress, coefficients, weights, history and plot in runs/
	$(RUN) -m linreg_ext fit

PYTEST := OMP_WAIT_POLICY=passive $(RUN) -m pytest $$($(RUN) -c '$(WORKERS)')

test: build ## pass the tests, in two or three minutes
	$(PYTEST) -m "not extended" $(ARGS)

test-all: build ## pass all tests: also every combination, thousands of random problems, and the CUDA kernels on the CPU
	$(PYTEST) $(ARGS)

mutants: $(VENV)/.torch ## plant small faults in copies of the sources, each of which must fail a test; ARGS='--only TEXT', '--list'
	$(RUN) tests/mutation.py $(ARGS)

examples: build ## run the five tutorial programs, eager and fused side by side
	$(RUN) -m linreg_ext.examples

bench: build ## measure the fused step beside its peers; ARGS='tiny --quick' selects
	$(RUN) -m benchmarks $(ARGS)

sanitize: ## run the CPU kernels under AddressSanitizer, UBSan and ThreadSanitizer (needs only g++)
	$(PYTHON) tests/sanitizers.py $(ARGS)

versions: ## install other versions of Python and torch, and run the tests under them; ARGS='3.12:2.11' selects
	$(PYTHON) tests/versions.py $(ARGS)

cuda-compile: $(VENV)/.torch ## compile the CUDA kernels for every architecture, and check their machine code (needs nvcc)
	@$(RUN) -c 'import sys; sys.path.insert(0, "tests"); import cuda_compile as c; sys.exit(not c.find_nvdisasm())' || \
		$(RUN) $(PIP) nvidia-cuda-nvdisasm
	$(RUN) tests/cuda_compile.py $(ARGS)

gpu-check: $(VENV)/.torch ## on a machine with a GPU, build for it, test, sanitize and measure, within ten minutes
	$(RUN) -m benchmarks.gpu_check $(ARGS)

docs: $(VENV)/.documenters ## build the documentation into build/docs
	NO_MKDOCS_2_WARNING=1 LINREG_EXT_REFERENCE=1 $(RUN) -m mkdocs build --strict --quiet

lint: $(VENV)/.linters ## check style and formatting
	$(LINT) ruff check .
	$(LINT) ruff format --check .
	$(LINT) clang-format --dry-run -Werror $(filter csrc/%,$(SOURCES)) $(wildcard tests/sanitize/*.cpp)

format: $(VENV)/.linters ## format the sources
	$(LINT) ruff check --fix .
	$(LINT) ruff format .
	$(LINT) clang-format -i $(filter csrc/%,$(SOURCES)) $(wildcard tests/sanitize/*.cpp)

build: $(VENV)/.built ## compile the extension in place

$(VENV)/.built: $(VENV)/.installed $(VENV)/.torch $(SOURCES)
	@echo "compiling; build/log has the details"; mkdir -p build
	@NINJA_STATUS='[%f/%t] ' $(SHOW) build/log $(RUN) setup.py build_ext --inplace || { cat build/log; exit 1; }
	@echo "$(CURDIR)" >"$$($(VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')/linreg_ext.pth"
	@touch $@

# Rewritten when the torch to build against changes.
$(VENV)/.torch: $(VENV)/.installed FORCE
	@version="$$($(VENV)/bin/python -c 'import importlib.metadata as m; print(m.version("torch"))')"; \
		test "$$(cat $@ 2>/dev/null)" = "$$version" || echo "$$version" >$@

FORCE:

$(VENV)/bin/python:
	@mkdir -p build; if $(PYTHON) -c '$(HAS_TORCH)' 2>/dev/null; then \
		echo "using the torch of $$(command -v $(PYTHON))"; \
		$(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -c '$(LEND)' >"$$($(VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')/lender.pth"; \
	else \
		echo "installing $(TORCH) into $(VENV); build/torch.log has the details" && $(PYTHON) -m venv $(VENV) && \
		{ $(SHOW) build/torch.log $(RUN) $(PIP) $(TORCH) || { cat build/torch.log; false; }; }; \
	fi || { rm -rf $(VENV); exit 1; }

# Without a network, a missing optional package is skipped, and a missing required one stops here with pip's reason.
$(VENV)/.installed: $(VENV)/bin/python Makefile
	@mkdir -p build; missing="$$($(RUN) -c '$(MISSING)' $(NEEDED))"; test -z "$$missing" || { \
		echo "installing required packages; build/needed.log has the details"; \
		$(SHOW) build/needed.log $(RUN) $(PIP) $$missing || { cat build/needed.log; exit 1; }; }
	@missing="$$($(RUN) -c '$(MISSING)' $(WANTED))"; test -z "$$missing" || { \
		echo "installing optional packages; build/wanted.log has the details"; \
		$(SHOW) build/wanted.log $(RUN) $(PIP) $$missing || echo "continuing without: $$missing"; }
	@touch $@

$(VENV)/.documenters: $(VENV)/.installed
	@mkdir -p build; $(SHOW) build/documenters.log $(RUN) $(PIP) $(DOCUMENTERS) || { cat build/documenters.log; exit 1; }
	@touch $@

$(VENV)/.linters: $(VENV)/bin/python
	@mkdir -p build; $(SHOW) build/linters.log $(RUN) $(PIP) $(LINTERS) || { cat build/linters.log; exit 1; }
	@touch $@

clean: ## remove everything built or installed here
	rm -rf $(VENV) build dist *.egg-info linreg_ext/_C*.so .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
