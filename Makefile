# make setup: all that development needs, in .venv; make demo; make test
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint demo-bundle clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt setup.sh tests/setup_gpu.sh
	./setup.sh $(PYTHON)
	touch $@

demo: setup
	$(BIN)/lineside demo --out out/demo

test: lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

# The bundle that the demo runs, made from nothing: renders, fits, exports and calibrates (about 8 minutes on two cores).
demo-bundle: setup
	benchmarks/demo_bundle.sh $(BIN)/lineside

clean:
	rm -rf out .venv build *.egg-info
