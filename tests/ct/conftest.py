"""A slice read in a process of its own."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_READ_ALONE = """
import os, resource, sys
from ich_keras.ct.dicom import read_hu
from ich_keras.errors import SliceError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[2] == "as nobody" and os.getuid() == 0:
    os.setuid(65534)
try:
    read_hu(sys.argv[1])
    reason = "none"
except SliceError as error:
    reason = error.reason
assert "tensorflow" not in sys.modules
print(reason, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.fixture(scope="session")
def read_alone() -> Callable[..., tuple[str, float]]:
    """read_alone(path) reads a slice in a fresh process without TensorFlow -> reason, MB it took."""

    def read(path: Path, how: str = "") -> tuple[str, float]:
        command = [sys.executable, "-c", _READ_ALONE, str(path), how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        reason, megabytes = done.stdout.split()
        return reason, float(megabytes)

    return read
