import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit
from sklearn import metrics as sklearn_metrics

from ich_keras.evaluation import bootstrap, metrics
from ich_keras.labels import LABELS


def simulate(rng, patients, slices=8, prevalence=0.3):
    """Slices of one patient share much of their label and of their score."""
    sick = rng.random((patients, 6)) < prevalence
    shift = rng.normal(size=(patients, 6))
    patient = np.repeat(np.arange(patients), slices)
    truth = np.where(rng.random((len(patient), 6)) < 0.9, sick[patient], ~sick[patient])
    logits = truth * 1.5 - 0.7 + shift[patient] + 0.5 * rng.normal(size=truth.shape)
    return truth, 1 / (1 + np.exp(-logits)), patient


def flat(result):
    for label, values in result["labels"].items():
        for name in (*metrics.RATES, *metrics.SCORES):
            yield ("labels", label, name), values[name]
    for average, values in result["averages"].items():
        for name in metrics.RATES:
            yield ("averages", average, name), values[name]
    yield ("weighted_log_loss",), result["weighted_log_loss"]


def test_a_resample_is_the_evaluation_of_the_repeated_rows():
    rng = np.random.default_rng(1)
    truth, probability, patient = simulate(rng, 30)
    probability = np.round(probability, 2)
    weights = bootstrap.draw(30, 5, seed=3)
    drawn = bootstrap.replicates(truth, probability, patient, weights, threshold=0.4)
    for b in range(5):
        rows = np.concatenate([np.flatnonzero(patient == c).repeat(weights[b, c]) for c in range(30)])
        expected = dict(flat(metrics.evaluate(truth[rows], probability[rows], 0.4)))
        assert set(expected) == set(drawn)
        for path, value in expected.items():
            np.testing.assert_allclose(drawn[path][b], np.nan if value is None else value, rtol=1e-12)
        np.testing.assert_allclose(
            drawn["labels", "any", "auc"][b],
            sklearn_metrics.roc_auc_score(truth[rows, 5], probability[rows, 5]),
            rtol=1e-12,
        )


def test_undefined_resamples_are_nan_and_then_the_interval_is_null():
    truth = np.zeros((20, 6), bool)
    truth[:, 5] = True
    truth[0, 0] = True
    patient = np.arange(20)
    drawn = bootstrap.replicates(truth, np.full((20, 6), 0.3), patient, bootstrap.draw(20, 400))
    share = np.isnan(drawn["labels", "epidural", "auc"]).mean()
    assert share == pytest.approx((1 - 1 / 20) ** 20, abs=0.08)
    nested = bootstrap.intervals(drawn)
    assert nested["labels"]["epidural"]["auc"] is None
    assert nested["labels"]["any"]["auc"] is None
    # Nothing is ever called: 0 in every resample, which is no certainty.
    assert nested["labels"]["any"]["sensitivity"] is None


def test_same_seed_same_draw_and_every_draw_is_whole():
    one, two = bootstrap.draw(50, 20, seed=5), bootstrap.draw(50, 20, seed=5)
    np.testing.assert_array_equal(one, two)
    assert (one.sum(axis=1) == 50).all()
    assert (bootstrap.draw(50, 20, seed=6) != one).any()


def test_agrees_with_scipy_by_slice():
    rng = np.random.default_rng(2)
    truth, probability, _ = simulate(rng, 400, slices=1)
    weights = bootstrap.draw(400, 1000, seed=1)
    ours = bootstrap.interval(
        bootstrap.replicates(truth, probability, np.arange(400), weights)["labels", "any", "auc"], 400
    )
    theirs = stats.bootstrap(
        (truth[:, 5], probability[:, 5]),
        sklearn_metrics.roc_auc_score,
        paired=True,
        vectorized=False,
        n_resamples=400,
        method="percentile",
        rng=0,
    ).confidence_interval
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.015)


def test_patients_make_wider_intervals_than_slices():
    rng = np.random.default_rng(3)
    truth, probability, patient = simulate(rng, 60, slices=20)
    path = ("labels", "any", "sensitivity")
    width = {}
    for name, codes in (("patient", patient), ("slice", np.arange(len(patient)))):
        drawn = bootstrap.replicates(truth, probability, codes, bootstrap.draw(codes.max() + 1, 300))
        low, high = bootstrap.interval(drawn[path], drawn.clusters)
        width[name] = high - low
    assert width["patient"] > 2 * width["slice"]


def test_clusters_say_what_they_are():
    groups = bootstrap.clusters(np.array(["a", "b", "a", "b"]))
    assert (groups.unit, groups.count) == ("patient", 2)
    assert groups.codes[0] == groups.codes[2] != groups.codes[1]
    assert "only 2 patients" in groups.describe()["warning"]
    groups = bootstrap.clusters(np.array(["a", "", "a", ""]))
    assert (groups.unit, groups.count) == ("patient where known, else slice", 3)
    assert len(set(groups.codes)) == 3
    assert "too narrow" in groups.describe()["warning"]
    assert bootstrap.clusters(np.array(["", ""])).unit == "slice"


def test_a_study_is_resampled_whole():
    """A patient known for one slice is its study's; without a patient the study is the unit."""
    patient = np.array(["", "a", "", "", "", "a", ""], object)
    study = np.array(["s", "s", "t", "t", "", "u", "u"], object)
    groups = bootstrap.clusters(patient, study)
    assert list(groups.codes) == [0, 0, 1, 1, 2, 0, 0]
    assert (groups.count, groups.patients, groups.studies_alone, groups.slices_alone) == (3, 1, 1, 1)
    assert groups.unit == "patient where known, else study where known, else slice"


def test_difference_is_paired():
    rng = np.random.default_rng(4)
    truth, probability, patient = simulate(rng, 80)
    better = np.clip(probability + np.where(truth, 0.02, -0.02), 0, 1)
    weights = bootstrap.draw(80, 300)
    one = bootstrap.replicates(truth, better, patient, weights)
    other = bootstrap.replicates(truth, probability, patient, weights)
    path = ("labels", "any", "brier")
    # Unpaired, the two intervals overlap; the paired difference is clearly not 0.
    assert bootstrap.interval(one[path], 80)[1] > bootstrap.interval(other[path], 80)[0]
    found = bootstrap.difference(one, other)["labels"]["any"]["brier"]
    assert found["excludes_zero"] is True
    assert found["interval"][1] < 0
    same = bootstrap.difference(other, other)["labels"]["any"]["brier"]
    assert same == {"interval": None, "excludes_zero": None}


def test_few_patients_give_no_interval_and_no_verdict():
    """Two patients make three distinct resamples: nothing can be concluded from them."""
    rng = np.random.default_rng(9)
    truth, probability, patient = simulate(rng, 40)
    better = np.clip(probability + np.where(truth, 0.1, -0.1), 0, 1)
    for count, interval, verdict in ((2, False, None), (9, False, None), (10, True, None), (30, True, True)):
        rows = patient < count
        weights = bootstrap.draw(count, 100)
        one, other = (
            bootstrap.replicates(truth[rows], p[rows], patient[rows], weights) for p in (better, probability)
        )
        assert one.clusters == count
        found = bootstrap.difference(one, other)["labels"]["any"]["brier"]
        assert (found["interval"] is not None) is interval
        assert found["excludes_zero"] is verdict
        assert (bootstrap.intervals(one)["labels"]["any"]["brier"] is not None) is interval
        assert bootstrap.mean_over_folds([one, other]).clusters == count
        assert ("warning" in bootstrap.clusters(patient[rows].astype(str)).describe()) is (count < 30)


def test_mean_over_folds_shares_the_draw():
    rng = np.random.default_rng(5)
    truth, probability, patient = simulate(rng, 20)
    weights = bootstrap.draw(20, 10)
    folds = [bootstrap.replicates(truth, p, patient, weights) for p in (probability, probability**2)]
    mean = bootstrap.mean_over_folds(folds)
    path = ("averages", "micro_any6", "f1")
    np.testing.assert_allclose(mean[path], (folds[0][path] + folds[1][path]) / 2)


@pytest.mark.slow
def test_coverage():
    """Of many simulated test sets, about 95% of patient intervals hold the true value; slice ones do not."""
    population = simulate(np.random.default_rng(10), 100_000, slices=8)
    truth = metrics.evaluate(*population[:2])
    paths = [("labels", "any", "auc"), ("labels", "any", "sensitivity"), ("averages", "micro_any6", "f1")]
    expected = dict(flat(truth))
    rounds, hits, naive = 200, dict.fromkeys(paths, 0), dict.fromkeys(paths, 0)
    for k in range(rounds):
        y, p, patient = simulate(np.random.default_rng(1000 + k), 200, slices=8)
        tried = [(patient, hits)] + ([(np.arange(len(patient)), naive)] if k < rounds // 4 else [])
        for codes, counts in tried:
            drawn = bootstrap.replicates(y, p, codes, bootstrap.draw(codes.max() + 1, 200, seed=k))
            for path in paths:
                low, high = bootstrap.interval(drawn[path], drawn.clusters)
                counts[path] += low <= expected[path] <= high
    for path in paths:
        assert 0.90 <= hits[path] / rounds <= 0.99, (path, hits)
        assert naive[path] / (rounds // 4) < 0.80, (path, naive)


@pytest.mark.slow
def test_coverage_of_a_paired_difference():
    """About 95% of the intervals of a difference of two models on the same slices hold the true one."""

    def both(rng, patients):
        truth, one, patient = simulate(rng, patients, slices=6)
        other = expit(logit(one) + rng.normal(size=truth.shape) * 0.8)
        return truth, one, other, patient

    truth, *scores, _ = both(np.random.default_rng(20), 60_000)
    expected = np.subtract(*(sklearn_metrics.roc_auc_score(truth[:, 5], p[:, 5]) for p in scores))
    rounds, hits = 120, 0
    for k in range(rounds):
        y, one, other, patient = both(np.random.default_rng(3000 + k), 150)
        weights = bootstrap.draw(150, 200, seed=k)
        drawn = [bootstrap.replicates(y, p, patient, weights) for p in (one, other)]
        found = bootstrap.difference(*drawn)["labels"]["any"]["auc"]
        low, high = found["interval"]
        hits += low <= expected <= high
    assert 0.90 <= hits / rounds <= 0.99, hits


def test_labels_in_order():
    rng = np.random.default_rng(6)
    truth, probability, patient = simulate(rng, 20)
    drawn = bootstrap.replicates(truth, probability, patient, bootstrap.draw(20, 3), workers=3)
    assert [path[1] for path in drawn if path[2:] == ("auc",)] == list(LABELS)
