"""BatchNorm folded into the convolution before it, for a model that is trained no further; and back."""

import keras
import numpy as np

CONVOLUTIONS = keras.layers.Conv2D | keras.layers.DepthwiseConv2D


def fold_batch_norm(arm: keras.Model) -> keras.Model:
    """A copy of an arm in which a convolution's kernel and bias do what BatchNorm did after it.

    `(conv(x) - mean) * gamma / sqrt(variance + epsilon) + beta` is a convolution of another kernel and bias.
    A BatchNorm that follows no convolution of its own stays.

    Args:
        arm: a functional model of `build_arm`.

    Returns:
        A model of the same name, input and output; only for inference.
    """
    folded = _folded_layers(arm)
    sources = {source.name for source in folded.values()}

    def copy(layer):
        config = layer.get_config()
        if layer.name in sources:
            config["use_bias"] = True
        return type(layer).from_config(config)

    def call(layer, *args, **kwargs):
        return args[0] if layer.name in folded else layer(*args, **kwargs)

    copied = keras.models.clone_model(arm, clone_function=copy, call_function=call)
    for layer in arm.layers:
        if layer.weights and layer.name not in folded and layer.name not in sources:
            copied.get_layer(layer.name).set_weights(layer.get_weights())
    for norm, source in folded.items():
        copied.get_layer(source.name).set_weights(_folded(source, arm.get_layer(norm)))
    return copied


def unfold_batch_norm(folded: keras.Model, arm: keras.Model) -> None:
    """Gives an arm the weights of which `fold_batch_norm` made `folded`, up to rounding.

    Args:
        folded: of `fold_batch_norm`.
        arm: a model of the same layers as the one that was folded, whose BatchNorm layers have their weights
            already. A channel that BatchNorm scales by 0 gets a kernel of 0: what it was can't be known, and
            has no effect.
    """
    norms = _folded_layers(arm)
    for layer in folded.layers:
        if layer.weights and layer.name not in {source.name for source in norms.values()}:
            arm.get_layer(layer.name).set_weights(layer.get_weights())
    for norm, source in norms.items():
        scale, shift = _scale_and_shift(arm.get_layer(norm))
        kernel, bias = (
            np.asarray(value, np.float64) for value in folded.get_layer(source.name).get_weights()
        )
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
        weights = [kernel * _along_channels(source, kernel, inverse), (bias - shift) * inverse]
        source.set_weights([value.astype(np.float32) for value in weights[: len(source.weights)]])


def _folded_layers(arm: keras.Model) -> dict[str, keras.layers.Layer]:
    """By the name of each BatchNorm that is folded, the convolution it is folded into."""
    return {norm.name: source for norm in arm.layers if (source := _convolution_before(norm))}


def _convolution_before(layer: keras.layers.Layer) -> keras.layers.Layer | None:
    """The linear convolution whose output `layer`, a BatchNorm, alone reads; None where there is none."""
    if not isinstance(layer, keras.layers.BatchNormalization):
        return None
    source = layer.input._keras_history.operation
    linear = isinstance(source, CONVOLUTIONS) and source.activation is keras.activations.linear
    return source if linear and len(source._outbound_nodes) == 1 else None


def _folded(source: keras.layers.Layer, norm: keras.layers.Layer) -> list[np.ndarray]:
    scale, shift = _scale_and_shift(norm)
    kernel, *bias = (np.asarray(value, np.float64) for value in source.get_weights())
    kernel *= _along_channels(source, kernel, scale)
    shift += bias[0] * scale if bias else 0.0
    return [kernel.astype(np.float32), shift.astype(np.float32)]


def _scale_and_shift(norm: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """What a BatchNorm in inference mode multiplies by and adds, float64 `[channels]`."""
    mean, variance = (np.asarray(value, np.float64) for value in (norm.moving_mean, norm.moving_variance))
    scale = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale *= np.asarray(norm.gamma, np.float64)
    shift = -mean * scale
    if norm.center:
        shift += np.asarray(norm.beta, np.float64)
    return scale, shift


def _along_channels(source: keras.layers.Layer, kernel: np.ndarray, scale: np.ndarray) -> np.ndarray:
    # A depthwise kernel is [h, w, channels, multiplier], any other [h, w, channels in, channels out].
    return scale.reshape(kernel.shape[2:]) if isinstance(source, keras.layers.DepthwiseConv2D) else scale
