"""An exported model behind one call, whatever runs it: TensorFlow or OpenVINO.

Each engine imports its own library alone. A model is run only if its files are those that its
metadata.json names.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ich_keras.errors import InputError
from ich_keras.files import sha256_of_file

Predict = Callable[[np.ndarray], dict[str, np.ndarray]]

METADATA = "metadata.json"


class Engine(NamedTuple):
    """A loaded model.

    Attributes:
        name: "tensorflow" or "openvino".
        metadata: what metadata.json says: labels, windows, thresholds, runs.
        predict: float32 HU `[N, H, W]` to a dict of float32 `[N, 6]`: "probability" and one entry per arm.
    """

    name: str
    metadata: dict[str, Any]
    predict: Predict


def load_engine(folder: str | os.PathLike[str], engine: str) -> Engine:
    """Loads an exported model.

    Args:
        folder: what `export.py` wrote, in the format that the engine reads.
        engine: "tensorflow" or "openvino".

    Raises:
        InputError: "bad-argument" for an unknown engine or one whose library is missing; "bad-model" if
            the folder is no export, is of another format, or a file is missing or was changed.
    """
    if engine not in ENGINES:
        raise InputError("bad-argument", f"engine must be one of {', '.join(ENGINES)}; received {engine!r}")
    folder = Path(folder)
    metadata = read_metadata(folder)
    path, load, package = ENGINES[engine]
    if not any(name == path or name.startswith(f"{path}/") for name in metadata["files"]):
        raise InputError(
            "bad-model",
            f"{folder} holds no {path}, which the engine {engine} reads; export the model in its format",
        )
    try:
        predict = load(folder / path)
    except ImportError as error:
        raise InputError(
            "bad-argument", f"the engine {engine} needs the package {package}; install it or use another"
        ) from error
    return Engine(engine, metadata, predict)


def read_metadata(folder: Path) -> dict[str, Any]:
    """metadata.json of an export, after every file that it names was found unchanged.

    Raises:
        InputError: "bad-model".
    """
    try:
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        files = dict(metadata["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "bad-model", f"{folder} is no exported model: it needs a metadata.json, as export.py writes it"
        ) from error
    for name, digest in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise InputError(
                "bad-model", f"{folder} lacks {name}, which its metadata.json names; export again"
            )
        if sha256_of_file(path) != digest:
            raise InputError(
                "bad-model", f"{path} is not the file that its metadata.json names (sha256); export again"
            )
    return metadata


def _tensorflow(path: Path) -> Predict:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]

    def predict(hu: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in serve(hu=tf.constant(hu, tf.float32)).items()}

    # The signature lives only as long as what it was loaded from.
    predict.loaded = loaded  # type: ignore[attr-defined]
    return predict


def _openvino(path: Path) -> Predict:
    import openvino

    compiled = openvino.Core().compile_model(
        path,
        "CPU",
        # OpenVINO computes in bfloat16 where the processor can, unless it is told not to.
        {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"},
    )
    names = [output.any_name for output in compiled.outputs]

    def predict(hu: np.ndarray) -> dict[str, np.ndarray]:
        result = compiled({"hu": np.ascontiguousarray(hu, np.float32)})
        return {name: np.array(result[name]) for name in names}

    return predict


ENGINES: dict[str, tuple[str, Callable[[Path], Predict], str]] = {
    "tensorflow": ("saved_model", _tensorflow, "tensorflow"),
    "openvino": ("model.xml", _openvino, "openvino"),
}
"""For each engine the file or folder it reads, how it loads it, and the package it needs."""
