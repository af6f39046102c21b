"""Optimizer, loss and execution of an arm that is about to be trained."""

import keras


def compile_arm(model: keras.Model, learning_rate: float) -> None:
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.BinaryCrossentropy(),
        # On a CPU, XLA takes minutes to compile a backbone and its steps are no faster.
        jit_compile=_has_accelerator(),
    )
    model.optimizer.build(model.trainable_variables)


def _has_accelerator() -> bool:
    return bool(keras.distribution.list_devices("gpu") or keras.distribution.list_devices("tpu"))
