"""The hybrid as one file: HU in, probabilities and class activation maps out, for an engine alone.

Resizing, windows, both arms, their mean and the maps are in one graph, so that a served slice can't be
prepared otherwise than a training slice was. An arm ends in global average pooling and one Dense layer, so
its class activation maps (Zhou et al. 2016) need no gradients: a map is the last feature maps weighted by
the Dense kernel, in units of the logit. Its mean plus the Dense bias is the logit, and its positive part is
Grad-CAM (Selvaraju et al. 2017) times h * w.
"""

import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from ich_keras.errors import InputError
from ich_keras.files import sha256_of_file, whole_folder, write_json
from ich_keras.labels import HU_FLOOR, LABELS, WINDOWS
from ich_keras.models.arms import feature_maps
from ich_keras.models.engines import (
    EXPLAIN,
    MAPS,
    METADATA,
    ONNX,
    OPENVINO,
    SAVED_MODEL,
    SERVE,
    import_openvino,
)
from ich_keras.models.folding import fold_batch_norm
from ich_keras.models.hybrid import check_arms
from ich_keras.models.saved_model import write_weights_table

OPSET = 17


def images_from_hu(hu: tf.Tensor, size: int) -> tf.Tensor:
    """Slices in HU to an arm's images, as `ct.preprocess.slice_to_image` makes them.

    Args:
        hu: float32 `[N, H, W]`, any size.
        size: the arm's image size n.

    Returns:
        float32 `[N, n, n, 3]`, whole grey levels 0..255.
    """
    hu = tf.maximum(hu, HU_FLOOR)
    hu = _resized(_resized(hu, size, 1)[..., tf.newaxis], size, 2)
    low = tf.constant([window.level - window.width / 2 for window in WINDOWS], tf.float32)
    # One factor: TensorFlow would turn a division by a constant into a product, which rounds otherwise.
    levels = tf.constant([255.0 / window.width for window in WINDOWS], tf.float32)
    return tf.round(tf.clip_by_value((hu - low) * levels, 0.0, 255.0))


def _resized(hu: tf.Tensor, size: int, axis: int) -> tf.Tensor:
    """One axis resized: bilinear, half-pixel centres, no antialiasing; `hu` has one axis or two after it.

    The engines' own resizes differ in how they round places and weights: enough to move some ten pixels of a
    slice to the next grey level. Whole numbers give every engine the same places and weights.
    """
    before = tf.shape(hu)[axis]
    # Pixel i lies at ((2 i + 1) * before - size) / (2 * size); one pixel more keeps the division positive,
    # where all engines round alike.
    place = tf.range(1, 2 * size, 2) * before + size
    low = place // (2 * size) - 1
    weight = tf.cast(place % (2 * size), tf.float32) / (2 * size)
    left = tf.gather(hu, tf.maximum(low, 0), axis=axis)
    right = tf.gather(hu, tf.minimum(low + 1, before - 1), axis=axis)
    return left + (right - left) * weight[:, tf.newaxis]


def serving_function(arms: Sequence[keras.Model]) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """The whole computation.

    Args:
        arms: one or more models of `build_arm`, none twice.

    Returns:
        A function of HU, float32 `[N, H, W]`, to a dict of float32: "probability", the mean over the arms,
        and under each arm's name its own, `[N, 6]`; under `<arm>_maps` its class activation maps,
        `[N, h, w, 6]`.

    Raises:
        InputError: no arm, or one twice.
    """
    check_arms(arms)
    return _serve([fold_batch_norm(arm) for arm in arms])


def _serve(folded: Sequence[keras.Model]) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    parts = {arm.name: keras.Model(arm.input, (arm.output, feature_maps(arm))) for arm in folded}
    kernels = {arm.name: arm.get_layer("probability").kernel for arm in folded}

    def serve(hu: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = {}
        for name, part in parts.items():
            image = images_from_hu(hu, part.input_shape[1])
            outputs[name], features = part(image, training=False)
            outputs[f"{name}{MAPS}"] = tf.einsum("nhwc,ck->nhwk", features, kernels[name])
        return outputs | {"probability": tf.add_n([outputs[name] for name in parts]) / len(parts)}

    return serve


def export_saved_model(
    arms: Sequence[keras.Model], out: str | os.PathLike[str], metadata: dict[str, Any]
) -> None:
    """Writes `out/saved_model` and `out/metadata.json`, both or neither.

    The signature `serving_default` takes `hu`, float32 `[N, H, W]` of any size, and gives a dict of float32
    `[N, 6]`: `probability`, the mean, and one entry under each arm's name. The signature `explain` gives
    `<arm>_maps`, float32 `[N, h, w, 6]`, besides. The weights are written once. It needs no Keras to load.

    Args:
        arms: one or more models of `build_arm`.
        out: the folder to write; an older export there is replaced.
        metadata: what the caller knows of the model (runs, thresholds, calibration), added to the
            labels, windows, sizes, versions and sha256 of each file.
    """
    with whole_folder(out) as folder:
        frozen, names, constants = _frozen(arms)
        _write_saved_model(
            frozen,
            names,
            {SERVE: [name for name in names if not name.endswith(MAPS)], EXPLAIN: names},
            folder / SAVED_MODEL,
        )
        write_weights_table(arms, constants, folder / SAVED_MODEL)
        _write_metadata(arms, folder, metadata)


def export_openvino(
    arms: Sequence[keras.Model], out: str | os.PathLike[str], metadata: dict[str, Any]
) -> None:
    """Writes `out/model.xml`, `out/model.bin` and `out/metadata.json`, all or none.

    The model is `export_saved_model`'s in OpenVINO's format, float32: same input; the outputs of `explain`.

    Args:
        arms, out, metadata: as for `export_saved_model`.

    Raises:
        InputError: "bad-argument" if OpenVINO is not installed.
    """
    with _needed_for("openvino"):
        openvino = import_openvino()
    with whole_folder(out) as folder, tempfile.TemporaryDirectory() as saved_model:
        frozen, names, _ = _frozen(arms)
        _write_saved_model(frozen, names, {SERVE: names}, Path(saved_model))
        openvino.save_model(openvino.convert_model(saved_model), folder / OPENVINO, compress_to_fp16=False)
        _write_metadata(arms, folder, metadata, openvino=openvino.__version__)


def export_onnx(arms: Sequence[keras.Model], out: str | os.PathLike[str], metadata: dict[str, Any]) -> None:
    """Writes `out/model.onnx` and `out/metadata.json`, both or neither.

    The model is `export_saved_model`'s as ONNX, float32: same input; the outputs of `explain`.

    Args:
        arms, out, metadata: as for `export_saved_model`.

    Raises:
        InputError: "bad-argument" if onnx or tf2onnx is not installed.
    """
    with _needed_for("onnx"):
        import onnx
        import tf2onnx
    with whole_folder(out) as folder:
        frozen, names, _ = _frozen(arms)
        outputs = [tensor.name for tensor in frozen.outputs]
        model, _ = tf2onnx.convert.from_graph_def(
            frozen.graph.as_graph_def(),
            input_names=["hu:0"],
            output_names=outputs,
            tensors_to_rename={"hu:0": "hu", **dict(zip(outputs, names, strict=True))},
            opset=OPSET,
        )
        # tf2onnx writes an operation that ONNX has not without a word.
        onnx.checker.check_model(model)
        folder.joinpath(ONNX).write_bytes(model.SerializeToString())
        _write_metadata(arms, folder, metadata, tf2onnx=tf2onnx.__version__, onnx=onnx.__version__)


@contextmanager
def _needed_for(model_format: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise InputError(
            "bad-argument",
            f"the format {model_format} needs the package {error.name}; install "
            f"{'requirements-onnx.txt' if model_format == 'onnx' else model_format}",
        ) from error


def _write_metadata(
    arms: Sequence[keras.Model], folder: Path, metadata: dict[str, Any], **versions: str
) -> None:
    described = describe(arms)
    described["versions"] |= versions
    write_json(folder / METADATA, {**described, **metadata, "files": file_hashes(folder)})


def _frozen(arms: Sequence[keras.Model]) -> tuple[Any, list[str], dict[str, list[str]]]:
    """`serving_function` with its weights as constants, its outputs in order, and the names of the constants.

    The last are, for each arm, in the order of the weights of `fold_batch_norm`'s model.
    """
    check_arms(arms)
    folded = [fold_batch_norm(arm) for arm in arms]
    hu = tf.TensorSpec([None, None, None], tf.float32, name="hu")
    traced = tf.function(_serve(folded), input_signature=[hu]).get_concrete_function()
    # A constant is named as the placeholder was through which the function took the variable.
    names = {id(outer): inner.op.name for outer, inner in traced.graph.captures}
    constants = {arm.name: [names[id(weight.value.handle)] for weight in arm.weights] for arm in folded}
    return convert_variables_to_constants_v2(traced), sorted(traced.structured_outputs), constants


def _write_saved_model(frozen: Any, names: list[str], signatures: dict[str, list[str]], folder: Path) -> None:
    """Writes a SavedModel; each signature gives the outputs that it lists of the frozen function."""

    def signature(wanted):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None], tf.float32, name="hu")])
        def serve(hu):
            outputs = dict(zip(names, frozen(hu), strict=True))
            return {name: outputs[name] for name in wanted}

        return serve

    tf.saved_model.save(
        tf.Module(),
        str(folder),
        signatures={name: signature(wanted) for name, wanted in signatures.items()},
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
        "outputs": {name: "float32 [N, 6]" for name in ("probability", *(arm.name for arm in arms))}
        | {
            f"{arm.name}{MAPS}": "float32 [N, {}, {}, 6]; mean over both sides + bias = logit".format(
                *feature_maps(arm).shape[1:3]
            )
            for arm in arms
        },
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
