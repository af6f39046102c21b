"""Two very small arms, and what tests of backends, devices and hosts do with them in other processes.

    python very_small_arms.py train ARGUMENTS OF train.py
    python very_small_arms.py runs JSON: {folder: options of training, "cut" to do it in two sittings, and
                                          "gpus" to let Keras see as many}; the last is evaluated
    python very_small_arms.py predict FOLDER

The backend is KERAS_BACKEND's. With SIGNAL_AT set to "<step> <number>", `train` sends itself that signal
after that step.
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import train
from ich_keras.command import import_keras
from ich_keras.labels import ARMS
from ich_keras.training import hosts
from ich_keras.training.devices import claim_devices
from ich_keras.training.options import TrainingOptions
from ich_keras.training.prepare import prepare_fold

PLAIN, DROPOUT = "plain", "dropout"
for name in (PLAIN, DROPOUT):
    ARMS[name] = ARMS["tiny300"]._replace(name=name, title=name, batch_size=4)


def import_keras_and_arms(before_devices=lambda: None):
    import_keras(before_devices)
    import keras

    from ich_keras.models.arms import BACKBONES

    def backbone_with(*dropout):
        def backbone(*, include_top, weights, input_tensor):
            x = keras.layers.Conv2D(8, 20, strides=20, use_bias=False)(input_tensor)
            x = keras.layers.BatchNormalization(momentum=0.9)(x)
            x = keras.layers.Activation("relu")(x)
            for rate in dropout:
                x = keras.layers.Dropout(rate)(x)
            return keras.Model(keras.utils.get_source_inputs(input_tensor), x)

        return BACKBONES["tiny300"]._replace(
            build=backbone, features=8, parameters=20 * 20 * 3 * 8 + 4 * 8 + 9 * 6
        )

    BACKBONES[PLAIN], BACKBONES[DROPOUT] = backbone_with(), backbone_with(0.3)
    if "SIGNAL_AT" in os.environ:
        _signal_at(*map(int, os.environ["SIGNAL_AT"].split()))


def _signal_at(step, number):
    from ich_keras.training.watcher import Watcher

    count = Watcher.on_train_batch_end

    def after_step(self, batch, logs=None):
        if self.state.step + 1 == step:
            os.kill(os.getpid(), number)
        count(self, batch, logs)

    Watcher.on_train_batch_end = after_step


def train_command(arguments):
    train.__file__, train.import_keras = __file__, import_keras_and_arms
    supervise = train.supervise
    # The child is to be this file too.
    train.supervise = lambda words, options: supervise([*words[:2], "train", *words[2:]], options)
    for name in ("JOIN_SECONDS", "HEARTBEAT_SECONDS"):
        setattr(hosts, name, int(os.environ.get(name, getattr(hosts, name))))
    sys.exit(train.report(lambda: train.main(arguments)))


def make_runs(runs):
    import_keras_and_arms(lambda: claim_devices(2))
    import keras

    from ich_keras.training import watcher
    from ich_keras.training.fold import train_fold

    save, list_devices = watcher.save_checkpoint, keras.distribution.list_devices

    class PowerCutError(BaseException):
        pass

    def cut(folder, step, *args, **kwargs):
        if step == 5:
            raise PowerCutError
        return save(folder, step, *args, **kwargs)

    for folder, options in runs.items():
        options = {"fold": 0, "runs": Path(folder), **options, "data": Path(options["data"])}
        gpus = [f"gpu:{number}" for number in range(options.pop("gpus", 0))]
        keras.distribution.list_devices = (lambda kind=None, found=gpus: found) if gpus else list_devices
        if options.pop("cut", False):
            watcher.save_checkpoint = cut
            try:
                train_fold(prepare_fold(TrainingOptions(**options)))
            except PowerCutError:
                options["resume"] = True
            watcher.save_checkpoint = save
        train_fold(prepare_fold(TrainingOptions(**options)))
    _evaluate(TrainingOptions(**options))


def _evaluate(options):
    from ich_keras.training.test_set import evaluate_runs

    evaluate_runs(
        data=options.data,
        protocol=options.protocol,
        runs=options.runs,
        arms=[options.arch],
        test_set="full",
        out=options.runs / "results",
        resamples=0,
    )


def predict(folder):
    """Loads arm.weights.h5 of each arm, predicts, turns the head a little, predicts again and saves both."""
    import_keras()
    from ich_keras.models.arms import build_arm
    from ich_keras.models.weights import load_weights

    for path in sorted(folder.glob("*.images.npy")):
        name = path.name.removesuffix(".images.npy")
        arm, images = build_arm(name, seed=5), np.load(path)
        load_weights(arm, folder / f"{name}.weights.h5")
        loaded = arm.predict(images, verbose=0)
        head = arm.get_layer("probability")
        kernel, bias = head.get_weights()
        head.set_weights([-0.9 * kernel, 0.2 - 0.9 * bias])
        arm.save_weights(folder / f"{name}.turned.weights.h5")
        np.savez(folder / f"{name}.outputs.npz", loaded=loaded, turned=arm.predict(images, verbose=0))


def main():
    what, *arguments = sys.argv[1:]
    if what == "train":
        train_command(arguments)
    elif what == "predict":
        predict(Path(arguments[0]))
    else:
        make_runs(json.loads(arguments[0]))
    print("tensorflow", "installed" if find_spec("tensorflow") else "not installed")


if __name__ == "__main__":
    main()
