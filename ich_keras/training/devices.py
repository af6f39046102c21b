"""The devices that an arm is trained on: what is known to break is refused before a framework is loaded.

Several devices of one machine are TensorFlow's `MirroredStrategy` or, on JAX, Keras's `DataParallel`; several
machines are JAX's alone (`training.hosts`). Each device computes its part of every batch.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ich_keras.errors import InputError
from ich_keras.training.options import TrainingOptions

TPU_VARIABLES = ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE")


def check_devices(
    options: TrainingOptions, backend: str, environment: Mapping[str, str] = os.environ
) -> None:
    """Refuses what can't be trained together, by name; no framework is loaded.

    Args:
        options: the arguments given.
        backend: "tensorflow" or "jax".
        environment: variables that clusters set.

    Raises:
        InputError: "bad-argument".
    """
    devices = options.devices * options.processes
    on_tensorflow = backend == "tensorflow"
    for refused, message in (
        (
            on_tensorflow and options.coordinator,
            "--coordinator with the TensorFlow backend: Keras 3 can train neither under "
            "MultiWorkerMirroredStrategy (fit fails) nor under ParameterServerStrategy. For several hosts, "
            "set KERAS_BACKEND=jax.",
        ),
        (
            on_tensorflow and _workers_of_tf_config(environment) > 1,
            "TF_CONFIG names several workers, which TensorFlow takes for MultiWorkerMirroredStrategy or "
            "ParameterServerStrategy; Keras 3 can't train under either. Set KERAS_BACKEND=jax and give "
            "--coordinator, --processes and --process-id; or unset TF_CONFIG to train on this machine alone.",
        ),
        (
            on_tensorflow and any(name in environment for name in TPU_VARIABLES),
            "this looks like a TPU host, and TensorFlow's own TPU support (TPUStrategy) ends with 2.19. Set "
            "KERAS_BACKEND=jax.",
        ),
        (
            on_tensorflow and options.devices > 1 and options.clip_norm is not None,
            "--clip-norm with --devices on TensorFlow: under MirroredStrategy, Keras clips each device's "
            "part of the gradient before they are added up, which is another training. Leave one out, or set "
            "KERAS_BACKEND=jax.",
        ),
        (
            on_tensorflow and options.devices > 1 and options.reestimate_batchnorm,
            "--reestimate-batchnorm with --devices on TensorFlow: under MirroredStrategy the devices' sums "
            "can get mixed up (CollectiveReduceV2: shape mismatch). Leave one out, or set KERAS_BACKEND=jax.",
        ),
        (
            options.batch % devices,
            f"a batch of {options.batch} can't be shared evenly by {devices} devices; expected a "
            f"--batch-size that is a multiple of it, such as {-(-options.batch // devices) * devices}.",
        ),
        (
            options.processes > 1 and options.reestimate_batchnorm,
            "--reestimate-batchnorm with --processes: each process would need the statistics of the others' "
            "slices. Leave it out; in runs long enough for several hosts, moving averages do not lag behind.",
        ),
    ):
        if refused:
            raise InputError("bad-argument", message)


def _workers_of_tf_config(environment: Mapping[str, str]) -> int:
    try:
        cluster = json.loads(environment.get("TF_CONFIG") or "{}").get("cluster", {})
        return sum(len(tasks) for kind, tasks in cluster.items() if kind != "evaluator")
    except (ValueError, AttributeError, TypeError):
        return 0


def claim_devices(count: int) -> None:
    """Sees to it that there are `count` devices; call it between Keras's import and any use of a device.

    Without an accelerator the CPU is divided into as many logical devices: no faster, and enough to try out
    what several devices do.

    Raises:
        InputError: "bad-argument" if there are accelerators, and fewer than `count`.
    """
    import keras

    if count == 1:
        return
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        accelerators = len(tf.config.list_physical_devices("GPU"))
        if not accelerators:
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    else:
        import jax

        # Of the CPU alone: where JAX finds an accelerator, this changes nothing.
        jax.config.update("jax_num_cpu_devices", count)
        accelerators = jax.local_device_count() if jax.default_backend() != "cpu" else 0
    if 0 < accelerators < count:
        raise InputError(
            "bad-argument", f"--devices {count} was given and this machine has {accelerators}; give fewer."
        )


@contextmanager
def all_devices(options: TrainingOptions) -> Iterator[None]:
    """Within it, models are built, trained and predict on all the devices asked for."""
    import keras

    if options.devices * options.processes == 1:
        yield
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        names = [device.name for device in tf.config.list_logical_devices("GPU")]
        names = names or [device.name for device in tf.config.list_logical_devices("CPU")]
        with tf.distribute.MirroredStrategy(names[: options.devices]).scope():
            yield
    else:
        import jax

        chosen = [
            device
            for process in range(jax.process_count())
            for device in [one for one in jax.devices() if one.process_index == process][: options.devices]
        ]
        names = [f"{device.platform}:{device.id}" for device in chosen]
        with keras.distribution.DataParallel(devices=names, auto_shard_dataset=False).scope():
            yield


def replicas() -> int:
    """On how many devices a model built here computes."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.get_strategy().num_replicas_in_sync
    distribution = keras.distribution.distribution()
    return distribution.num_model_replicas if distribution else 1
