"""BatchNorm by TensorFlow's fused operation."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("ich_keras")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's BatchNormalization, of channels last, with one operation where it trains.

    Keras 3 spells it out in sums and products, whose gradients read the feature maps a dozen times.
    Outputs and moving averages are Keras's to within float32's rounding. The name, too, is Keras's, since
    weights files hold it.
    """

    def call(self, inputs, training=None, mask=None):
        plain = len(inputs.shape) == 4 and self.axis in (-1, 3) and not self.renorm and mask is None
        fits = plain and not self.synchronized and self.variable_dtype == "float32"
        if not (training and self.trainable and fits):
            return super().call(inputs, training=training, mask=mask)
        images = tf.cast(inputs, tf.float32)
        channels = images.shape[-1]
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            images,
            self.gamma.value if self.scale else tf.ones(channels),
            self.beta.value if self.center else tf.zeros(channels),
            epsilon=self.epsilon,
        )
        # The operation divides by n - 1 and Keras by n.
        count = tf.cast(tf.size(images, tf.int64) // channels, tf.float32)
        variance *= (count - 1) / count
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(average * self.momentum + value * (1 - self.momentum))
        return tf.cast(outputs, self.compute_dtype)
