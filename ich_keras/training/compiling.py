"""Optimizer, loss and execution of an arm that is about to be trained."""

import keras

from ich_keras.evaluation.metrics import LOSS_WEIGHTS
from ich_keras.training.devices import replicas
from ich_keras.training.options import TrainingOptions


class Adam(keras.optimizers.Adam):
    """Keras's Adam, but the end of `fit` does not put the averages in place of the weights.

    A run calls `fit` for each epoch, and goes on from the weights that were trained.
    """

    def finalize_variable_values(self, var_list):
        pass


def weighted_log_loss(labels, probabilities):
    """Kaggle's weighted log loss of each slice, `any` counted twice: see `evaluation.metrics.log_losses`.

    Args:
        labels: float32 `[N, 6]`, 0 or 1.
        probabilities: float32 `[N, 6]`.

    Returns:
        float32 `[N]`; Keras takes the mean.
    """
    losses = keras.ops.binary_crossentropy(labels, probabilities)
    weights = keras.ops.convert_to_tensor(LOSS_WEIGHTS / LOSS_WEIGHTS.sum(), losses.dtype)
    return keras.ops.sum(losses * weights, axis=-1)


def head_alone(options: TrainingOptions, epoch: int) -> bool:
    """Whether an epoch trains the head and nothing else (`--freeze-epochs`)."""
    return epoch < options.freeze_epochs


def learning_rate(
    options: TrainingOptions, steps_per_epoch: int, epoch: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate, or its schedule over the epochs that train the same layers as `epoch`.

    The head alone and the whole arm each have a schedule: the unfrozen layers, too, start with a warm-up.
    """
    if options.schedule == "constant":
        return options.learning_rate
    alone = head_alone(options, epoch)
    epochs = options.freeze_epochs if alone else options.epochs - options.freeze_epochs
    return keras.optimizers.schedules.CosineDecay(
        0.0 if options.warmup_steps else options.learning_rate,
        decay_steps=epochs * steps_per_epoch - options.warmup_steps,
        warmup_target=options.learning_rate if options.warmup_steps else None,
        warmup_steps=options.warmup_steps,
    )


def compile_arm(model: keras.Model, options: TrainingOptions, steps_per_epoch: int, epoch: int = 0) -> None:
    """Makes an arm ready to train an epoch, with a fresh optimizer.

    After `--freeze-epochs`, BatchNorm layers stay in inference mode with the scale and shift that they have:
    the head was fitted to features normalised by the moving statistics, and those of a batch would change
    them under it at once (https://keras.io/guides/transfer_learning). The optimizer is a fresh one because
    Adam takes the moments of a variable that was frozen for long runs, which are 0, for settled ones.

    Args:
        model: a model of `build_arm`.
        epoch: the first epoch to train; another compilation is due where `head_alone` changes.
    """
    for layer in model.layers:
        norm = isinstance(layer, keras.layers.BatchNormalization)
        frozen = options.freeze_epochs and (norm or head_alone(options, epoch))
        layer.trainable = layer.name == "probability" or not frozen
    by_xla = _compiled_by_xla()
    model.compile(
        optimizer=Adam(
            learning_rate(options, steps_per_epoch, epoch),
            global_clipnorm=options.clip_norm,
            use_ema=options.ema is not None,
            ema_momentum=options.ema or 0.99,
            # Weights files hold it, and Keras would count the compilations of a process in it.
            name="adam",
        ),
        loss=weighted_log_loss if options.loss_weights == "kaggle" else keras.losses.BinaryCrossentropy(),
        jit_compile=by_xla,
    )
    model.optimizer.build(model.trainable_variables)
    if not by_xla:
        # On TensorFlow, then: on JAX, XLA compiles whatever is trained.
        from ich_keras.training.repeatable_step import make_repeatable

        make_repeatable(model)


def _compiled_by_xla() -> bool:
    # On a CPU, XLA takes minutes to compile a backbone and TensorFlow's steps are no faster; JAX knows no
    # other way. Under MirroredStrategy, XLA would update the variables of all devices from within one's step,
    # which TensorFlow refuses.
    if keras.backend.backend() == "jax":
        return True
    return replicas() == 1 and bool(keras.distribution.list_devices("gpu"))
