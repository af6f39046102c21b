# make demo    phantoms -> training -> evaluation -> export -> a scan predicted, with the small arms
# make test    the whole test suite; make check: its fast part
# make lint    ruff, import-linter, mypy

PYTHON ?= python3
BIN := .venv/bin
DEMO := --data data/phantoms --runs runs/demo --protocol patient
SMALL_ARMS := tiny300 tiny299
# bench/learning.py measures this recipe.
RECIPE := --epochs 3 --steps-per-epoch 120 --batch-size 32 --learning-rate 4e-3 --schedule cosine --warmup-steps 30 \
    --ema 0.98 --loss-weights kaggle --flips horizontal
comma := ,
HYBRID := --arms $(subst $() ,$(comma),$(SMALL_ARMS))
# A seed whose first phantom patient bleeds.
DEMO_PATIENT := 22

.PHONY: demo test check lint

.venv/user: requirements.txt requirements-serving.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("Python 3.11 to 3.13 is needed, $(PYTHON) is %d.%d: name another with make PYTHON=..." % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/developer: requirements-dev.txt requirements-onnx.txt .venv/user
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: .venv/user
	$(BIN)/python -m ich_keras.ct.phantom --out data/phantoms --patients 480 --spacing 10 --seed 0
	for arm in $(SMALL_ARMS); do \
	    $(BIN)/python train.py --arch $$arm --fold 0 $(DEMO) $(RECIPE) --overwrite || exit; \
	done
	$(BIN)/python evaluate.py --test-set full $(DEMO) $(HYBRID) --out results/demo
	$(BIN)/python export.py --fold 0 $(DEMO) $(HYBRID) --out exported/demo --overwrite
	$(BIN)/python -m ich_keras.ct.phantom --out data/phantom-patient --patients 1 --seed $(DEMO_PATIENT) --headers hospital
	$(BIN)/python predict.py data/phantom-patient/PHANTOM0000 --model exported/demo --out results/demo-patient \
	    --explain --dicom-sr --dicom-sc --overwrite
	@echo
	@echo 'Done, on phantoms: the numbers say that the parts fit together, nothing about patients. Open'
	@echo '  results/demo-patient/report.html          what the model says of one more phantom patient'
	@echo '  results/demo/report.html                  the evaluation, in a browser'
	@echo '  results/demo/metrics.json                 the same numbers, for programs'
	@echo '  runs/demo/patient/tiny300/fold-0/history.csv   the training curve'
	@echo '  exported/demo/metadata.json               what the exported model expects and gives'

test: .venv/developer
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 15

check: .venv/developer
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

lint: .venv/developer
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy
