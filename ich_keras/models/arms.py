"""One builder per arm: image in, six probabilities out, the input scaling inside.

Every arm is `image -> scaling -> backbone -> global average pooling -> Dense(6, sigmoid)`. Whatever the
weights come from, the computation is the same: the scaling holds constants and no weights.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

import keras

from ich_keras.errors import InputError
from ich_keras.labels import ARMS, LABELS
from ich_keras.models.small import tiny299, tiny300

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


class Backbone(NamedTuple):
    """How an arm is built, and what tells its weights from another's.

    Attributes:
        build: a `keras.applications` function, or one with its signature.
        scale, offset: the input scaling, `image * scale + offset`, by channel.
        features: channels of the last feature maps.
        parameters: count of parameters of the whole arm, the head included.
        imagenet: whether Keras publishes ImageNet weights for it.
    """

    build: Callable[..., keras.Model]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    features: int
    parameters: int
    imagenet: bool


_UNIT = ((1 / 127.5,) * 3, (-1.0,) * 3)

BACKBONES = {
    "efficientnetb3": Backbone(
        keras.applications.EfficientNetB3,
        tuple(1 / (255 * deviation) for deviation in IMAGENET_DEVIATION),
        tuple(-mean / deviation for mean, deviation in zip(IMAGENET_MEAN, IMAGENET_DEVIATION, strict=True)),
        1536,
        10_792_750,
        True,
    ),
    "inceptionresnetv2": Backbone(keras.applications.InceptionResNetV2, *_UNIT, 1536, 54_345_958, True),
    "tiny300": Backbone(tiny300, *_UNIT, 256, 163_590, False),
    "tiny299": Backbone(tiny299, *_UNIT, 256, 125_638, False),
}


def build_arm(name: str, *, seed: int | None = 0, synchronized: bool = False) -> keras.Model:
    """Builds an arm with fresh weights.

    Under a mixed-precision policy the scaling, the pooling and the head stay in float32.

    Args:
        name: a key of `labels.ARMS`.
        seed: makes the initial weights and the dropout a function of the seed alone; None draws them anew.
        synchronized: BatchNorm takes its statistics from the whole batch where a `tf.distribute` strategy
            divides it among devices. On JAX it does so always.

    Returns:
        A functional model named `name`. Input "image": `[N, n, n, 3]`, 0..255, uint8 or float. Output
        "probability": float32 `[N, 6]`, in the order of `labels.LABELS`.

    Raises:
        InputError: the name is no arm's, or Keras is set to channels first.
    """
    if name not in ARMS:
        raise InputError("bad-argument", f"arm must be one of {', '.join(ARMS)}; received {name!r}")
    if keras.config.image_data_format() != "channels_last":
        raise InputError(
            "bad-argument",
            "the arms need Keras's image_data_format channels_last; received channels_first: change "
            "keras.json or call keras.config.set_image_data_format('channels_last')",
        )
    size = ARMS[name].image_size
    backbone = BACKBONES[name]
    draw = None if seed is None else random.Random(seed)

    image = keras.Input((size, size, 3), name="image")
    scaled = keras.layers.Rescaling(backbone.scale, backbone.offset, dtype="float32", name="scaling")(image)
    features = backbone.build(include_top=False, weights=None, input_tensor=scaled).output
    rebuilt = _own_layers(keras.Model(image, features), draw, synchronized)
    pooled = keras.layers.GlobalAveragePooling2D(dtype="float32", name="pooling")(rebuilt.output)
    head = keras.layers.Dense(
        len(LABELS),
        activation="sigmoid",
        kernel_initializer=keras.initializers.GlorotUniform(draw and draw.getrandbits(31)),
        dtype="float32",
        name="probability",
    )
    return keras.Model(rebuilt.input, head(pooled), name=name)


def feature_maps(arm: keras.Model) -> keras.KerasTensor:
    """The arm's last feature maps, `[N, h, w, c]`: what is pooled and weighted by the head."""
    return arm.get_layer("pooling").input


def _own_layers(backbone: keras.Model, draw: random.Random | None, synchronized: bool) -> keras.Model:
    """A copy of `backbone` without scaling layers other than "scaling", its seeds taken from `draw`.

    On TensorFlow its BatchNorm is `fused_norm`'s.

    keras.applications' EfficientNet scales its input by a Rescaling and a Normalization, and by a further
    Rescaling (1 / sqrt of the deviation) only if weights="imagenet". A Normalization layer also keeps
    computing with the mean and variance it was built with when its variables are assigned. `build_arm`'s
    scaling is the product of the three with the values of the published ImageNet weights.
    """
    batch_norm = keras.layers.BatchNormalization
    on_tensorflow = keras.backend.backend() == "tensorflow"
    if on_tensorflow:
        from ich_keras.models.fused_norm import BatchNormalization as batch_norm

    def copy(layer):
        config = layer.get_config()
        if draw is not None:
            for key, value in config.items():
                if key.endswith("_initializer") and "seed" in value["config"]:
                    value["config"]["seed"] = draw.getrandbits(31)
            if "seed" in config:
                config["seed"] = draw.getrandbits(31)
        if isinstance(layer, keras.layers.BatchNormalization):
            config["synchronized"] = synchronized and on_tensorflow
            return batch_norm.from_config(config)
        return type(layer).from_config(config)

    def call(layer, *args, **kwargs):
        foreign = isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization)
        return args[0] if foreign and layer.name != "scaling" else layer(*args, **kwargs)

    return keras.models.clone_model(backbone, clone_function=copy, call_function=call)
