"""predict.py as a user types it, with a model that OpenVINO runs and that says what the slices say."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from ich_keras.errors import InputError
from ich_keras.files import sha256_of_file
from ich_keras.inference import dicomweb
from ich_keras.labels import LABELS

from ..conftest import REPOSITORY

# Nothing that predict.py does with OpenVINO needs these: a server has none of them.
SERVING = """
import atexit, os, runpy, sys

@atexit.register
def refuse_reports():
    # OpenVINO's package that reports its use over the network.
    if any(name.startswith("openvino_telemetry.") for name in sys.modules):
        os._exit(99)

for name in ("tensorflow", "keras", "jax", "torch", "pandas", "sklearn", "pyarrow", "matplotlib"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An export whose probabilities are the HU of a slice's first six pixels in thousandths."""
    folder = tmp_path_factory.mktemp("exported")
    hu = ops.parameter([-1, -1, -1], np.float32, name="hu")
    hu.output(0).set_names({"hu"})
    row = ops.gather(hu, ops.constant(0), ops.constant(1))
    six = ops.gather(row, ops.constant(list(range(6))), ops.constant(1))
    outputs = []
    for name in ("probability", "tiny300", "tiny299"):
        result = ops.result(ops.clamp(ops.divide(six, ops.constant(np.float32(1000))), 0.0, 1.0))
        result.input(0).get_source_output().set_names({name})
        outputs.append(result)
    openvino.save_model(openvino.Model(outputs, [hu]), folder / "model.xml", compress_to_fp16=False)
    metadata = {
        "labels": list(LABELS),
        "arms": {"tiny300": {"image_size": 300}, "tiny299": {"image_size": 299}},
        "outputs": {},
        "synthetic": True,
        "files": {path.name: sha256_of_file(path) for path in folder.iterdir()},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def predict(*words, cwd=REPOSITORY, start=False):
    command = [sys.executable, "-c", SERVING, "predict.py", *map(str, words)]
    environment = {**os.environ, "COLUMNS": "80"}
    if start:
        return subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_from_files_to_results_without_tensorflow(model, tmp_path, write_slice):
    for number in range(4):
        write_slice(tmp_path / "scan" / f"{number}", number, p=0.2 * number, size=32)
    out = tmp_path / "out"
    done = predict(tmp_path / "scan", "--model", model, "--out", out)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= max(80, len(f"Written to {out}") + 70)
    (study,) = json.loads((out / "studies.json").read_text())["studies"]
    assert study["score"]["max"]["any"] == pytest.approx(0.6, abs=1e-3)
    assert study["flagged"] == ["any"]
    assert study["study"] in done.stdout
    assert (out / "report.html").is_file()
    again = predict(tmp_path / "scan", "--model", model, "--out", out)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    failed = predict(tmp_path / "scan", "--model", tmp_path, "--out", out, "--overwrite")
    assert failed.returncode == 2
    assert "no exported model" in failed.stderr
    assert (out / "studies.json").is_file()
    path = write_slice(tmp_path / "scan" / "4", 4, p=0.3)
    path.write_bytes(path.read_bytes()[:-5])
    more = predict(tmp_path / "scan", "--model", model, "--out", out, "--overwrite", "--threshold", "0.9")
    assert more.returncode == 1
    (study,) = json.loads((out / "studies.json").read_text())["studies"]
    assert study["flagged"] == []
    assert study["slices"] == {"read": 4, "expected": 5}


def test_sigterm_leaves_whole_studies_and_resume_goes_on(model, tmp_path, write_slice):
    for study in range(60):
        write_slice(tmp_path / "scan" / f"{study}", study=study, size=64)
    out = tmp_path / "out"
    words = (tmp_path / "scan", "--model", model, "--out", out)
    process = predict(*words, start=True)
    end = time.monotonic() + 120
    while process.poll() is None and not list(out.glob("h*/study.json")):
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stderr
    assert "go on with --resume" in stderr
    assert "Traceback" not in stderr
    listed = {entry["study"] for entry in json.loads((out / "studies.json").read_text())["studies"]}
    assert 1 <= len(listed) < 60
    assert {path.name for path in out.iterdir() if path.is_dir()} == listed
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("h*/study.json")}
    done = predict(*words, "--resume")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((out / "studies.json").read_text())["studies"]) == 60
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


@pytest.fixture
def main(monkeypatch):
    """predict.py's own function, in this process."""
    spec = importlib.util.spec_from_file_location("predict", REPOSITORY / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = signal.getsignal(signal.SIGTERM)
    yield module.main
    signal.signal(signal.SIGTERM, before)


def test_a_study_of_a_server_is_fetched_and_its_results_are_stored(
    model, main, tmp_path, write_slice, monkeypatch, capsys
):
    from ich_keras.ct.phantom import write_phantoms

    write_phantoms(tmp_path / "server", 1, 0, workers=1, headers="hospital", thickness=40.0)
    calls, stored = [], []

    def fetch_study(url, study, folder, **options):
        calls.append((url, study))
        shutil.copytree(next((tmp_path / "server" / "PHANTOM0000").iterdir()), folder)
        options["progress"](1, 1)

    monkeypatch.setattr(dicomweb, "fetch_study", fetch_study)
    monkeypatch.setattr(dicomweb, "store", lambda url, files, **_: stored.append((url, files)))
    words = ["--dicomweb", "http://server", "--study", "1.2.3", "--model", str(model), "--threshold", "0.001"]
    out = tmp_path / "out"
    assert main([*words, "--out", str(out), "--dicom-sr", "--store"]) == 0
    assert calls == [("http://server", "1.2.3")]
    (study,) = json.loads((out / "studies.json").read_text())["studies"]
    ((url, files),) = stored
    assert url == "http://server"
    assert [path.name for path in files] == study["dicom"]["files"]
    assert len(files) == 1
    assert "Stored 1 DICOM object" in capsys.readouterr().out
    # A source that no DICOM object can refer to.
    shutil.rmtree(tmp_path / "server")
    write_slice(tmp_path / "server" / "PHANTOM0000" / "0" / "0", StudyInstanceUID=None)
    assert main([*words, "--out", str(tmp_path / "other"), "--dicom-sr", "--store"]) == 1
    assert len(stored) == 1
    assert "was not stored: 1 of 1 slices have no valid study UID" in capsys.readouterr().err


def test_a_server_that_fails_costs_no_earlier_results(model, main, tmp_path, write_slice, monkeypatch):
    write_slice(tmp_path / "scan")
    out = str(tmp_path / "out")
    assert main([str(tmp_path / "scan"), "--model", str(model), "--out", out]) == 0

    def fetch_study(*_, **__):
        raise InputError("no-answer", "no")

    monkeypatch.setattr(dicomweb, "fetch_study", fetch_study)
    with pytest.raises(InputError):
        main(["--dicomweb", "http://x", "--study", "1", "--model", str(model), "--out", out, "--overwrite"])
    assert len(list((tmp_path / "out").glob("h*/slices.csv"))) == 1


def test_no_path_within_a_scan_is_printed(model, main, tmp_path, write_slice, monkeypatch):
    from ich_keras.errors import report
    from ich_keras.inference import predict as inference

    write_slice(tmp_path / "scan" / "Doe^Jane")
    words = [str(tmp_path / "scan"), "--model", str(model), "--out", str(tmp_path / "out")]

    def fail(path):
        def find_sources(*_, **__):
            raise OSError(36, "File name too long", str(path))

        monkeypatch.setattr(inference, "find_sources", find_sources)
        with pytest.raises(InputError) as caught:
            main(words)
        return str(caught.value)

    assert fail(tmp_path / "scan" / "Doe^Jane").startswith("a file: File name too long")
    assert str(tmp_path / "out" / "x") in fail(tmp_path / "out" / "x")
    assert report(lambda: main(words)) == 2
