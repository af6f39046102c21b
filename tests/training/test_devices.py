"""What can't be trained together is refused at the argument, by name, before a framework is loaded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ich_keras.command import keras_backend
from ich_keras.errors import InputError
from ich_keras.training.devices import check_devices
from ich_keras.training.options import TrainingOptions
from ich_keras.training.prepare import prepare_fold

HOSTS = {"coordinator": "node1:12345", "processes": 2}


def options(**given):
    return TrainingOptions("tiny300", 0, **given)


def cluster(**tasks):
    return {"TF_CONFIG": json.dumps({"cluster": tasks})}


@pytest.mark.parametrize(
    ("given", "backend", "environment", "words"),
    [
        (HOSTS, "tensorflow", {}, "MultiWorkerMirroredStrategy"),
        (HOSTS, "tensorflow", {}, "ParameterServerStrategy"),
        ({}, "tensorflow", cluster(worker=["a:1", "b:1"]), "MultiWorkerMirroredStrategy"),
        ({}, "tensorflow", cluster(chief=["a:1"], ps=["b:1"]), "ParameterServerStrategy"),
        ({"devices": 2, "clip_norm": 1.0}, "tensorflow", {}, "--clip-norm with --devices"),
        ({"devices": 2, "reestimate_batchnorm": 9}, "tensorflow", {}, "CollectiveReduceV2"),
        ({}, "tensorflow", {"TPU_WORKER_ID": "0"}, "TPUStrategy"),
        ({"devices": 3}, "jax", {}, "a batch of 16 can't be shared evenly by 3 devices"),
        ({"devices": 3}, "jax", {}, "such as 18"),
        (
            {**HOSTS, "devices": 2, "batch_size": 6},
            "jax",
            {},
            "a multiple of it, such as 8",
        ),
    ],
)
def test_what_does_not_work_is_refused_by_name(given, backend, environment, words):
    with pytest.raises(InputError) as caught:
        check_devices(options(**given), backend, environment)
    assert caught.value.reason == "bad-argument"
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("given", "backend", "environment"),
    [
        ({}, "tensorflow", cluster(worker=["a:1"], evaluator=["b:1"])),
        ({}, "tensorflow", {"TF_CONFIG": "not JSON"}),
        ({"devices": 2}, "tensorflow", {}),
        ({"clip_norm": 1.0}, "tensorflow", {}),
        ({"devices": 2, "clip_norm": 1.0, "reestimate_batchnorm": 9}, "jax", {}),
        ({**HOSTS, "devices": 4, "process_id": 1}, "jax", {"TPU_WORKER_ID": "0"}),
    ],
)
def test_what_works_is_not_refused(given, backend, environment):
    check_devices(options(**given), backend, environment)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"devices": 0}, "--devices must be 1 or more"),
        ({"coordinator": "node1:1"}, "go together"),
        ({"processes": 2}, "go together"),
        ({**HOSTS, "process_id": 2}, "--process-id must be 0..1, received 2"),
        ({"process_id": 1}, "--process-id must be 0..0"),
        ({**HOSTS, "coordinator": "node1"}, "--coordinator must be HOST:PORT"),
        ({**HOSTS, "coordinator": "node1:99999"}, "--coordinator must be HOST:PORT"),
    ],
)
def test_bad_values_are_named(given, words):
    with pytest.raises(InputError, match=words):
        options(**given)


def test_the_backend_is_kerass_own_choice(monkeypatch, tmp_path):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert keras_backend() == "tensorflow"
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    assert keras_backend() == "jax"
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(InputError, match=r"the backend torch .* expected tensorflow or jax"):
        keras_backend()


def test_a_backend_that_is_not_installed_is_named_with_the_one_that_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    with pytest.raises(InputError, match=r"requirements\.txt.*set KERAS_BACKEND=jax"):
        keras_backend()


MORE_THAN_THERE_ARE = """
import sys, tensorflow as tf
tf.config.list_physical_devices = lambda kind: ["one"]
from ich_keras.errors import report
from ich_keras.training.devices import claim_devices
sys.exit(report(lambda: claim_devices(2)))
"""


@pytest.mark.slow
def test_more_devices_than_there_are_accelerators_are_refused():
    done = subprocess.run(
        [sys.executable, "-c", MORE_THAN_THERE_ARE],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "KERAS_BACKEND": "tensorflow"},
    )
    assert done.returncode == 2
    assert "--devices 2 was given and this machine has 1" in done.stderr


def test_a_run_is_not_resumed_on_another_backend(small_runs, phantom_data, tmp_path, monkeypatch):
    shutil.copytree(small_runs, tmp_path / "runs")
    same = dict(
        data=phantom_data, runs=tmp_path / "runs", steps_per_epoch=3, batch_size=4, learning_rate=1e-3
    )
    prepare_fold(options(resume=True, **same))
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(InputError) as caught:
        prepare_fold(options(resume=True, devices=2, **same))
    lines = [line.split() for line in str(caught.value).splitlines()]
    assert ["backend", "tensorflow", "jax"] in lines
    assert ["devices", "1", "2"] in lines
