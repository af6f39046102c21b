"""An exported model behind one call, whatever runs it: TensorFlow, OpenVINO or ONNX Runtime.

Each engine imports its own library alone. A model is run only if its files are those that its
metadata.json names.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ich_keras.errors import InputError
from ich_keras.files import sha256_of_file

METADATA = "metadata.json"
SAVED_MODEL, OPENVINO, ONNX = "saved_model", "model.xml", "model.onnx"
"""What each format's model is named within an export's folder."""

SERVE, EXPLAIN = "serving_default", "explain"
"""The SavedModel's signatures: without and with class activation maps."""
MAPS = "_maps"
"""What follows an arm's name in the name of its maps' output."""

Outputs = dict[str, np.ndarray]
Run = Callable[[np.ndarray, bool], Outputs]


class Engine(NamedTuple):
    """A loaded model.

    Attributes:
        name: a key of `ENGINES`.
        metadata: what metadata.json says: labels, windows, thresholds, runs.
        model_sha256: the sha256 of metadata.json, which names the sha256 of every file of the model.
        run: float32 HU `[N, H, W]`, and whether maps are wanted, to the outputs by name.
    """

    name: str
    metadata: dict[str, Any]
    model_sha256: str
    run: Run

    def predict(self, hu: np.ndarray) -> Outputs:
        """Probabilities of slices.

        Args:
            hu: float32 `[N, H, W]`, HU, one slice or more of any size.

        Returns:
            float32 `[N, 6]` in the order of `labels.LABELS`: "probability", the mean over the arms, and one
            entry under each arm's name.
        """
        return self.run(np.ascontiguousarray(hu, np.float32), False)

    def explain(self, hu: np.ndarray) -> tuple[Outputs, Outputs]:
        """Probabilities of slices and what they come from.

        Args:
            hu: as for `predict`.

        Returns:
            What `predict` gives, and under each arm's name its class activation maps, float32
            `[N, h, w, 6]`: what each place adds to the logit, whose value is the mean over h and w plus the
            Dense bias.
        """
        outputs = self.run(np.ascontiguousarray(hu, np.float32), True)
        maps = {name: value for name, value in outputs.items() if name.endswith(MAPS)}
        return (
            {name: value for name, value in outputs.items() if name not in maps},
            {name.removesuffix(MAPS): value for name, value in maps.items()},
        )


def load_engine(folder: str | os.PathLike[str], engine: str) -> Engine:
    """Loads an exported model.

    Args:
        folder: what `export.py` wrote, in the format that the engine reads.
        engine: a key of `ENGINES`.

    Raises:
        InputError: "bad-argument" for an unknown engine or one whose library is missing; "bad-model" if
            the folder is no export, is of another format, a file is missing or was changed, or any is there
            that metadata.json does not name.
    """
    if engine not in ENGINES:
        raise InputError("bad-argument", f"engine must be one of {', '.join(ENGINES)}; received {engine!r}")
    folder = Path(folder)
    metadata = read_metadata(folder)
    files, load, package = ENGINES[engine]
    _check_named(folder, files, metadata["files"], engine)
    try:
        run = load(folder / files[0])
    except ImportError as error:
        raise InputError(
            "bad-argument", f"the engine {engine} needs the package {package}; install it or use another"
        ) from error
    except Exception as error:
        # Each library has errors of its own.
        raise InputError(
            "bad-model", f"the engine {engine} can't read {folder / files[0]}; export the model again"
        ) from error
    return Engine(engine, metadata, sha256_of_file(folder / METADATA), run)


def find_saved_model(path: str | os.PathLike[str]) -> Path | None:
    """The folder of a SavedModel, if `path` is one or is what `export.py` wrote; None if it is neither."""
    for folder in (Path(path), Path(path) / SAVED_MODEL):
        if (folder / "saved_model.pb").is_file():
            return folder
    return None


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


def _check_named(folder: Path, files: tuple[str, ...], named: dict[str, str], engine: str) -> None:
    """Refuses a folder with a file that metadata.json does not name.

    A library may read more than the model's own file: an ONNX graph may keep weights in any file beside it.
    """
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if foreign := sorted(present - set(named) - {METADATA}):
        raise InputError(
            "bad-model",
            f"the metadata.json of {folder} does not name {', '.join(foreign)}, which the engine {engine} "
            "could read; remove what does not belong to the model, or export again",
        )
    for file in files:
        if not any(name == file or name.startswith(f"{file}/") for name in named):
            raise InputError(
                "bad-model",
                f"{folder} holds no {file}, which the engine {engine} reads; export the model in its format",
            )


def import_openvino() -> Any:
    """Imports OpenVINO so that it reports nothing over the network.

    Its package openvino_telemetry sends an event to a web service at every import and conversion, unless it
    was switched off on that machine; OpenVINO does without it where it can't be imported.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _tensorflow(path: Path) -> Run:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))

    def run(hu: np.ndarray, explain: bool) -> Outputs:
        outputs = loaded.signatures[EXPLAIN if explain else SERVE](hu=tf.constant(hu))
        return {name: value.numpy() for name, value in outputs.items()}

    return run


def _openvino(path: Path) -> Run:
    openvino = import_openvino()
    core = openvino.Core()
    model = core.read_model(path)
    outputs = [port.any_name for port in model.outputs]
    queues: dict[str, Any] = {}

    def requests(slices: int) -> Any:
        # A single slice is given all cores; of several, each core is given its own, as no larger batch takes
        # less time a slice. A single slice among the one-core requests would leave the other cores idle.
        hint = "LATENCY" if slices == 1 else "THROUGHPUT"
        if hint not in queues:
            # OpenVINO computes in bfloat16 where the processor can, unless it is told not to.
            options = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": "f32"}
            queues[hint] = openvino.AsyncInferQueue(core.compile_model(model, "CPU", options))
        return queues[hint]

    def run(hu: np.ndarray, explain: bool) -> Outputs:
        queue = requests(len(hu))
        wanted = [name for name in outputs if explain or not name.endswith(MAPS)]
        rows: list[Any] = [None] * len(hu)

        def keep(request: Any, place: int) -> None:
            rows[place] = {name: request.get_tensor(name).data[0].copy() for name in wanted}

        queue.set_callback(keep)
        for place in range(len(hu)):
            queue.start_async({"hu": hu[place : place + 1]}, place)
        queue.wait_all()
        return {name: np.stack([row[name] for row in rows]) for name in wanted}

    return run


def _onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(hu: np.ndarray, explain: bool) -> Outputs:
        wanted = [name for name in names if explain or not name.endswith(MAPS)]
        return dict(zip(wanted, session.run(wanted, {"hu": hu}), strict=True))

    return run


ENGINES: dict[str, tuple[tuple[str, ...], Callable[[Path], Run], str]] = {
    "tensorflow": ((SAVED_MODEL,), _tensorflow, "tensorflow"),
    "openvino": ((OPENVINO, "model.bin"), _openvino, "openvino"),
    "onnx": ((ONNX,), _onnx, "onnxruntime"),
}
"""For each engine the files or folder it reads, how it loads them, and the package it needs."""
