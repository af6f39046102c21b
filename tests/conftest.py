"""What every test shares: phantom data, and the real data where they are at hand."""

import os
from pathlib import Path

import pytest

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
# As `command.import_keras` does, but before any test imports TensorFlow.
os.environ["TF_NUM_INTEROP_THREADS"] = "1"

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def phantom_data(tmp_path_factory) -> Path:
    """Fourteen phantom patients of some ten slices, in RSNA's layout. Tests must not change it."""
    from ich_keras.ct.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, patients=14, seed=0, workers=1, thickness=15.0)
    return folder


@pytest.fixture(scope="session")
def rsna_sample() -> Path:
    """The folder of real slices in Kaggle's layout."""
    folder = REAL_DATA / "rsna-sample"
    if not folder.is_dir():
        pytest.skip("no real slices at hand: the RSNA sample is not beside the repository")
    return folder


@pytest.fixture(scope="session")
def rsna_labels() -> Path:
    """The Parquet table of RSNA's slice labels."""
    file = REAL_DATA / "rsna-labels" / "rsna2019_labels.parquet"
    if not file.is_file():
        pytest.skip("no label table at hand: RSNA's labels are not beside the repository")
    return file
