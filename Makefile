# Each target is a few commands that you could type; all but `install` make .venv and install into it first, once.
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
CORES ?= 2

.PHONY: demo pictures test test-fast test-gpu fuzz lint bench install clean

install: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

# On the CPU, also where there is a GPU: what is shown does not depend on the machine, and it wants two processes.
# Encodings are so small that two side by side are done sooner than one after the other with two threads each.
demo: install
	CUDA_VISIBLE_DEVICES= snakemake --cores $(CORES) --workflow-profile workflow/profiles/local \
	  --set-threads encode_dataset=1
	@echo
	@python -m omnitune.report.summary experiments/*/report
	$(if $(OPEN),for report in experiments/*/report/index.html; do python -m webbrowser "file://$(CURDIR)/$$report"; done)

# README's pictures, from the reports that `demo` has left. Takes Chromium and its driver.
pictures: install
	python docs/draw_pictures.py

# Two at a time: most of what tests wait for is a process that starts.
test: install
	python -m pytest --numprocesses 2 --dist worksteal

# The tests that start no process and take no longer than two seconds each.
test-fast: install
	python -m pytest --numprocesses 2 --dist worksteal -m "unit and not slow"

# What a CUDA GPU computes; needs one.
test-gpu: install
	python -m pytest -m gpu

# Readers of foreign bytes against many more made-up ones than `test` takes.
fuzz: install
	OMNITUNE_FUZZ_EXAMPLES=20000 python -m pytest -n 0 tests/fuzz --timeout 0

lint: install
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	snakefmt --check Snakefile rules workflow/Snakefile
	snakemake --lint
	python tests/audit_packages.py requirements.lock

bench: install
	python -m benchmarks

clean:
	rm -rf experiments comparisons prepared resources logs .snakemake
