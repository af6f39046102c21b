"""The weights of an arm out of a SavedModel, to train it further.

Our export has no variables: its weights are constants of the graph, with BatchNorm folded into the
convolutions (`models.folding`). Beside the graph, where SavedModel has a place for files of one's own, lies a
small table: which constant is which weight, and BatchNorm's own weights, which folding lost. From both come
the weights that were exported, up to rounding.

A SavedModel of Keras's `Model.export` has variables, in the order of the model's weights.
"""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from ich_keras.errors import InputError
from ich_keras.files import whole_file
from ich_keras.labels import LABELS
from ich_keras.models.arms import build_arm
from ich_keras.models.engines import METADATA, read_metadata
from ich_keras.models.folding import fold_batch_norm, unfold_batch_norm

GRAPH = "saved_model.pb"
TABLE = "assets.extra/weights.npz"


def write_weights_table(
    arms: Sequence[keras.Model], constants: dict[str, list[str]], saved_model: Path
) -> None:
    """Writes what `load_from_saved_model` needs beside the graph.

    Args:
        arms: the arms as they were before folding.
        constants: for each arm's name the graph's constants, in the order of the folded arm's weights.
        saved_model: the SavedModel's folder.
    """
    table = {}
    for arm in arms:
        table[f"{arm.name}.constants"] = np.array(constants[arm.name])
        table[f"{arm.name}.batch_norm"] = np.concatenate(
            [np.ravel(weight) for norm in _norms(arm) for weight in norm.get_weights()]
        )
    with whole_file(saved_model / TABLE) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **table)


def load_from_saved_model(model: keras.Model, saved_model: Path) -> None:
    """Gives an arm the weights that it has in a SavedModel, its head's included.

    Args:
        model: a model of `build_arm`; unchanged where this fails.
        saved_model: of `find_saved_model`. Beside our own there must be the metadata.json that names it.

    Raises:
        InputError: "wrong-weights" if it holds other arms or labels, or no weights that can be told apart;
            "bad-model" if a file of an export was changed; "bad-argument" without TensorFlow.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise InputError(
            "bad-argument",
            f"--weights {saved_model} is a SavedModel, and reading one needs TensorFlow; install tensorflow, "
            "or name the run's best.weights.h5",
        ) from error
    if (saved_model.parent / METADATA).is_file():
        weights = _exported_weights(model, saved_model)
    else:
        loaded = tf.saved_model.load(str(saved_model))
        weights = [variable.numpy() for variable in getattr(loaded, "variables", ())]
        if not weights:
            raise InputError(
                "wrong-weights",
                f"{saved_model} holds no list of variables and no metadata.json of an export beside it; "
                "expected a folder that export.py or Keras's Model.export wrote",
            )
    _check_shapes(model, weights, saved_model)
    model.set_weights(weights)


def _exported_weights(model: keras.Model, saved_model: Path) -> list[np.ndarray]:
    metadata = read_metadata(saved_model.parent)
    if model.name not in metadata["arms"]:
        raise InputError(
            "wrong-weights",
            f"{saved_model} holds weights of {', '.join(metadata['arms'])}, expected {model.name}; name "
            "another model",
        )
    if list(metadata["labels"]) != list(LABELS):
        raise InputError(
            "wrong-weights",
            f"{saved_model} has {len(metadata['labels'])} labels ({', '.join(metadata['labels'])}), expected "
            f"{len(LABELS)} ({', '.join(LABELS)})",
        )
    try:
        with np.load(saved_model / TABLE, allow_pickle=False) as archive:
            names = archive[f"{model.name}.constants"].tolist()
            statistics = archive[f"{model.name}.batch_norm"]
        constants = _constants(saved_model, set(names))
        values = [constants[name] for name in names]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            "wrong-weights",
            f"{saved_model} has no table of the weights of {model.name} ({TABLE}); it was exported by an "
            "earlier version. Export it again, or name the run's best.weights.h5",
        ) from error
    arm = build_arm(model.name)
    sizes = [weight.size for norm in _norms(arm) for weight in norm.get_weights()]
    if sum(sizes) != statistics.size:
        raise InputError("wrong-weights", f"{saved_model} does not fit {model.name}: BatchNorm's weights")
    parts = iter(np.split(statistics, np.cumsum(sizes)[:-1]))
    for norm in _norms(arm):
        norm.set_weights([next(parts) for _ in norm.weights])
    folded = fold_batch_norm(arm)
    _check_shapes(folded, values, saved_model)
    folded.set_weights(values)
    unfold_batch_norm(folded, arm)
    return arm.get_weights()


def _constants(saved_model: Path, names: set[str]) -> dict[str, np.ndarray]:
    """The named constants among those of a SavedModel's functions."""
    from tensorflow import make_ndarray
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    content = SavedModel.FromString((saved_model / GRAPH).read_bytes())
    return {
        node.name: make_ndarray(node.attr["value"].tensor)
        for function in content.meta_graphs[0].graph_def.library.function
        for node in function.node_def
        if node.op == "Const" and node.name in names
    }


def _check_shapes(model: keras.Model, weights: list[np.ndarray], source: Path) -> None:
    expected = [tuple(weight.shape) for weight in model.weights]
    found = [weight.shape for weight in weights]
    if found == expected:
        return
    if len(found) == len(expected) and found[:-2] == expected[:-2]:
        raise InputError(
            "wrong-weights",
            f"{source} holds {model.name} with {found[-1][-1]} labels, expected {len(LABELS)} "
            f"({', '.join(LABELS)})",
        )
    raise InputError(
        "wrong-weights",
        f"{source} does not fit {model.name}: it holds {len(found)} weights of {_count(found):,} numbers, "
        f"expected {len(expected)} of {_count(expected):,}; name another model",
    )


def _count(shapes: list[tuple[int, ...]]) -> int:
    return sum(int(np.prod(shape)) for shape in shapes)


def _norms(arm: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [layer for layer in arm.layers if isinstance(layer, keras.layers.BatchNormalization)]
