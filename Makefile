# make help says what there is.
PYTHON  ?= python3
DATA    ?=
AS      ?= lungs
NAME    ?= $(if $(DATA),real,synthetic)
MINUTES ?= $(if $(DATA),14,4)
RUN     := runs/$(NAME)
RAW     := $(or $(DATA),$(RUN)/raw)
# Minutes that a run takes beside its training, on two cores with all public sets, once everything is installed.
REST    := $(if $(DATA),10,1)
PY      := .venv/bin/python
CLI     := $(PY) -m kaggle_utils
# Two processes share the files of tests; WORKERS=0 is none beside this one.
WORKERS ?= 2
PYTEST  := -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Files of tests whose numbers depend on the processor.
COMPUTE := $(patsubst %,tests/test_%.py,artefact_study calibrate checks data distributed export hardware infer lambda loss main measure metrics \
             model protocol quality robustness shards synthetic tb train tune twenty_bugs) tests/notebooks

# Notebooks' kernels write below the home folder otherwise.
export IPYTHONDIR := $(CURDIR)/.cache/ipython
export JUPYTER_DATA_DIR := $(CURDIR)/.cache/jupyter
export JUPYTER_CONFIG_DIR := $(CURDIR)/.cache/jupyter

# Opens a picture where there is a desktop.
show = @case "$$(uname)" in Darwin) open $(1);; *) [ -z "$$DISPLAY$$WAYLAND_DISPLAY" ] || xdg-open $(1);; esac >/dev/null 2>&1 || true

.PHONY: run demo weights check test test-machines test-kaggle bench notebooks slides slides-pdf docs web clean help
help:
	@echo "see something"
	@echo "  make demo            six synthetic radiographs with their lungs outlined; takes seconds, once installed"
	@echo "  make run             prepare, train, evaluate, predict on synthetic radiographs, 4 minutes of training and about 1 more"
	@echo "  make run DATA=…      the same with a folder of the raw public sets, 14 minutes and about 10 for all of them"
	@echo "  make web             the page that segments in the browser, runs/web, for any web server; needs npm"
	@echo "read and show"
	@echo "  make docs            docs/ and the API as a site, runs/site"
	@echo "  make notebooks       all notebooks again, on synthetic radiographs, saved with their outputs"
	@echo "  make slides          the talk, runs/slides/unet-lung.html, and the notebooks as its appendix; needs npm"
	@echo "  make slides-pdf      the talk as a PDF too; needs chromium"
	@echo "change"
	@echo "  make check           ruff and mypy: style, imports, types"
	@echo "  make test            all tests, in two processes; those of seconds: .venv/bin/python -m pytest -m 'not slow'"
	@echo "  make test-machines   those that compute, as on an old processor, with AVX2 and four threads, with all threads"
	@echo "  make test-kaggle     all tests with the versions of Kaggle's image; PYTHON=python3.12 is what it has"
	@echo "  make bench [DATA=…]  speed beside peers, with the raw sets the time to a Dice of 0.95, into results/"
	@echo "  make weights         the weights of a run as those that ship"
	@echo "  make clean           removes .venv, .venv-kaggle and runs/, which hold all that these commands write"

# Six synthetic radiographs, their lungs outlined.
demo: .venv/run.stamp
	@$(CLI) synth --n 6 --out runs/demo/raw >/dev/null
	@$(CLI) predict "runs/demo/raw/**/CXR_png/*.png" --out runs/demo/lungs
	@echo "your own: .venv/bin/unet-lung predict FOLDER"
	$(call show,runs/demo/lungs/contact.png)

# Status 3 of predict: some were refused.
run: .venv/run.stamp
	@echo "$(RUN): $(MINUTES) min of training, and on two cores about $(REST) more$(if $(DATA), with all public sets); each step shows what it has left"
	@echo "the same command resumes a stopped run"
	@mkdir -p $(RUN)
	$(if $(DATA),,@test -f $(RUN)/raw/.done || { $(CLI) synth --n 200 --out $(RUN)/raw && touch $(RUN)/raw/.done; })
	$(CLI) prep --input "$(RAW)" --out $(RUN)/segmentation
	$(CLI) train --data $(RUN)/segmentation --out $(RUN) --time-budget-min $(MINUTES) --resume
	$(CLI) predict $(RUN)/segmentation/test/image --weights $(RUN)/best.safetensors --out $(RUN)/predictions || test $$? -eq 3
	$(CLI) evaluate --data $(RUN)/segmentation --weights $(RUN)/best.safetensors --sizes 256 --out $(RUN)/scores
	@echo "the picture: $(RUN)/predictions/contact.png, the weights: $(RUN)/best.safetensors"
	@echo "next: $(if $(DATA),.venv/bin/unet-lung predict FOLDER --weights $(RUN)/best.safetensors,make run DATA=<folder with the \
	  raw public sets>, or .venv/bin/unet-lung predict FOLDER with the network that ships)"
	$(call show,$(RUN)/predictions/contact.png)

# The weights that predict takes when none are named, or AS others that it knows by name: those of a finished run, as float16.
weights: .venv/run.stamp
	$(PY) -c "from kaggle_utils.model import load_weights, read_header, save_weights; run = '$(RUN)/best.safetensors'; \
	  save_weights('kaggle_utils/weights/$(AS).safetensors', load_weights(run), read_header(run), half=True)"

check: .venv/dev.stamp
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: .venv/dev.stamp
	@mkdir -p .cache
	@$(PY) -m slides.make --fetch || true  # an install step: without it, or without a browser, the deck's test is skipped and says so
	$(PY) $(PYTEST) tests --basetemp .cache/tests

# What PyTorch and oneDNN may use of the processor is limited; MKL_DYNAMIC else takes no more threads than there are cores.
test-machines: .venv/dev.stamp
	@mkdir -p .cache
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1 $(PY) $(PYTEST) $(COMPUTE) --basetemp .cache/tests
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=4 MKL_DYNAMIC=FALSE $(PY) $(PYTEST) $(COMPUTE) --basetemp .cache/tests
	TEST_THREADS=all $(PY) $(PYTEST) -n 0 $(COMPUTE) --basetemp .cache/tests  # alone: two processes that each take all cores wait for each other

test-kaggle: .venv-kaggle/dev.stamp
	@mkdir -p .cache
	.venv-kaggle/bin/python $(PYTEST) tests --basetemp .cache/tests-kaggle

bench: .venv/dev.stamp
	$(PY) -m benchmarks.prep
	$(PY) -m benchmarks.train
	$(if $(DATA),$(CLI) prep --input "$(RAW)" --out $(RUN)/segmentation)
	$(PY) -m benchmarks.infer $(if $(DATA),--data $(RUN)/segmentation)
	$(PY) -m benchmarks.predict
	$(if $(DATA),$(PY) -m benchmarks.time_to_dice --data $(RUN)/segmentation)

# On synthetic radiographs, with their outputs; committed, and compared by make test.
notebooks: .venv/dev.stamp
	$(PY) notebooks/run.py

slides: .venv/dev.stamp
	$(PY) -m slides.make

slides-pdf: .venv/dev.stamp
	$(PY) -m slides.make --pdf

# Without a word from Material about mkdocs 2, which the extra keeps out.
docs: .venv/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "the site is in runs/site; to read it: $(PY) -m http.server -b 127.0.0.1 -d runs/site"

# A folder of files; from a disk: python -m http.server --bind 127.0.0.1 --directory runs/web
web: .venv/dev.stamp
	$(PY) -m web.make

# Debian keeps venv in a package of its own; as root we can fetch it, else say so.
.venv/bin/python .venv-kaggle/bin/python:
	@$(PYTHON) -m venv $(@:/bin/python=) || { rm -rf $(@:/bin/python=); \
	  apt-get update -q && apt-get install -y python3-venv && $(PYTHON) -m venv $(@:/bin/python=); } \
	  || { rm -rf $(@:/bin/python=); echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }

.venv/run.stamp: pyproject.toml requirements.txt | .venv/bin/python
	@echo "installing PyTorch and the rest into .venv: minutes, once"
	@$(PY) -m pip install -q --disable-pip-version-check -e . && touch $@

.venv/dev.stamp: pyproject.toml requirements.txt | .venv/bin/python
	@echo "installing what the project is built and tested with into .venv: minutes, once"
	@$(PY) -m pip install -q --disable-pip-version-check -e ".[dev]" && touch $@ .venv/run.stamp

.venv-kaggle/dev.stamp: pyproject.toml requirements.txt requirements-kaggle-image.txt | .venv-kaggle/bin/python
	.venv-kaggle/bin/python -m pip install -q --disable-pip-version-check -r requirements-kaggle-image.txt && touch $@

clean:
	rm -rf .venv .venv-kaggle runs
