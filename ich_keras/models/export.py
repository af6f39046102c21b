"""The hybrid as one file: HU in, probabilities out, for TensorFlow or OpenVINO alone.

Resizing, windows, both arms and their mean are in one graph, so that a served slice can't be prepared
otherwise than a training slice was.
"""

import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from ich_keras.errors import InputError
from ich_keras.files import sha256_of_file, whole_folder, write_json
from ich_keras.labels import HU_FLOOR, LABELS, WINDOWS
from ich_keras.models.hybrid import build_hybrid, with_arms

SAVED_MODEL = "saved_model"
OPENVINO = "model"
METADATA = "metadata.json"


def images_from_hu(hu: tf.Tensor, size: int) -> tf.Tensor:
    """Slices in HU to an arm's images, as `ct.preprocess.slice_to_image` makes them.

    Args:
        hu: float32 `[N, H, W]`, any size.
        size: the arm's image size n.

    Returns:
        float32 `[N, n, n, 3]`, whole grey levels 0..255.
    """
    hu = tf.maximum(hu, HU_FLOOR)[..., tf.newaxis]
    hu = tf.image.resize(hu, (size, size), method="bilinear", antialias=False)
    low = tf.constant([window.level - window.width / 2 for window in WINDOWS], tf.float32)
    # One factor: TensorFlow would turn a division by a constant into a product, which rounds otherwise.
    levels = tf.constant([255.0 / window.width for window in WINDOWS], tf.float32)
    return tf.round(tf.clip_by_value((hu - low) * levels, 0.0, 255.0))


def serving_function(arms: Sequence[keras.Model]) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """The whole computation: HU `[N, H, W]` to a dict of `[N, 6]`, "probability" and one entry per arm."""

    sizes = {arm.name: arm.input_shape[1] for arm in arms}
    model = with_arms(build_hybrid(arms), list(sizes))

    def serve(hu: tf.Tensor) -> dict[str, tf.Tensor]:
        return model({name: images_from_hu(hu, size) for name, size in sizes.items()}, training=False)

    return serve


def export_saved_model(
    arms: Sequence[keras.Model], out: str | os.PathLike[str], metadata: dict[str, Any]
) -> None:
    """Writes `out/saved_model` and `out/metadata.json`, both or neither.

    The SavedModel's signature takes `hu`, float32 `[N, H, W]` of any size, and gives a dict of float32
    `[N, 6]`: `probability`, the mean, and one entry under each arm's name. It needs no Keras to load.

    Args:
        arms: one or more models of `build_arm`.
        out: the folder to write; an older export there is replaced.
        metadata: what the caller knows of the model (runs, thresholds, calibration), added to the
            labels, windows, sizes, versions and sha256 of each file.
    """
    with whole_folder(out) as folder:
        _write_saved_model(arms, folder / SAVED_MODEL)
        _write_metadata(arms, folder, metadata)


def export_openvino(
    arms: Sequence[keras.Model], out: str | os.PathLike[str], metadata: dict[str, Any]
) -> None:
    """Writes `out/model.xml`, `out/model.bin` and `out/metadata.json`, all or none.

    The model is `export_saved_model`'s in OpenVINO's format: same input, same outputs, float32.

    Args:
        arms, out, metadata: as for `export_saved_model`.

    Raises:
        InputError: "bad-argument" if OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise InputError(
            "bad-argument", "the format openvino needs the package openvino; install it"
        ) from error
    with whole_folder(out) as folder, tempfile.TemporaryDirectory() as saved_model:
        _write_saved_model(arms, Path(saved_model))
        openvino.save_model(
            openvino.convert_model(saved_model), folder / f"{OPENVINO}.xml", compress_to_fp16=False
        )
        _write_metadata(arms, folder, {**metadata, "openvino": openvino.__version__})


def _write_metadata(arms: Sequence[keras.Model], folder: Path, metadata: dict[str, Any]) -> None:
    write_json(folder / METADATA, {**describe(arms), **metadata, "files": file_hashes(folder)})


def _write_saved_model(arms: Sequence[keras.Model], folder: Path) -> None:
    hu = tf.TensorSpec([None, None, None], tf.float32, name="hu")
    traced = tf.function(serving_function(arms), input_signature=[hu]).get_concrete_function()
    # Of constants TensorFlow folds BatchNorm into the convolutions when it loads the graph.
    frozen = convert_variables_to_constants_v2(traced)
    names = sorted(traced.structured_outputs)

    @tf.function(input_signature=[hu])
    def serve(hu):
        return dict(zip(names, frozen(hu), strict=True))

    tf.saved_model.save(
        tf.Module(),
        str(folder),
        signatures=serve,
        # swish has a gradient of its own, which a graph of constants can't hold.
        options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )


def describe(arms: Sequence[keras.Model]) -> dict[str, Any]:
    """What a reader of an export must know: labels, windows, the arms' sizes, versions."""
    return {
        "labels": list(LABELS),
        "hu_floor": HU_FLOOR,
        "windows": [window._asdict() for window in WINDOWS],
        "arms": {arm.name: {"image_size": arm.input_shape[1]} for arm in arms},
        "input": {"hu": "float32 [N, H, W], HU"},
        "outputs": {name: "float32 [N, 6]" for name in ("probability", *(arm.name for arm in arms))},
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
    }


def file_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file under `folder`, by its path within it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}
