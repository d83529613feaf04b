PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# Hundreds of processes would compile the package anew, each for itself.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test lint format wheel calibration rebuild-tinyworld clean

# The main job on the bundled model: QVGen, LSQ and round-to-nearest at 3 bits beside full precision.
quickstart: $(STAMP)
	$(BIN)/python -m evalharness run --methods rtn,lsq,qvgen --bits 3
	@echo "open runs/tinyworld/report.html in a browser"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

# Processes that share the tests. One thread each, whatever the machine, or sums come in another order.
JOBS ?= 2
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

calibration: $(STAMP)
	$(BIN)/python -m evalharness.tinyworld.calibration --out docs/calibration --model 300

# From nothing to the shipped assets; on one data-centre GPU about half an hour.
DEVICE ?= cuda
BUILD ?= build/tinyworld
rebuild-tinyworld: $(STAMP)
	$(BIN)/python -m evalharness.tinyworld.training.rebuild --device $(DEVICE) --build $(BUILD)

clean:
	rm -rf .venv build dist runs
