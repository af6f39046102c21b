"""Small arms trained for a few steps on phantoms."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_runs(phantom_data, tmp_path_factory) -> Path:
    """A --runs folder with fold 0 of both small arms, three steps each. Tests must not change it."""
    from ich_keras.training.fold import train_fold
    from ich_keras.training.options import TrainingOptions
    from ich_keras.training.prepare import prepare_fold

    runs = tmp_path_factory.mktemp("runs")
    for arch in ("tiny300", "tiny299"):
        options = TrainingOptions(
            arch,
            0,
            data=phantom_data,
            runs=runs,
            epochs=1,
            steps_per_epoch=3,
            batch_size=4,
            learning_rate=1e-3,
        )
        train_fold(prepare_fold(options))
    return runs
