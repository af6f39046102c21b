import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from sklearn.exceptions import UndefinedMetricWarning

from ich_keras import paper
from ich_keras.evaluation import metrics
from ich_keras.evaluation.metrics import Confusion
from ich_keras.labels import LABELS

TOLERANCE = 1e-12


def matrices_of(table):
    """The paper's matrices with `any` in place of non-hemorrhage, written out here by hand."""
    result = {
        name: Confusion(tp=m.tp, fp=m.fp, tn=m.tn, fn=m.fn)
        for name, m in table.items()
        if name != "non-hemorrhage"
    }
    absent = table["non-hemorrhage"]
    result["any"] = Confusion(tp=absent.tn, fp=absent.fn, tn=absent.tp, fn=absent.fp)
    return result


def test_table_3_gives_the_numbers_of_the_text():
    values = metrics.averages(matrices_of(paper.TABLE_3))["micro_any6"]
    assert [round(values[m], 4) for m in ("precision", "sensitivity", "specificity", "f1", "accuracy")] == [
        0.9553,
        0.8397,
        0.9892,
        0.8938,
        0.9571,
    ]


def test_only_one_averaging_gives_the_numbers_of_the_text():
    values = metrics.averages(matrices_of(paper.TABLE_3))
    fits = [
        name
        for name, rates in values.items()
        if all(abs(rates[m] - p) < 5.1e-5 for m, p in zip(paper.MEASURES, paper.TEXT_TEST_2, strict=True))
    ]
    assert fits == ["micro_any6"]


@st.composite
def tables(draw):
    n = draw(st.integers(1, 60))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    prevalence = draw(st.sampled_from([0.0, 0.02, 0.3, 0.5, 1.0]))
    decimals = draw(st.sampled_from([0, 1, 2, 17]))
    truth = rng.random((n, 6)) < prevalence
    probability = np.round(rng.random((n, 6)), decimals)
    return truth, probability


def same(ours, theirs):
    if ours is None:
        assert np.isnan(theirs)
    else:
        assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)


@settings(max_examples=25, deadline=None)
@given(tables(), st.sampled_from([0.3, 0.5]))
def test_agrees_with_scikit_learn(table, threshold):
    truth, probability = table
    result = metrics.evaluate(truth, probability, threshold)
    predicted = probability >= threshold
    nan = {"zero_division": np.nan}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        for k, label in enumerate(LABELS):
            values, y, p = result["labels"][label], truth[:, k], predicted[:, k]
            tn, fp, fn, tp = sklearn_metrics.confusion_matrix(y, p, labels=[False, True]).ravel()
            assert (values["tn"], values["fp"], values["fn"], values["tp"]) == (tn, fp, fn, tp)
            same(values["accuracy"], sklearn_metrics.accuracy_score(y, p))
            same(values["sensitivity"], sklearn_metrics.recall_score(y, p, **nan))
            same(values["specificity"], sklearn_metrics.recall_score(~y, ~p, **nan))
            same(values["precision"], sklearn_metrics.precision_score(y, p, **nan))
            same(values["f1"], sklearn_metrics.f1_score(y, p, **nan))
            score = probability[:, k]
            same(values["auc"], sklearn_metrics.roc_auc_score(y, score) if 0 < y.sum() < len(y) else np.nan)
            same(
                values["average_precision"],
                sklearn_metrics.average_precision_score(y, score) if y.any() else np.nan,
            )
            same(values["brier"], np.mean((score - y) ** 2))
            missing = {name for name, value in values.items() if value is None}
            assert set(values.get("undefined", {})) == missing
        none = np.c_[truth[:, :5], ~truth[:, 5]], np.c_[predicted[:, :5], ~predicted[:, 5]]
        pairs = {"any6": (truth, predicted), "none6": none, "5": (truth[:, :5], predicted[:, :5])}
        for name, (y, p) in pairs.items():
            for kind in ("micro", "macro"):
                ours = result["averages"][f"{kind}_{name}" if name != "5" else f"{kind}5"]
                columns = [(y.ravel(), p.ravel())] if kind == "micro" else list(zip(y.T, p.T, strict=True))
                for rate, function in (
                    ("sensitivity", lambda a, b: sklearn_metrics.recall_score(a, b, **nan)),
                    ("specificity", lambda a, b: sklearn_metrics.recall_score(~a, ~b, **nan)),
                    ("precision", lambda a, b: sklearn_metrics.precision_score(a, b, **nan)),
                    ("f1", lambda a, b: sklearn_metrics.f1_score(a, b, **nan)),
                    ("accuracy", lambda a, b: np.mean(a == b)),
                ):
                    same(ours[rate], np.mean([function(a, b) for a, b in columns]))


@settings(max_examples=60, deadline=None)
@given(tables())
def test_log_loss_is_kaggles(table):
    truth, probability = table
    probability = probability.copy()
    probability[0] = [0, 1, 0, 1, 0, 1]
    result = metrics.evaluate(truth, probability)
    losses = [
        sklearn_metrics.log_loss(y, np.clip(p, 1e-7, 1 - 1e-7), labels=[False, True])
        for y, p in zip(truth.T, probability.T, strict=True)
    ]
    expected = (sum(losses) + losses[5]) / 7
    assert result["weighted_log_loss"] == pytest.approx(expected, rel=1e-9)
    assert result["clipped_probabilities"] == np.count_nonzero((probability == 0) | (probability == 1))


def test_certain_and_wrong_costs_16_and_no_more():
    truth = np.ones((1, 6), bool)
    assert metrics.evaluate(truth, np.zeros((1, 6)))["weighted_log_loss"] == pytest.approx(-np.log(1e-7))
    assert metrics.evaluate(truth, np.ones((1, 6)))["weighted_log_loss"] == pytest.approx(1e-7)
    assert metrics.evaluate(truth, np.zeros((1, 6), np.float32))["weighted_log_loss"] == pytest.approx(
        16.118, abs=1e-3
    )


def test_undefined_is_null_with_the_reason():
    result = metrics.evaluate(np.zeros((4, 6), bool), np.full((4, 6), 0.1))
    label = result["labels"]["epidural"]
    assert label["sensitivity"] is None
    assert label["auc"] is None
    assert label["specificity"] == 1
    assert label["undefined"]["sensitivity"] == "no positive slice"
    assert label["undefined"]["precision"] == "no slice predicted positive"
    macro = result["averages"]["macro_any6"]
    assert macro["f1"] is None
    assert "epidural" in macro["undefined"]["f1"]


@settings(max_examples=80, deadline=None)
@given(tables(), st.integers(0, 2**32 - 1))
def test_weighted_ranking_is_the_ranking_of_repeated_rows(table, seed):
    truth, probability = table
    y, p = truth[:, 0], probability[:, 0]
    weights = np.random.default_rng(seed).integers(0, 4, len(y))
    ranking = metrics.rank(y, p)
    auc, precision = metrics.auc_and_average_precision(ranking, weights[ranking.order])
    rows = np.repeat(np.arange(len(y)), weights)
    if not y[rows].any():
        assert np.isnan(auc)
        assert np.isnan(precision)
        return
    assert precision == pytest.approx(
        sklearn_metrics.average_precision_score(y[rows], p[rows]), rel=TOLERANCE
    )
    if y[rows].all():
        assert np.isnan(auc)
    else:
        assert auc == pytest.approx(
            sklearn_metrics.roc_auc_score(y[rows], p[rows]), rel=TOLERANCE, abs=TOLERANCE
        )


def test_a_threshold_for_each_label():
    truth = np.ones((1, 6), bool)
    probability = np.full((1, 6), 0.5)
    result = metrics.evaluate(truth, probability, [0.4, 0.5, 0.6, 0.6, 0.6, 0.6])
    assert [result["labels"][label]["tp"] for label in LABELS] == [1, 1, 0, 0, 0, 0]


def test_mean_over_folds():
    rng = np.random.default_rng(0)
    truth = rng.random((40, 6)) < 0.4
    folds = [metrics.evaluate(truth, rng.random((40, 6))) for _ in range(3)]
    mean = metrics.mean_over_folds(folds)
    assert mean["labels"]["any"]["tp"] == pytest.approx(np.mean([f["labels"]["any"]["tp"] for f in folds]))
    assert mean["averages"]["macro5"]["f1"] == pytest.approx(
        np.mean([f["averages"]["macro5"]["f1"] for f in folds])
    )
    folds[1]["labels"]["any"]["auc"] = None
    folds[1]["labels"]["any"]["undefined"] = {"auc": "no positive slice"}
    mean = metrics.mean_over_folds(folds)
    assert mean["labels"]["any"]["auc"] is None
    assert "no positive slice" in mean["labels"]["any"]["undefined"]["auc"]
