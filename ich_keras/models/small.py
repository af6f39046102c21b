"""Two small backbones for laptops and tests, in the spirit of the paper's two; not in the paper.

Both see a lesion of few pixels at 300 x 300 and learn from scratch in some hundred steps on two CPU cores.
So the stem is one strided convolution that starts from differences of the windows, the work is done at low
resolution, in dense convolutions (a depthwise one costs a CPU as much time at a ninth of the arithmetic),
a reduction keeps the largest value beside a convolution's and the last features are squared, so that a small
spot is not lost in the mean over the map, and BatchNorm's moving averages follow within some tens of steps.
"""

import keras
import numpy as np
from keras import layers

MOMENTUM = 0.9


def tiny300(*, include_top: bool, weights: None, input_tensor: keras.KerasTensor) -> keras.Model:
    """EfficientNetV2's fused blocks (a convolution, a linear 1 x 1 one, residual) in three stages.

    The signature is that of `keras.applications`, of which only include_top=False, weights=None is there.
    """
    x = _convolution(input_tensor, 24, 4, strides=4, initializer=WindowDifferences())
    x = _reduction(x, 48)
    x = _fused_block(x, 32)
    x = _reduction(x, 96)
    for _ in range(2):
        x = _fused_block(x, 48)
    x = _convolution(x, 256, 1, initializer="glorot_uniform")
    return keras.Model(keras.utils.get_source_inputs(input_tensor), layers.Multiply()([x, x]))


def tiny299(*, include_top: bool, weights: None, input_tensor: keras.KerasTensor) -> keras.Model:
    """Inception's branches and reductions with Inception-ResNet's residuals in three stages.

    The signature is that of `keras.applications`, of which only include_top=False, weights=None is there.
    """
    x = _convolution(input_tensor, 24, 4, strides=4, initializer=WindowDifferences())
    x = _reduction(x, 48)
    x = _inception_block(x, 16)
    x = _reduction(x, 96)
    for _ in range(2):
        x = _inception_block(x, 32)
    x = _convolution(x, 256, 1, initializer="glorot_uniform")
    return keras.Model(keras.utils.get_source_inputs(input_tensor), layers.Multiply()([x, x]))


@keras.saving.register_keras_serializable("ich_keras")
class WindowDifferences(keras.initializers.Initializer):
    """He's normal initialisation, with one channel less the next in the first filters.

    The windows are of growing width, so the brain window less the subdural one is brightest at 80 HU, where
    its window ends: blood stands out of brain, fluid and bone without anything being learned.

    Args:
        seed: makes the kernel a function of the seed alone.
    """

    def __init__(self, seed=None):
        self.seed = seed

    def __call__(self, shape, dtype=None):
        drawn = keras.initializers.HeNormal(self.seed)(shape, dtype)
        random = np.array(keras.ops.convert_to_numpy(drawn))
        size = shape[0] * shape[1]
        for filters, difference in ((slice(0, 4), (2, -2, 0)), (slice(4, 6), (0, 2, -2))):
            random[..., filters] = 0.15 * random[..., filters] + np.array(difference)[:, None] / size
        return keras.ops.convert_to_tensor(random, drawn.dtype)

    def get_config(self):
        return {"seed": self.seed}


def _convolution(x, filters, kernel_size, strides=1, initializer="he_normal"):
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer=initializer,
    )(x)
    x = layers.BatchNormalization(momentum=MOMENTUM)(x)
    return layers.Activation("relu")(x)


def _linear(x, filters):
    x = layers.Conv2D(filters, 1, use_bias=False)(x)
    return layers.BatchNormalization(momentum=MOMENTUM)(x)


def _fused_block(x, filters):
    y = _convolution(x, filters, 3)
    return layers.Add()([x, _linear(y, x.shape[-1])])


def _inception_block(x, filters):
    point = _convolution(x, filters, 1)
    narrow = _convolution(point, filters, 3)
    wide = _convolution(narrow, filters, 3)
    y = layers.Concatenate()([point, narrow, wide])
    y = _linear(y, x.shape[-1])
    return layers.Activation("relu")(layers.Add()([x, y]))


def _reduction(x, filters):
    pooled = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    strided = _convolution(x, filters - x.shape[-1], 3, strides=2)
    return layers.Concatenate()([pooled, strided])
