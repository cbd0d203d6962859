# make demo | check | test: each sets up in .venv what it needs, once; make setup: everything that development needs
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo check test lint demo-bundle clean

# A stage's stamp; what belongs to each is in setup.sh.
.venv/run .venv/train .venv/check: pyproject.toml constraints.txt setup.sh
	./setup.sh $(@F) $(PYTHON)

.venv/test: pyproject.toml constraints.txt setup.sh tests/setup_gpu.sh
	./setup.sh $(@F) $(PYTHON)

setup: .venv/test

demo: .venv/run
	$(BIN)/lineside demo --out out/demo

# Lint, types, and the tests that neither start processes nor fit nor build.
check: .venv/check
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadgroup -q --timeout 60

# Everything: real lines in processes of their own on one worker, fits and exports beside them on the other. A line that
# keeps real time may miss it on a busy machine: a test that failed there has to pass alone, and its failure stays above.
test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadgroup \
		|| $(BIN)/python -m pytest --last-failed --last-failed-no-failures none

# The bundle that the demo runs, made from nothing: renders, fits, exports and calibrates (about 8 minutes on two cores).
demo-bundle: .venv/train
	benchmarks/demo_bundle.sh $(BIN)/lineside

clean:
	rm -rf out .venv build *.egg-info
