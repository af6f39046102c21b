"""Small arms trained for a few steps on phantoms."""

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """A hang-up is heard under nohup too, and what hears a signal ends with its test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


@pytest.fixture(scope="session")
def other_process(tmp_path_factory):
    """A function that starts `very_small_arms.py` with arguments and an environment."""
    here = Path(__file__).resolve().parent
    # What XLA has compiled in one process, the next need not.
    cache = tmp_path_factory.mktemp("compiled")

    def start(*arguments, python=(sys.executable,), path=(), **environment):
        return subprocess.Popen(
            [*python, "-W", "error", "-W", "ignore:__array__:DeprecationWarning",
             here / "very_small_arms.py", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, (here.parents[1], *path))),
                "JAX_COMPILATION_CACHE_DIR": str(cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
                **environment,
            },
        )  # fmt: skip

    return start


@pytest.fixture(scope="session")
def without_tensorflow(tmp_path_factory):
    """Keyword arguments of `other_process` for JAX, with all that is installed here but TensorFlow."""
    installed = Path(sysconfig.get_path("purelib"))
    shadow = tmp_path_factory.mktemp("site-packages")
    for entry in installed.iterdir():
        if not entry.name.startswith("tensorflow"):
            (shadow / entry.name).symlink_to(entry)
    return {"python": (sys.executable, "-S"), "path": (shadow,), "KERAS_BACKEND": "jax"}
