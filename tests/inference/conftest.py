"""Slices that say themselves what the model will find, and an engine that reads it there."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ich_keras.labels import LABELS
from ich_keras.models.engines import Engine

UID = "1.2.826.0.1.3680043.10.474"


def run(hu: np.ndarray, explain: bool) -> dict[str, np.ndarray]:
    """Label k's probability is the HU of pixel k in thousandths; the arms differ by a hundredth around it."""
    assert hu.dtype == np.float32
    wanted = np.clip(hu[:, 0, :6] / 1000, 0, 1).astype(np.float32)
    outputs = {
        "probability": wanted,
        "tiny300": np.clip(wanted - 0.01, 0, 1),
        "tiny299": np.clip(wanted + 0.01, 0, 1),
    }
    if explain:
        maps = np.repeat(hu[:, :8, :8, np.newaxis], 6, axis=3)
        outputs |= {"tiny300_maps": maps, "tiny299_maps": -maps}
    return outputs


@pytest.fixture(scope="session")
def engine() -> Engine:
    metadata = {
        "labels": list(LABELS),
        "arms": {"tiny300": {"image_size": 300}, "tiny299": {"image_size": 299}},
        "outputs": {"probability": "", "tiny300_maps": ""},
        "synthetic": True,
        "threshold": {"value": 0.5},
    }
    return Engine("openvino", metadata, "5" * 64, run)


@pytest.fixture(scope="session")
def write_slice(slice_file) -> Callable[..., Path]:
    """write_slice(path, number, patient=, study=, series=, size=, p=, Keyword=value) -> path.

    A CT image at z = 5 x number mm in which the engine finds `any` (or all six of p) with probability p.
    """

    def write(
        path: Path,
        number: int = 0,
        *,
        patient: str = "4711",
        study: int = 1,
        series: int = 1,
        size: int = 16,
        p: float | tuple[float, ...] = 0.0,
        **elements,
    ) -> Path:
        stored = np.full((size, size), 1060, np.int16)
        stored[0, :6] = np.round(1024 + 1000 * np.array(p if isinstance(p, tuple) else (0, 0, 0, 0, 0, p)))
        path.parent.mkdir(parents=True, exist_ok=True)
        given = {
            "PatientID": patient,
            "StudyInstanceUID": f"{UID}.1.{study}",
            "SeriesInstanceUID": f"{UID}.2.{study}.{series}",
            "SOPInstanceUID": f"{UID}.3.{study}.{series}.{number}",
            "ImagePositionPatient": [-100, -120, 5.0 * number],
            "InstanceNumber": number,
        }
        path.write_bytes(slice_file(stored, **{**given, **elements}).getvalue())
        return path

    return write
