"""Two small backbones for laptops and tests, in the spirit of the paper's two; not in the paper.

Both see a lesion of few pixels at 300 x 300 and train from scratch in some hundred steps on two CPU cores.
So the stem is a strided convolution that loses nothing of its patch, the work is done at low resolution,
and BatchNorm's moving averages follow within some tens of steps.
"""

import keras
from keras import layers

MOMENTUM = 0.9


def tiny300(*, include_top: bool, weights: None, input_tensor: keras.KerasTensor) -> keras.Model:
    """EfficientNet's blocks (depthwise convolution, squeeze and excite, residual) in three stages.

    The signature is that of `keras.applications`, of which only include_top=False, weights=None is there.
    """
    x = _convolution(input_tensor, 32, 4, strides=4)
    x = _depthwise_block(x)
    x = _convolution(x, 64, 2, strides=2)
    for _ in range(2):
        x = _depthwise_block(x)
    x = _convolution(x, 128, 2, strides=2)
    for _ in range(3):
        x = _depthwise_block(x)
    x = _convolution(x, 256, 1)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


def tiny299(*, include_top: bool, weights: None, input_tensor: keras.KerasTensor) -> keras.Model:
    """Inception's parallel branches with Inception-ResNet's residuals in three stages.

    The signature is that of `keras.applications`, of which only include_top=False, weights=None is there.
    """
    x = _convolution(input_tensor, 32, 7, strides=4)
    x = _reduction(x, 64)
    for _ in range(2):
        x = _inception_block(x, 16)
    x = _reduction(x, 128)
    for _ in range(3):
        x = _inception_block(x, 32)
    x = _convolution(x, 256, 1)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


def _convolution(x, filters, kernel_size, strides=1):
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)
    x = layers.BatchNormalization(momentum=MOMENTUM)(x)
    return layers.Activation("relu")(x)


def _depthwise_block(x):
    channels = x.shape[-1]
    y = layers.DepthwiseConv2D(3, padding="same", depthwise_initializer="he_normal")(x)
    y = layers.Activation("relu")(y)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
    gate = layers.Conv2D(channels // 4, 1, activation="relu")(gate)
    gate = layers.Conv2D(channels, 1, activation="sigmoid")(gate)
    y = layers.Multiply()([y, gate])
    y = layers.Conv2D(channels, 1, use_bias=False)(y)
    y = layers.BatchNormalization(momentum=MOMENTUM)(y)
    return layers.Add()([x, y])


def _inception_block(x, filters):
    point = layers.Conv2D(filters, 1, activation="relu")(x)
    narrow = layers.Conv2D(filters, 1, activation="relu")(x)
    narrow = layers.Conv2D(filters, 3, padding="same", activation="relu")(narrow)
    wide = layers.Conv2D(filters, 3, padding="same", activation="relu")(narrow)
    y = layers.Concatenate()([point, narrow, wide])
    y = layers.Conv2D(x.shape[-1], 1, use_bias=False)(y)
    y = layers.BatchNormalization(momentum=MOMENTUM)(y)
    return layers.Activation("relu")(layers.Add()([x, y]))


def _reduction(x, filters):
    pooled = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    strided = _convolution(x, filters - x.shape[-1], 3, strides=2)
    return layers.Concatenate()([pooled, strided])
