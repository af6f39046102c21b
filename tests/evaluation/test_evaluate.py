import csv
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from sklearn.metrics import recall_score, roc_auc_score

from ich_keras.errors import InputError
from ich_keras.evaluation import bootstrap, metrics
from ich_keras.evaluation.command import evaluate_files
from ich_keras.evaluation.evaluate import evaluate_predictions
from ich_keras.evaluation.headline import why_no_interval
from ich_keras.evaluation.predictions import read_predictions
from ich_keras.labels import LABELS

QUICK = {"resamples": 0, "html": False}


def make_labels(rng, n=300, prefix="ID_"):
    truth = rng.random((n, 6)) < 0.04
    truth[:, 5] = truth[:, :5].any(axis=1)
    frame = pd.DataFrame({"id": [f"{prefix}{k:04}" for k in range(n)]})
    frame["patient"] = [f"{prefix}p{k // 6}" for k in range(n)]
    frame["study"] = [f"{prefix}s{k // 6}" for k in range(n)]
    frame[list(LABELS)] = truth.astype(np.int8)
    return frame


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def labels(rng):
    return make_labels(rng)


def simulate(rng, labels, signal=1.5):
    logits = signal * (2 * labels[list(LABELS)].to_numpy() - 1) + rng.normal(size=(len(labels), 6))
    frame = labels[["id", "patient", "study"]].copy()
    frame[list(LABELS)] = 1 / (1 + np.exp(-logits))
    return frame


def make_frames(rng, labels, arms=("efficientnetb3", "inceptionresnetv2"), folds=(0, 1)):
    frames = {arm: {k: simulate(rng, labels) for k in folds} for arm in arms}
    frames["hybrid"] = {}
    for k in folds:
        mean = frames[arms[0]][k].copy()
        mean[list(LABELS)] = (mean[list(LABELS)] + frames[arms[1]][k][list(LABELS)]) / 2
        frames["hybrid"][k] = mean
    return frames


def test_writes_the_outputs(rng, labels, tmp_path):
    frames = make_frames(rng, labels)
    context = {"protocol": "paper"}
    document = evaluate_predictions(frames, labels, tmp_path, test_set="full", context=context, resamples=50)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"metrics.json", "predictions.csv", "report.md", "report.html"}
    read = json.loads((tmp_path / "metrics.json").read_text())
    assert read == json.loads(json.dumps(document))
    assert read["model"] == "hybrid"
    assert read["n"] == 300
    assert read["patients"] == 50
    assert list(read["models"]) == ["efficientnetb3", "inceptionresnetv2", "hybrid"]
    assert list(read["models"]["hybrid"]["folds"]) == ["0", "1"]
    expected = roc_auc_score(labels["any"], frames["hybrid"][1]["any"])
    assert read["models"]["hybrid"]["folds"]["1"]["labels"]["any"]["auc"] == pytest.approx(
        expected, rel=1e-12
    )
    titles = [table["title"] for table in read["tables"]]
    assert [title.split(".")[0] for title in titles if title[0] in "TF"] == [
        "Table 1",
        "Table 2",
        "Figure 1",
        "Table 4",
    ]
    report = (tmp_path / "report.md").read_text()
    assert "0.9057" in report  # the paper's Avg precision
    assert "9,401" in report  # Table 2
    assert "SYNTHETIC" not in report
    assert "not in the paper" not in report


def test_structure_of_metrics_json(rng, labels, tmp_path):
    frames = {"mine": {"all": simulate(rng, labels, signal=0.5)}}
    document = evaluate_predictions(frames, labels, tmp_path, resamples=40, html=False)
    assert {"n", "threshold", "labels", "averages", "weighted_log_loss", "intervals", "study"} <= set(
        document
    )
    assert set(document["averages"]) == set(metrics.AVERAGES)
    counted = {"tp", "fp", "tn", "fn", *metrics.RATES, *metrics.SCORES}
    for label in LABELS:
        assert counted <= set(document["labels"][label])
        assert set(document["intervals"]["labels"][label]) == {*metrics.RATES, *metrics.SCORES}
        for aggregate in ("max", "mean_top3"):
            low, high = document["intervals"]["study"][aggregate]["labels"][label]["auc"]
            assert low <= document["study"][aggregate]["labels"][label]["auc"] <= high
    assert document["intervals"]["unit"] == "patient"
    assert document["intervals"]["resamples"] == 40
    assert document["study"]["studies"] == 50


def test_study_numbers_by_pandas(rng, labels, tmp_path):
    frame = simulate(rng, labels)
    document = evaluate_predictions({"mine": {"all": frame}}, labels, tmp_path, **QUICK)
    score = frame.groupby("study")["any"].max()
    truth = labels.groupby("study")["any"].max()
    found = document["study"]["max"]["labels"]["any"]
    assert found["auc"] == pytest.approx(roc_auc_score(truth, score))
    assert found["sensitivity"] == pytest.approx(recall_score(truth, score >= 0.5))


def test_intervals_and_differences_are_those_of_the_bootstrap(rng, labels, tmp_path):
    frames = make_frames(rng, labels)
    document = evaluate_predictions(frames, labels, tmp_path, resamples=60, seed=4, html=False)
    groups = bootstrap.clusters(labels["patient"].to_numpy(object))
    weights = bootstrap.draw(groups.count, 60, seed=4)
    truth = labels[list(LABELS)].to_numpy(bool)

    def mean(model):
        values = [
            bootstrap.replicates(truth, frame[list(LABELS)].to_numpy(), groups.codes, weights)
            for frame in frames[model].values()
        ]
        return bootstrap.mean_over_folds(values)["averages", "micro_any6", "f1"]

    hybrid, arm = mean("hybrid"), mean("efficientnetb3")
    assert document["intervals"]["averages"]["micro_any6"]["f1"] == pytest.approx(
        bootstrap.interval(hybrid, 50)
    )
    difference = document["differences"]["efficientnetb3"]["slice"]["averages"]["micro_any6"]["f1"]
    assert difference["interval"] == pytest.approx(bootstrap.interval(hybrid - arm, 50))
    # Averaging two noisy arms helps, and paired resamples show it.
    assert difference["excludes_zero"] is True


def test_study_intervals_resample_the_studies_patients(rng, labels, tmp_path):
    labels["patient"] = rng.choice(list("abcdefghijkl"), 50)[np.arange(300) // 6]
    frame = simulate(rng, labels, signal=0.7)
    document = evaluate_predictions(
        {"mine": {"all": frame}}, labels, tmp_path, resamples=80, seed=1, html=False
    )
    by_study = frame.groupby("study")[list(LABELS)].max()
    truth = labels.groupby("study")[list(LABELS)].max().loc[by_study.index]
    patient = labels.groupby("study")["patient"].first().loc[by_study.index]
    codes = np.unique(patient, return_inverse=True)[1]
    weights = bootstrap.draw(codes.max() + 1, 80, seed=1)
    drawn = bootstrap.replicates(truth.to_numpy(bool), by_study.to_numpy(), codes, weights)
    for measure in ("auc", "sensitivity"):
        found = document["intervals"]["study"]["max"]["labels"]["any"][measure]
        assert found == pytest.approx(bootstrap.interval(drawn["labels", "any", measure], 12))


def test_slices_without_patients_are_said(rng, labels, tmp_path):
    frame = simulate(rng, labels).drop(columns=["patient", "study"])
    bare = labels.drop(columns=["patient", "study"])
    document = evaluate_predictions({"mine": {"all": frame}}, bare, tmp_path, resamples=20, html=False)
    assert document["intervals"]["unit"] == "slice"
    assert document["study"] is None
    assert "resampled one by one" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(("patients", "said"), [(2, "only 2 patients"), (20, "only 20 patients")])
def test_few_patients_are_warned_of_where_the_reader_looks_first(rng, patients, said, tmp_path):
    labels = make_labels(rng).assign(study="")
    labels["patient"] = [f"p{k % patients}" for k in range(300)]
    document = evaluate_predictions(make_frames(rng, labels), labels, tmp_path, resamples=20, html=False)
    report = (tmp_path / "report.md").read_text()
    assert said in report.split("## Beside the paper")[0]
    assert "excludes 0" not in report
    table = report.split("minus each other model")[1].split("##")[0]
    assert said in table
    assert (document["intervals"]["labels"]["any"]["auc"] is None) is (patients == 2)


def test_a_card_without_an_interval_says_why():
    method = {"patients": 2, "studies_alone": 0, "slices_alone": 0}
    few, many = {"intervals": method}, {"intervals": {**method, "patients": 50}}
    assert why_no_interval(few, 0.5) == "no interval: 2 patients"
    assert why_no_interval(many, 1.0) == "no interval: no error in any resample"
    assert why_no_interval(many, 0.5) == "no interval: undefined in resamples"
    assert why_no_interval(many, None) == "undefined: one class only"
    assert why_no_interval({}, 0.5) == "no intervals asked for"


def test_notes_beside_the_numbers(rng, labels, tmp_path):
    frames = {"mine": {0: simulate(rng, labels)}}
    frames["mine"][0]["any"] = np.where(labels["any"] == 1, 0.9, frames["mine"][0]["any"])
    other = make_labels(rng, prefix="V_")
    other.loc[:11, "patient"] = "ID_p3"
    evaluate_predictions(
        frames, labels, tmp_path, resamples=20, html=False,
        validation={"mine": {0: simulate(rng, other)}}, validation_labels=other,
    )  # fmt: skip
    report = (tmp_path / "report.md").read_text()
    table = report.split("### Each label, mine")[1].split("###")[0]
    assert "what another training would change" in table
    assert "without correction for many" in table
    # P(no error among m patients) = 0.05 at the bound.
    m = labels.loc[labels["any"] == 1, "patient"].nunique()
    bound = brentq(lambda share: (1 - share) ** m - 0.05, 1e-6, 0.999)
    assert f"any sensitivity 1, {m} patients: at most {bound:.1%}" in table
    assert "Warning: 1 patients have slices in the validation set" in report
    assert "share of positives" in report


def test_patients_are_filled_in_within_a_study(rng, labels, tmp_path):
    labels["patient"] = labels["patient"].where(labels.index % 6 == 3, "")
    document = evaluate_predictions(
        {"mine": {0: simulate(rng, labels).assign(patient="")}}, labels, tmp_path, resamples=20, html=False
    )
    assert document["intervals"]["unit"] == "patient"
    assert document["intervals"]["patients"] == 50


def test_operating_points_come_from_validation(rng, labels, tmp_path):
    other = make_labels(rng, prefix="V_")
    frames, validation = ({"mine": {0: simulate(rng, table)}} for table in (labels, other))
    document = evaluate_predictions(
        frames, labels, tmp_path, validation=validation, validation_labels=other, resamples=60, html=False
    )
    spans = document["intervals"]["operating_points"]
    low, high = spans["sensitivity_95"]["labels"]["any"]["sensitivity"]
    assert low > document["intervals"]["labels"]["any"]["sensitivity"][0]
    assert spans["paper"]["labels"] == {
        label: {rate: document["intervals"]["labels"][label][rate] for rate in (*metrics.RATES, "brier")}
        for label in LABELS
    }
    points = document["models"]["mine"]["folds"]["0"]["operating_points"]["sensitivity_95"]["labels"]["any"]
    scores = np.sort(validation["mine"][0].loc[other["any"] == 1, "any"])
    assert points["threshold"] == scores[int(np.floor(0.05 * len(scores)))]
    called = frames["mine"][0]["any"] >= points["threshold"]
    assert points["sensitivity"] == pytest.approx(recall_score(labels["any"], called))
    assert low <= points["sensitivity"] <= high
    fitted = json.loads((tmp_path / "calibration.json").read_text())["models"]["mine"]["0"]
    assert fitted["fitted_on"]["slices"] == 300
    assert fitted["thresholds"]["sensitivity_95"][5] == points["threshold"]
    assert set(document["calibration"]) == {"before", "temperature", "isotonic"}


def test_fitting_on_evaluated_rows_is_refused(rng, labels, tmp_path):
    frames = {"mine": {0: simulate(rng, labels)}}
    with pytest.raises(InputError, match="fitted on evaluated rows: 300"):
        evaluate_predictions(
            frames, labels, tmp_path / "out", validation=frames, validation_labels=labels, **QUICK
        )
    assert not (tmp_path / "out").exists()


def test_predictions_csv_reads_back(rng, labels, tmp_path):
    frames = make_frames(rng, labels)
    evaluate_predictions(frames, labels, tmp_path, **QUICK)
    read = read_predictions(tmp_path / "predictions.csv")
    for model, folds in frames.items():
        for fold, frame in folds.items():
            np.testing.assert_array_equal(read[model][fold][list(LABELS)], frame[list(LABELS)])
            assert list(read[model][fold]["patient"]) == list(frame["patient"])
    with open(tmp_path / "predictions.csv", newline="") as file:
        assert next(csv.reader(file)) == ["model", "fold", "id", "patient", "study", *LABELS]


def test_small_arms_and_phantoms_are_marked_in_every_output(rng, labels, tmp_path):
    frames = make_frames(rng, labels, arms=("tiny300", "tiny299"))
    document = evaluate_predictions(
        frames, labels, tmp_path, test_set="full", context={"synthetic": True}, resamples=20
    )
    assert document["synthetic"] is True
    assert all("not in the paper" in model["title"] for model in document["models"].values())
    for name in ("report.md", "report.html"):
        assert "SYNTHETIC" in (tmp_path / name).read_text()
    report = (tmp_path / "report.md").read_text()
    for name in ("tiny300", "tiny299", "Hybrid"):
        lines = [line for line in report.splitlines() if line.startswith(f"| {name}")]
        assert lines
        assert all("not in the paper" in line for line in lines)
    # The table of predictions says it too, and what is made from it.
    again = evaluate_files(
        tmp_path / "predictions.csv", write(labels, tmp_path / "l.csv"), tmp_path / "b", resamples=0
    )
    assert again["synthetic"] is True


def test_row_order_does_not_matter(rng, labels, tmp_path):
    frames = make_frames(rng, labels, folds=(0,))
    one = evaluate_predictions(frames, labels, tmp_path / "a", **QUICK)
    shuffled = {m: {k: f.sample(frac=1, random_state=3) for k, f in v.items()} for m, v in frames.items()}
    two = evaluate_predictions(shuffled, labels.sample(frac=1, random_state=4), tmp_path / "b", **QUICK)
    for label, values in one["labels"].items():
        assert values == pytest.approx(two["labels"][label], rel=1e-12)


def test_nothing_is_left_after_an_error(rng, labels, tmp_path):
    frames = make_frames(rng, labels)
    with pytest.raises(InputError):
        evaluate_predictions(frames, labels.iloc[:-1], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no predictions"):
        evaluate_predictions({}, labels, tmp_path / "out")


def write(frame, path):
    frame.to_csv(path, index=False)
    return path


def test_from_files(rng, labels, tmp_path):
    frame = simulate(rng, labels)
    paths = write(frame, tmp_path / "p.csv"), write(labels, tmp_path / "l.csv")
    document = evaluate_files(*paths, tmp_path / "out", **QUICK)
    expected = metrics.evaluate(labels[list(LABELS)].to_numpy(), frame[list(LABELS)].to_numpy())
    assert document["labels"] == expected["labels"]
    assert document["model"] == "p"


def test_from_files_with_validation(rng, labels, tmp_path):
    other = make_labels(rng, prefix="V_")
    both = write(pd.concat([labels, other]), tmp_path / "l.csv")
    predictions = write(simulate(rng, labels), tmp_path / "p.csv")
    validation = write(simulate(rng, other), tmp_path / "v.csv")
    document = evaluate_files(
        predictions, both, tmp_path / "out", resamples=0, validation_predictions=validation
    )
    assert document["n"] == 300
    assert document["operating_points"]["youden"]["labels"]["any"]["sensitivity"] > 0.7


def test_validation_of_no_evaluated_fold_is_refused(rng, labels, tmp_path):
    other = make_labels(rng, prefix="V_")
    frames = {"mine": {0: simulate(rng, labels), 1: simulate(rng, labels)}}
    given = {"validation_labels": other, **QUICK}
    for validation in ({"mine": {7: simulate(rng, other)}}, {"theirs": {0: simulate(rng, other)}}):
        with pytest.raises(
            InputError, match=r"1 \((mine, fold 7|theirs, fold 0)\).*mine, fold 0, mine, fold 1"
        ):
            evaluate_predictions(frames, labels, tmp_path, validation=validation, **given)
    evaluate_predictions(frames, labels, tmp_path, validation={"mine": {1: simulate(rng, other)}}, **given)
    assert "nothing was fitted: mine, fold 0." in (tmp_path / "report.md").read_text()


def test_validation_does_not_excuse_a_missing_prediction(rng, labels, tmp_path):
    other = make_labels(rng, prefix="V_")
    both = write(pd.concat([labels, other]), tmp_path / "l.csv")
    predictions = write(simulate(rng, labels).iloc[:-3], tmp_path / "p.csv")
    validation = write(simulate(rng, other), tmp_path / "v.csv")
    for given in (
        {"labels": both},
        {"labels": write(labels, tmp_path / "t.csv"), "validation_labels": write(other, tmp_path / "vl.csv")},
    ):
        with pytest.raises(InputError, match=r"without a prediction: 3 \(ID_0297"):
            evaluate_files(
                predictions, out=tmp_path / "out", validation_predictions=validation, **given, **QUICK
            )


def run_script(request, *arguments):
    """evaluate.py as a user runs it; its last line of output says which frameworks were imported."""
    code = (
        "import sys, runpy, atexit; "
        "loaded = lambda: print(sorted({'tensorflow', 'keras', 'jax', 'torch'} & set(sys.modules))); "
        "atexit.register(loaded); runpy.run_path('evaluate.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=request.config.rootpath)


def test_the_script_needs_no_framework(rng, labels, tmp_path, request):
    other = make_labels(rng, prefix="V_")
    tables = {
        "--predictions": simulate(rng, labels),
        "--labels": labels,
        "--validation-predictions": simulate(rng, other),
        "--validation-labels": other,
    }
    given = [x for name, table in tables.items() for x in (name, write(table, tmp_path / f"{name[2:]}.csv"))]
    found = run_script(request, *given, "--out", tmp_path / "out", "--resamples", 20)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "[]"
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert document["operating_points"]["youden"]["labels"]["any"]["sensitivity"] > 0.7


@pytest.mark.slow
def test_the_benchmark_writes_its_measurements(tmp_path, request):
    sizes = ["--slices", "400", "--patients", "40", "--resamples", "20", "--folds", "2"]
    command = [sys.executable, "-m", "bench.evaluation", *sizes, "--json", str(tmp_path / "b.json")]
    subprocess.run(command, check=True, capture_output=True, cwd=request.config.rootpath)
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["arguments"]["folds"] == 2
    for case in ("bootstrap", "scipy", "without_intervals", "realistic"):
        assert found[case]["seconds"] > 0


def test_needs_no_framework(request):
    code = (
        "import sys; import ich_keras.evaluation.command, ich_keras.evaluation.report; "
        "print(sorted({'tensorflow', 'keras', 'jax', 'torch'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=request.config.rootpath
    )
    assert found.stdout.strip() == "[]"
