# make demo: masks over the sample clip, from a bare clone, without PyTorch.   make test: every test that needs no GPU.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch is pinned because its ONNX exporter moves; uv picks the build for this machine's GPU, or the one without CUDA.
TORCH := torch==2.13.0
# What tells what is installed: in an environment of its own, so that it is not part of what it tells.
TOOLS := .venv-tools

.PHONY: demo published test test-again readme docs install check lint types format lock sbom audit clean

# Two cores compute four masks a second: in between the last one is moved with the picture.
demo: $(VENV)/.cpu
	$(BIN)/python -m pipeline --source samples/clip.mp4 --model u2netp --fps 8 --output demo.mp4

# The bundles that are part of the package, anew from the published weights.
published: $(VENV)/.run
	$(BIN)/python -m compile.published

test: $(VENV)/.dev
	tests/install-programs
	tests/install-axe $(VENV)/axe
	PYTHON=$(BIN)/python tests/install-torch-tensorrt $(VENV)/torch-tensorrt
	PYTHON=$(BIN)/python tests/install-ray $(VENV)/ray
	PYTHON=$(BIN)/python tests/install-openvino $(VENV)/openvino
	PYTHON=$(BIN)/python tests/install-triton $(VENV)/triton
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder || \
	  { test $$? -eq 1 && $(MAKE) --no-print-directory test-again; }

# What failed beside everything else, once more and alone: on a busy machine a thread may get no core for seconds. What fails twice
# is wrong. What passes now is named, and is to be looked at: it waits for too little.
test-again:
	@test -s .pytest_cache/v/cache/lastfailed
	@echo "failed beside others, tried alone:"; cat .pytest_cache/v/cache/lastfailed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --last-failed --last-failed-no-failures none

# The README's figures, from benchmarks/results/.
readme: $(VENV)/.run
	$(BIN)/python -m benchmarks.readme

# The site, into site/: open site/index.html, or serve it while you write with .venv/bin/python -m mkdocs serve.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

install: $(VENV)/.dev

check: lint types docs

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The versions that are installed here, for this Python, and what fits beside them for other Pythons and systems; each with its SHA-256.
lock: $(VENV)/.dev
	$(BIN)/python .ci/lock.py constraints "$(TORCH)" > $(VENV)/constraints.txt
	$(BIN)/python -m uv pip compile pyproject.toml --extra cpu --extra compile --extra page --extra energy --extra tensorrt-rtx --extra triton --extra dev \
	  --constraints $(VENV)/constraints.txt --universal --python-version 3.10 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --quiet --upgrade --output-file requirements.lock

# A software bill of materials of what is installed here, in CycloneDX's JSON, checked against its schema.
sbom: $(VENV)/.dev $(TOOLS)/.made
	mkdir -p dist
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --validate \
	  --output-file dist/edgemask.cdx.json $(BIN)/python

# Known holes in the versions of the lock file.
audit: $(TOOLS)/.made
	$(TOOLS)/bin/python .ci/audit.py requirements.lock

clean:
	rm -rf $(VENV) $(TOOLS) demo.mp4 site

$(VENV)/.cpu: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[cpu]'
	touch $@

$(VENV)/.torch: $(VENV)/.cpu
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --torch-backend=auto "$(TORCH)" || $(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

$(VENV)/.run: $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --editable '.[cpu,compile,page]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --editable '.[cpu,compile,page,energy,tensorrt-rtx,triton,dev]'
	# Metrics to check ours against; with what it asks for, a second OpenCV without windows would replace the first.
	$(BIN)/python -m pip install --quiet --no-deps "pysodmetrics>=1.6"
	touch $@

$(TOOLS)/.made: Makefile
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet "cyclonedx-bom>=7.5" "pip-audit>=2.10"
	touch $@
