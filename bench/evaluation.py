"""How fast the evaluation is: `python -m bench.evaluation [--json FILE]`.

Compares the bootstrap with scipy.stats.bootstrap over scikit-learn's measures (one label, by slice, since
SciPy knows no clusters), on a subsample that SciPy can handle.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from ich_keras.evaluation import bootstrap
from ich_keras.evaluation.evaluate import evaluate_predictions
from ich_keras.files import write_json
from ich_keras.labels import LABELS

PREVALENCE = np.array([0.0042, 0.048, 0.0348, 0.0474, 0.0627, 0.1434])
"""Of Kaggle's training set."""


def simulate(slices: int, patients: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels bool [n, 6], probabilities float64 [n, 6], patients int [n]."""
    rng = np.random.default_rng(seed)
    truth = rng.random((slices, 6)) < PREVALENCE
    logits = rng.normal(size=(slices, 6)) + np.where(truth, 1.0, -3.0)
    return truth, 1 / (1 + np.exp(-logits)), rng.integers(0, patients, slices)


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_bootstrap(slices: int, patients: int, resamples: int) -> dict[str, float]:
    truth, probability, patient = simulate(slices, patients)
    before = peak_megabytes()
    start = time.perf_counter()
    groups = bootstrap.clusters(np.char.add("p", patient.astype(str)))
    drawn = bootstrap.replicates(truth, probability, groups.codes, bootstrap.draw(groups.count, resamples))
    bootstrap.intervals(drawn)
    seconds = time.perf_counter() - start
    print(
        f"bootstrap, {slices:,} slices x 6 labels x {resamples:,} resamples, {groups.count:,} patients: "
        f"{seconds:.1f} s, {len(drawn)} measures, peak {peak_megabytes():.0f} MB "
        f"({before:.0f} MB before)"
    )
    return {"seconds": seconds, "peak_megabytes": peak_megabytes()}


def compare_with_scipy(slices: int, resamples: int) -> dict[str, float]:
    truth, probability, _ = simulate(slices, slices)
    y, p = truth[:, 5], probability[:, 5]
    start = time.perf_counter()
    for function in (roc_auc_score, average_precision_score):
        stats.bootstrap(
            (y, p), lambda a, b, function=function: function(a, b), paired=True, vectorized=False,
            n_resamples=resamples, method="percentile", rng=0,
        )  # fmt: skip
    theirs = time.perf_counter() - start
    start = time.perf_counter()
    weights = bootstrap.draw(slices, resamples)
    drawn = bootstrap.replicates(truth, probability, np.arange(slices), weights)
    ours = time.perf_counter() - start
    print(
        f"{slices:,} slices, {resamples} resamples: scipy.stats.bootstrap over scikit-learn {theirs:.1f} s "
        f"for AUC and average precision of one label; ours {ours:.2f} s for all {len(drawn)} measures of six "
        f"labels: {theirs / ours:.0f} times as fast, {theirs / 2 * len(drawn) / ours:.0f} times a measure"
    )
    return {"scipy_seconds": theirs, "seconds": ours, "ratio": theirs / ours}


def time_evaluation(slices: int, models: int, folds: int, resamples: int) -> dict[str, float]:
    """Everything that `evaluate_predictions` does, reports and files included.

    Three models of ten folds with intervals are what ten trained folds of two arms and their hybrid ask for.
    """
    truth, probability, patient = simulate(slices, slices // 40)
    frame = pd.DataFrame({"id": [f"ID_{k:09x}" for k in range(slices)]})
    frame["patient"] = np.char.add("ID_p", patient.astype(str))
    labels = frame.copy()
    frame["study"] = np.char.add("ID_s", patient.astype(str))
    labels[list(LABELS)] = truth.astype(np.int8)
    frames: dict = {}
    for model in range(models):
        for fold in range(folds):
            shift = np.random.default_rng([model, fold]).uniform(0.8, 1.25)
            frames.setdefault(f"model {model}", {})[fold] = frame.assign(
                **dict(zip(LABELS, (probability**shift).T, strict=True))
            )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        evaluate_predictions(frames, labels, Path(folder), resamples=resamples)
        seconds = time.perf_counter() - start
    print(
        f"evaluation, {slices:,} x 6, {models} model(s), {folds} fold(s), {resamples:,} resamples, files "
        f"written: {seconds:.1f} s, peak {peak_megabytes():.0f} MB"
    )
    return {"seconds": seconds, "peak_megabytes": peak_megabytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=75_281)
    parser.add_argument("--patients", type=int, default=17_000)
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--folds", type=int, default=10, help="of the realistic case (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the measurements")
    args = parser.parse_args()
    found = {
        "arguments": {name: value for name, value in vars(args).items() if name != "json"},
        "bootstrap": time_bootstrap(args.slices, args.patients, args.resamples),
        "scipy": compare_with_scipy(min(args.slices, 20_000), 50),
        "without_intervals": time_evaluation(min(args.slices * 3 // 2, 112_921), 1, 1, 0),
        "realistic": time_evaluation(args.slices, 3, args.folds, args.resamples),
    }
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    main()
