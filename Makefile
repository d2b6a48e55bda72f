# make demo    real smartwatch data, ten people, base models, fine-tunes, report (about a minute after set-up)
# make test    everything that continuous integration runs
# make check   lint, types and the quick tests, for every day
# make bench   the benchmarks; make soak MINUTES=60 the long fault trials

PYTHON ?= python3
BIN := env/bin
MINUTES ?= 60

.PHONY: env dev demo test alone check lint types bench soak system-packages clean

env: env/.runtime
dev: env/.development

env/.runtime: requirements.txt constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv env || { echo "error: $(PYTHON) cannot make env/: apt-get install python3-venv" >&2; rm -rf env; exit 2; }
	$(BIN)/python -m pip install --quiet -r requirements.txt -c constraints.txt
	@touch $@

env/.development: env/.runtime requirements-dev.txt requirements-slurm.txt requirements-export.txt requirements-tensorboard.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt -r requirements-slurm.txt -r requirements-export.txt -r requirements-tensorboard.txt -c constraints.txt
	@touch $@

demo: env
	$(BIN)/python prepare_data.py --demo --data_path data/watch
	$(BIN)/python generate_jobs.py --grid demo_grid.json --output-dir .
	$(BIN)/python run_two_phase_distributed.py
	$(BIN)/python report.py

test:
	@$(MAKE) --no-print-directory -j 2 dev system-packages
	@$(MAKE) --no-print-directory -j 2 lint types
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --durations=25 || $(MAKE) --no-print-directory alone

# What failed beside other tests runs once more with the machine to itself: a real failure fails again, and both are shown.
alone:
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none -rp
	@echo "warning: what is listed as PASSED here failed beside other tests (see above): it depends on what else the machine does"

check: dev lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/unit

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports --no-cache --no-logo

types: dev
	$(BIN)/mypy

# What the tests of SSH, Slurm and the report's page need; without root or apt those tests say so and are skipped.
system-packages:
	@tests/system_packages.sh

bench: dev
	$(BIN)/python benchmarks/run_all.py

soak: dev system-packages
	$(BIN)/python -m tests.trust.soak --minutes $(MINUTES)

clean:
	rm -rf env .mypy_cache .ruff_cache .hypothesis
