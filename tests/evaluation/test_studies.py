import numpy as np
import pandas as pd

from ich_keras.evaluation.studies import group_studies


def test_against_pandas():
    rng = np.random.default_rng(0)
    study = rng.choice(["s1", "s2", "s3", "s4", ""], 60).astype(object)
    study[:2] = "short"
    patient = np.where(study == "", "", "p" + study)
    truth, probability = rng.random((60, 6)) < 0.1, np.round(rng.random((60, 6)), 1)
    studies = group_studies(study, patient, truth, probability)
    assert list(studies.study) == ["s1", "s2", "s3", "s4", "short"]
    for m, name in enumerate(studies.study):
        rows = study == name
        assert studies.slices[m] == rows.sum()
        assert studies.patient[m] == "p" + name
        np.testing.assert_array_equal(studies.truth[m], truth[rows].any(axis=0))
        for k in range(6):
            column = pd.Series(probability[rows, k])
            assert studies.score["max"][m, k] == column.max()
            np.testing.assert_allclose(
                studies.score["mean_top3"][m, k], column.nlargest(3).mean(), rtol=1e-14
            )


def test_no_study_is_known():
    empty = np.array(["", ""], object)
    studies = group_studies(empty, empty, np.zeros((2, 6), bool), np.zeros((2, 6)))
    assert len(studies.study) == 0
    assert studies.score["max"].shape == (0, 6)
