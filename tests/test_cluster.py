"""The examples for clusters: their form, what they call, and what they do when they are stopped."""

import os
import re
import signal
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

import train
from ich_keras.errors import EXIT_STOPPED
from ich_keras.labels import FOLDS

CLUSTER = Path(__file__).resolve().parents[1] / "docs" / "cluster"
SLURM = CLUSTER / "slurm-array.sh"
KUBERNETES = CLUSTER / "kubernetes-job.yaml"

STUB = """#!/bin/bash
echo "$0 $*" >> "$CALLS"
if [ "$(basename "$0")" = python ]; then
    trap 'echo TERM >> "$CALLS"; exit 75' TERM
    echo ready
    for _ in $(seq $((WAIT * 600))); do sleep 0.05; done
    exit "$CODE"
fi
"""


@pytest.fixture
def slurm(tmp_path):
    """A function that starts the script as Slurm does, with stubs for python and scontrol."""
    for name in ("python", "scontrol"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)

    def start(**environment):
        return subprocess.Popen(
            ["bash", SLURM],
            stdout=subprocess.PIPE,
            text=True,
            env={
                "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
                "PYTHON": str(tmp_path / "python"),
                "CALLS": str(tmp_path / "calls"),
                "SLURM_ARRAY_JOB_ID": "17",
                "SLURM_ARRAY_TASK_ID": "3",
                "SLURM_SUBMIT_DIR": str(tmp_path),
                **environment,
            },
        )

    start.calls = lambda: (tmp_path / "calls").read_text().splitlines()
    return start


def test_the_slurm_script_is_bash_and_has_a_task_for_each_fold():
    assert subprocess.run(["bash", "-n", SLURM], check=False).returncode == 0
    assert f"#SBATCH --array=0-{FOLDS - 1}\n" in SLURM.read_text()


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (2, 2), (1, 1)])
def test_the_slurm_script_trains_the_fold_of_its_index(slurm, code, expected):
    process = slurm(CODE=str(code), WAIT="0", ARCH="tiny300")
    process.communicate(timeout=30)
    assert process.returncode == expected
    (call,) = slurm.calls()
    words = call.split()[1:]
    assert words[0] == "train.py"
    options = train.parser().parse_args(words[1:])
    assert (options.fold, options.arch, options.resume) == (3, "tiny300", True)


def test_the_slurm_script_passes_the_signal_on_and_queues_itself_again(slurm):
    process = slurm(CODE="0", WAIT="1")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert slurm.calls()[1] == "TERM"
    assert slurm.calls()[2].endswith("scontrol requeue 17_3")


def test_the_kubernetes_job_fits_kubernetes_schema():
    job = yaml.safe_load(KUBERNETES.read_text())
    kubernetes_validate.validate(job, "1.33", strict=True)
    job["spec"]["completionMod"] = "Indexed"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.33", strict=True)


def test_the_kubernetes_job_trains_the_fold_of_its_index():
    spec = yaml.safe_load(KUBERNETES.read_text())["spec"]
    assert (spec["completionMode"], spec["completions"]) == ("Indexed", FOLDS)
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["python", "train.py"]
    words = [re.sub(r"^\$\(INDEX\)$", "9", str(word)) for word in container["args"]]
    options = train.parser().parse_args(words)
    assert (options.fold, options.resume) == (9, True)
    (variable,) = container["env"]
    assert variable["name"] == "INDEX"
    rules = {rule["action"]: rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"]}
    # A full disk ends with EXIT_IMPOSSIBLE too, and can be mended before the next try.
    assert rules == {"Ignore": [EXIT_STOPPED]}
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {str(options.data), str(options.runs)}
