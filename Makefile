# make demo | test | lint | bench | clean -- each makes .venv by itself when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
# uv needs a fifth of pip's time. It is told of the further indexes and constraints that pip has; where packages come
# from one index of your own, where there is no uv, and where it fails, pip installs them.
PIP_HAS = $$($(BIN)/python -m pip config list | sed -n "s/.*\.$(1)='\(.*\)'/\1/p" | tr '\n' ' ')
UV := ! $(BIN)/python -m pip config list | grep -E '\.(index-url|no-index)=' >/dev/null && \
  $(PIP) --only-binary :all: uv 2>/dev/null && \
  UV_EXTRA_INDEX_URL="$$UV_EXTRA_INDEX_URL $(call PIP_HAS,extra-index-url)" \
  UV_CONSTRAINT="$$UV_CONSTRAINT $(call PIP_HAS,constraint)" \
  $(BIN)/python -m uv pip install -q --compile-bytecode --python $(BIN)/python
EXTRAS := -e '.[notebook,metrics,tracing,web,test]'
SMALL := $(VENV)/.installed
STAMP := $(VENV)/.installed-for-tests

.PHONY: demo test lint servers sshd slurm browser executors bench clean

$(SMALL): pyproject.toml
	@echo "installing redistq into $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -e '.[cli]'
	@touch $@

$(STAMP): $(SMALL)
	@echo "installing what the tests need ..."
	@$(UV) $(EXTRAS) 2>/dev/null || $(PIP) $(EXTRAS)
	@touch $@

demo: $(SMALL)
	@$(BIN)/python examples/word_statistics.py

# Debian's redis-server is tested beside the wheels' servers where apt can bring it; elsewhere it is skipped.
servers:
	@command -v redis-server >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server; } >/dev/null 2>&1; } || \
	  echo "redis-server is not installed: its tests are skipped"

# Workers on other machines are tested with a real sshd where apt can bring it; elsewhere that is skipped.
sshd:
	@command -v sshd /usr/sbin/sshd >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openssh-server openssh-client; } >/dev/null 2>&1; } || \
	  echo "sshd is not installed: the tests of workers over SSH are skipped"

# And as jobs of Debian's Slurm, a cluster of one node.
slurm:
	@command -v slurmctld /usr/sbin/slurmctld >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1; } || \
	  echo "Slurm is not installed: its test is skipped"

# CPython's own tests of executors run on a client where Debian has them for this Python; elsewhere they are skipped.
executors: $(STAMP)
	@$(BIN)/python -c 'import test.test_concurrent_futures' 2>/dev/null || { v=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  ls /usr/lib/python$$v/test/test_concurrent_futures* >/dev/null 2>&1 || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libpython$$v-testsuite; } >/dev/null 2>&1; } || \
	  echo "CPython's tests for Python $$v are not installed: they are skipped"; }

# The dashboard is tested in Debian's Chromium where apt can bring it; elsewhere that is skipped.
browser:
	@command -v chromium chromium-browser >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1; } || \
	  echo "chromium is not installed: the dashboard's browser test is skipped"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Processes by the hundred load redistq and the tests: not from their sources each time.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(STAMP) servers sshd slurm browser executors
	@# Beside lint all tests are loaded once, which leaves their bytecode for the four below.
	@$(BIN)/python -m pytest --collect-only -qq >/dev/null 2>&1 & $(MAKE) --no-print-directory lint && wait
	@# Four at a time on two cores, for they wait more than they compute. What fails beside others is run again by
	@# itself: that failure is printed too, and a test that fails alone fails the whole.
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder || { echo "once more, by themselves:"; \
	  $(BIN)/python -m pytest --last-failed --last-failed-no-failures none; }

# Hours: every peer, every scenario, five rounds. BENCH="--quick", "--only drain --peers redistq ardiq" and so on.
bench: $(STAMP)
	$(BIN)/python benchmarks/peers.py $(BENCH)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
