"""Loading an arm's weights: ImageNet's, a file of Keras's, one of our runs, or an arm of a SavedModel.

A Keras ImageNet file goes into the `keras.applications` model it was written for and from there, layer by
layer, into the arm: so both of Keras's file formats are read by Keras, and the arm's own input scaling
stays what it is.
"""

import json
import logging
import os
import warnings
from pathlib import Path

import h5py
import keras
import numpy as np

from ich_keras.errors import InputError
from ich_keras.labels import ARMS, LABELS
from ich_keras.models.arms import BACKBONES, IMAGENET_DEVIATION, IMAGENET_MEAN
from ich_keras.models.engines import find_saved_model
from ich_keras.models.saved_model import load_from_saved_model

logger = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000
NORMALIZATION_PARAMETERS = 7


def load_weights(model: keras.Model, source: str | os.PathLike[str]) -> None:
    """Loads weights into an arm, in place.

    Args:
        model: a model of `build_arm`.
        source: "none" (stay as built), "imagenet" (downloaded by Keras or taken from its cache), or a path: a
            Keras ImageNet file with or without its top, weights of one of our runs, a run's folder (its
            best weights), or a SavedModel (`models.saved_model`) or the export that holds it. ImageNet's
            leave the head as built.

    Raises:
        InputError: "weights-download" if the ImageNet weights can't be had; "wrong-weights" if the file is of
            another arm, of another number of labels, or not a weights file; "bad-model" if an export was
            changed. The model is unchanged then.
    """
    if source == "none":
        return
    if source == "imagenet":
        _copy_backbone(_imagenet(model.name), model)
        return
    saved_model = find_saved_model(source)
    if saved_model:
        load_from_saved_model(model, saved_model)
        return
    path = _weights_file(model.name, Path(source))
    arm, labels = _recognise(path, model.name)
    if arm != model.name:
        raise InputError(
            "wrong-weights",
            f"{path} holds weights of {arm or 'no arm known here'}, expected {model.name}; name another file",
        )
    if labels == len(LABELS):
        _load(model, path, model.name)
        return
    if labels not in (0, IMAGENET_CLASSES):
        raise InputError(
            "wrong-weights",
            f"{path} holds {arm} with {labels} labels, expected {len(LABELS)} ({', '.join(LABELS)})",
        )
    top = labels == IMAGENET_CLASSES
    shape = None if top else model.input_shape[1:]
    donor = BACKBONES[arm].build(include_top=top, weights=None, **({} if top else {"input_shape": shape}))
    _load(donor, path, arm)
    _copy_backbone(donor, model)


def _imagenet(name: str) -> keras.Model:
    if not BACKBONES[name].imagenet:
        raise InputError(
            "wrong-weights", f"there are no ImageNet weights for {name}; use --weights none or --weights PATH"
        )
    size = ARMS[name].image_size
    try:
        return BACKBONES[name].build(include_top=False, weights="imagenet", input_shape=(size, size, 3))
    # Keras raises a bare Exception if the download fails.
    except Exception as error:
        raise InputError(
            "weights-download",
            f"the ImageNet weights of {name} could not be downloaded ({error}); use --weights none to train "
            "from scratch, or --weights PATH with a file that you have",
        ) from error


def _weights_file(arm: str, path: Path) -> Path:
    if path.is_dir():
        try:
            of = json.loads((path / "run.json").read_text(encoding="utf-8")).get("arch", arm)
        except (OSError, ValueError, AttributeError):
            of = arm
        if of != arm:
            raise InputError("wrong-weights", f"{path} is a run of {of}, expected {arm}; name another run")
        path = path / "best.weights.h5"
    if not path.is_file():
        raise InputError(
            "wrong-weights",
            f"no weights at {path}; expected none, imagenet, a weights file, a run's folder or a SavedModel",
        )
    return path


def _recognise(path: Path, wanted: str) -> tuple[str, int]:
    """The arm whose weights a file holds, "" if none's, and the outputs of its head, 0 if it has none."""
    try:
        with h5py.File(path) as file:
            if "layers" in file:
                group = file["layers"]
            else:
                group = file.get("model_weights", file)
            parameters = _parameters(group)
    except OSError as error:
        raise InputError(
            "wrong-weights", f"{path} is no HDF5 file; expected weights in Keras's .h5 format"
        ) from error
    for arm in (wanted, *(name for name in BACKBONES if name != wanted)):
        backbone = BACKBONES[arm]
        head = backbone.features + 1
        rest = parameters - (backbone.parameters - head * len(LABELS))
        if rest in (0, NORMALIZATION_PARAMETERS):
            return arm, 0
        # A handful of labels more or less is this arm; thousands of outputs may be a larger backbone.
        for labels, remainder in (divmod(rest, head), divmod(rest - NORMALIZATION_PARAMETERS, head)):
            if remainder == 0 and (0 < labels < 100 or labels == IMAGENET_CLASSES):
                return arm, labels
    return "", 0


def _parameters(group: h5py.Group) -> int:
    sizes = []

    def visit(_, entry):
        if isinstance(entry, h5py.Dataset):
            sizes.append(int(np.prod(entry.shape)))

    group.visititems(visit)
    return sum(sizes)


def _load(model: keras.Model, path: Path, arm: str) -> None:
    before = model.get_weights()
    try:
        with warnings.catch_warnings():
            # Keras warns, and goes on, where a file lacks what a layer needs.
            warnings.filterwarnings("error", "Skipping nested container", UserWarning)
            model.load_weights(path)
    except (ValueError, KeyError, OSError, UserWarning) as error:
        model.set_weights(before)
        reason = str(error).strip().splitlines()[0]
        raise InputError("wrong-weights", f"{path} does not fit {arm}: {reason}") from error


def _copy_backbone(donor: keras.Model, model: keras.Model) -> None:
    """Copies the weights of a `keras.applications` model to the arm, all but its scaling and its top."""
    _check_normalization(donor, model.name)
    sources = [
        layer
        for layer in donor.layers
        if layer.weights and layer.name != "predictions" and not isinstance(layer, keras.layers.Normalization)
    ]
    targets = [layer for layer in model.layers if layer.weights and layer.name != "probability"]
    for source, target in zip(sources, targets, strict=True):
        target.set_weights(source.get_weights())


def _check_normalization(donor: keras.Model, arm: str) -> None:
    for layer in donor.layers:
        if isinstance(layer, keras.layers.Normalization):
            mean, variance = (np.ravel(value) for value in layer.get_weights()[:2])
            # The published file holds the deviations where the layer expects variances.
            if np.allclose(mean, IMAGENET_MEAN) and np.allclose(variance, IMAGENET_DEVIATION):
                return
            if np.allclose(mean, 0) and np.allclose(variance, 1):
                logger.warning("the weights of %s hold no input scaling: ImageNet's is used", arm)
                return
            raise InputError(
                "wrong-weights",
                f"the weights of {arm} were trained with another input scaling than ImageNet's: mean "
                f"{mean.tolist()}, variance {variance.tolist()}; expected "
                f"{IMAGENET_MEAN}, {IMAGENET_DEVIATION}",
            )
