"""What training can do that the paper does not: each against NumPy, and all together after a power cut."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from sklearn.metrics import log_loss

from ich_keras.errors import InputError
from ich_keras.evaluation.metrics import log_losses
from ich_keras.labels import LABELS
from ich_keras.models.arms import BACKBONES, build_arm
from ich_keras.models.weights import load_weights
from ich_keras.training import fold as fold_module
from ich_keras.training import watcher as watcher_module
from ich_keras.training.checkpoint import load_checkpoint
from ich_keras.training.compiling import compile_arm, learning_rate, weighted_log_loss
from ich_keras.training.fold import out_of_patience, train_fold
from ich_keras.training.options import TrainingOptions
from ich_keras.training.prepare import prepare_fold
from ich_keras.training.runs import Run
from ich_keras.training.validated_weights import build_training_mode, validated_weights
from ich_keras.training.watcher import Progress

BATCHES, N, SIZE = 5, 4, 6


def small_model():
    """Two BatchNorms after 1 x 1 convolutions, which NumPy can follow, and a head named as an arm's."""
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(4, 1, use_bias=False)(image)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.Activation("relu")(x)
    x = keras.layers.Conv2D(5, 1, use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.5)(x)
    return keras.Model(image, keras.layers.Dense(len(LABELS), activation="sigmoid", name="probability")(x))


@pytest.fixture
def batches():
    draw = np.random.default_rng(0)
    images = draw.normal(3, 2, (BATCHES, N, SIZE, SIZE, 3)).astype(np.float32)
    labels = draw.integers(0, 2, (BATCHES, N, len(LABELS))).astype(np.float32)
    return images, labels


def options(**changed):
    return TrainingOptions("tiny300", 0, **{"epochs": 4, "learning_rate": 1e-2, **changed})


def fit(model, batches):
    images, labels = batches
    model.fit(
        images.reshape(-1, *images.shape[2:]),
        labels.reshape(-1, labels.shape[-1]),
        batch_size=N,
        shuffle=False,
        verbose=0,
    )


def variables(model):
    return [keras.ops.convert_to_numpy(variable).copy() for variable in model.variables]


def same(first, second):
    return [np.array_equal(a, b) for a, b in zip(first, second, strict=True)]


def test_the_cosine_rises_and_falls_as_it_should():
    schedule = learning_rate(options(schedule="cosine", warmup_steps=8), 10, epoch=0)
    steps = np.arange(45)
    expected = np.where(
        steps < 8, 1e-2 * steps / 8, 1e-2 * (1 + np.cos(np.pi * np.minimum((steps - 8) / 32, 1))) / 2
    )
    np.testing.assert_allclose([float(schedule(step)) for step in steps], expected, atol=1e-8)
    alone = learning_rate(options(schedule="cosine"), 10, epoch=3)
    np.testing.assert_allclose(
        [float(alone(step)) for step in steps],
        1e-2 * (1 + np.cos(np.pi * np.minimum(steps / 40, 1))) / 2,
        atol=1e-8,
    )
    assert learning_rate(options(), 10, epoch=0) == 1e-2


def test_the_head_alone_and_the_whole_arm_each_have_a_cosine():
    frozen = options(schedule="cosine", freeze_epochs=1)
    for epoch, steps in ((0, 10), (1, 30), (3, 30)):
        schedule = learning_rate(frozen, 10, epoch)
        assert float(schedule(0)) == pytest.approx(1e-2)
        assert float(schedule(steps // 2)) == pytest.approx(5e-3)
        assert float(schedule(steps)) == pytest.approx(0, abs=1e-9)


def test_the_weighted_loss_is_kaggles():
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 2, (40, 6))
    probabilities = draw.uniform(0.001, 0.999, (40, 6)).astype(np.float32)
    losses = keras.ops.convert_to_numpy(weighted_log_loss(labels.astype(np.float32), probabilities))
    np.testing.assert_allclose(losses, log_losses(labels, probabilities), rtol=1e-5)
    each = [log_loss(labels[:, k], probabilities[:, k].astype(np.float64)) for k in range(6)]
    assert losses.mean() == pytest.approx((sum(each[:5]) + 2 * each[5]) / 7, rel=1e-5)


@pytest.mark.parametrize("kaggle", [False, True])
def test_an_arm_is_compiled_with_the_loss_asked_for(batches, kaggle):
    model = small_model()
    compile_arm(model, options(loss_weights="kaggle" if kaggle else "paper"), 10)
    images, labels = batches[0][0], batches[1][0]
    given = model.test_on_batch(images, labels)
    probabilities = model.predict_on_batch(images)
    each = [log_loss(labels[:, k], probabilities[:, k].astype(float), labels=[0, 1]) for k in range(6)]
    weights = [1, 1, 1, 1, 1, 2 if kaggle else 1]
    assert float(given) == pytest.approx(np.average(each, weights=weights), rel=1e-5)


def test_gradients_are_scaled_down_to_their_global_norm(batches):
    def gradients(clip_norm):
        # After one step, Adam's first moments are 1 - beta_1 of the gradients it was given.
        keras.utils.set_random_seed(1)
        model = small_model()
        compile_arm(model, options(clip_norm=clip_norm), 10)
        model.train_on_batch(batches[0][0], batches[1][0])
        moments = [v for v in model.optimizer.variables if v.path.endswith("momentum")]
        assert len(moments) == len(model.trainable_variables)
        return np.concatenate([np.ravel(keras.ops.convert_to_numpy(v)) for v in moments]) / 0.1

    free = gradients(None)
    norm = float(np.linalg.norm(free.astype(np.float64)))
    clipped = gradients(norm / 3)
    assert np.linalg.norm(clipped.astype(np.float64)) == pytest.approx(norm / 3, rel=1e-4)
    np.testing.assert_allclose(clipped, free / 3, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(gradients(3 * norm), free, rtol=1e-5)


def test_averaged_weights_are_validated_and_training_goes_on_from_its_own(batches):
    keras.utils.set_random_seed(1)
    model = small_model()
    compile_arm(model, options(ema=0.8), 10)
    seen = []
    for images, labels in zip(*batches, strict=True):
        # A step each, so that the end of `fit`, where Keras would put the averages in place, is among them.
        fit(model, (images[None], labels[None]))
        seen.append([weight.numpy() for weight in model.trainable_variables])
    trained = variables(model)
    assert all(same([w.numpy() for w in model.trainable_variables], seen[-1]))
    expected = [weight.astype(np.float64) for weight in seen[0]]
    for weights in seen[1:]:
        expected = [0.8 * old + 0.2 * new for old, new in zip(expected, weights, strict=True)]
    statistics = [weight.numpy() for weight in model.non_trainable_variables]
    with validated_weights(model, None, ()):
        for weight, average in zip(model.trainable_variables, expected, strict=True):
            np.testing.assert_allclose(weight, average, rtol=1e-5, atol=1e-6)
        assert all(same([weight.numpy() for weight in model.non_trainable_variables], statistics))
    assert all(same(variables(model), trained))
    assert not any(same([w.astype(np.float32) for w in expected], seen[-1]))


def test_batchnorm_is_re_estimated_over_all_batches(batches):
    keras.utils.set_random_seed(1)
    model = small_model()
    compile_arm(model, options(), 10)
    fit(model, batches)
    trained = variables(model)
    images = batches[0].astype(np.float64)
    first, second = (layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    kernels = [layer.kernel.numpy()[0, 0] for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    inputs = [images @ kernels[0].astype(np.float64)]
    # On its way to the second, each batch is normalised by its own mean and variance.
    axes = (1, 2, 3)
    mean, variance = inputs[0].mean(axes, keepdims=True), inputs[0].var(axes, keepdims=True)
    normalised = (inputs[0] - mean) / np.sqrt(variance + first.epsilon)
    normalised = normalised * first.gamma.numpy() + first.beta.numpy()
    inputs.append(np.maximum(normalised, 0) @ kernels[1].astype(np.float64))
    training_mode = build_training_mode(model)
    for _ in range(2):
        with validated_weights(model, training_mode, batches[0]):
            for layer, values in zip((first, second), inputs, strict=True):
                values = values.reshape(-1, values.shape[-1])
                np.testing.assert_allclose(layer.moving_mean, values.mean(axis=0), rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(layer.moving_variance, values.var(axis=0), rtol=1e-4)
        # The seeds of dropout, too, are what they were.
        assert all(same(variables(model), trained))


@pytest.mark.parametrize(
    ("losses", "changed", "stops"),
    [
        ([0.5, 0.4, 0.6, 0.45], {"patience": 2}, True),
        ([0.5, 0.4, 0.6], {"patience": 2}, False),
        ([0.5, 0.4, 0.6, 0.39], {"patience": 2}, False),
        ([0.5, 0.6, 0.7], {"patience": 2, "freeze_epochs": 2}, False),
        ([0.5, 0.6, 0.7, 0.8], {"patience": 2, "freeze_epochs": 2}, True),
        ([0.5, 0.6, 0.7, 0.8], {}, False),
        ([], {"patience": 1}, False),
    ],
)
def test_patience_counts_epochs_without_a_lower_loss(losses, changed, stops):
    best = int(np.argmin(losses)) if losses else -1
    state = Progress(history=[{"val_loss": loss} for loss in losses], best_epoch=best)
    assert out_of_patience(options(**changed), state) is stops


def very_small_backbone(*, include_top, weights, input_tensor):
    x = keras.layers.Conv2D(8, 20, strides=20, use_bias=False)(input_tensor)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.Activation("relu")(x)
    x = keras.layers.Dropout(0.3)(x)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


@pytest.fixture
def run_options(phantom_data, tmp_path, monkeypatch):
    # tiny300 takes ten times as long to trace, and has no dropout.
    parameters = 20 * 20 * 3 * 8 + 4 * 8 + 9 * len(LABELS)
    small = BACKBONES["tiny300"]._replace(build=very_small_backbone, features=8, parameters=parameters)
    monkeypatch.setitem(BACKBONES, "tiny300", small)
    return TrainingOptions(
        "tiny300",
        2,
        data=phantom_data,
        runs=tmp_path / "whole",
        epochs=2,
        steps_per_epoch=2,
        batch_size=4,
        learning_rate=1e-3,
        checkpoint_minutes=0,
    )


def run_of(options):
    return Run(options.runs, options.protocol, options.arch, options.fold)


def test_a_run_ends_when_its_patience_does_and_stays_ended(run_options, monkeypatch):
    impatient = replace(run_options, epochs=6, steps_per_epoch=1, patience=2)
    losses = iter([0.5, 0.4, 0.6, 0.4])
    right = fold_module._validation_row
    monkeypatch.setattr(
        fold_module, "_validation_row", lambda *given: {**right(*given), "val_loss": next(losses)}
    )
    record = train_fold(prepare_fold(impatient))
    assert (record["state"], record["epochs"], record["best_epoch"]) == ("complete", 4, 1)
    history = run_of(impatient).history.read_bytes()
    record = train_fold(prepare_fold(replace(impatient, resume=True)))
    assert (record["state"], record["epochs"], record["best_epoch"]) == ("complete", 4, 1)
    assert run_of(impatient).history.read_bytes() == history


class PowerCut(BaseException):
    pass


def train_with_power_cuts(options, monkeypatch, steps):
    """Trains a fold; at each of the steps, in turn, the power fails in place of the checkpoint."""
    save = watcher_module.save_checkpoint
    for step in steps:

        def cut(folder, at, *args, step=step, **kwargs):
            if at == step:
                raise PowerCut
            return save(folder, at, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(watcher_module, "save_checkpoint", cut)
            with pytest.raises(PowerCut):
                train_fold(prepare_fold(replace(options, resume=True)))
        assert load_checkpoint(run_of(options).checkpoints)[1]["step"] == step - 1
    train_fold(prepare_fold(replace(options, resume=True)))


def assert_same_runs(first, second):
    arrays, state = load_checkpoint(run_of(first).checkpoints)
    found, found_state = load_checkpoint(run_of(second).checkpoints)
    for name in ("seconds", "saves", "save_seconds"):
        state.pop(name)
        found_state.pop(name)
    assert found_state == state
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    for name in ("history.csv", "predictions-validation.csv"):
        assert (run_of(second).folder / name).read_bytes() == (run_of(first).folder / name).read_bytes()


RECIPE = {
    "schedule": "cosine",
    "clip_norm": 1.0,
    "ema": 0.5,
    "loss_weights": "kaggle",
    "flips": "horizontal",
    "patience": 3,
}


def test_the_head_is_trained_first_and_a_power_cut_changes_nothing(run_options, tmp_path, monkeypatch):
    arm = build_arm("tiny300", seed=3)
    start = tmp_path / "start.weights.h5"
    arm.save_weights(start)
    before = variables(arm)
    whole = replace(run_options, **RECIPE, warmup_steps=1, freeze_epochs=1, weights=str(start))
    epochs, flips = [], []
    end_epoch, training_dataset = fold_module._end_epoch, fold_module.training_dataset

    def spy(fold, watcher):
        epochs.append(variables(watcher.model))
        end_epoch(fold, watcher)

    def dataset(*args, **kwargs):
        flips.append(kwargs["flips"])
        return training_dataset(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(fold_module, "_end_epoch", spy)
        patch.setattr(fold_module, "training_dataset", dataset)
        train_fold(prepare_fold(whole))
    assert flips == [("horizontal",)] * 2
    after_head, after_all = epochs
    for variable, first, second, third in zip(arm.variables, before, after_head, after_all, strict=True):
        of_head = variable.path.startswith(("probability", "seed_generator"))
        assert np.array_equal(first, second) != of_head, variable.path
        assert np.array_equal(second, third) == ("batch_normalization" in variable.path), variable.path
    cut = replace(whole, runs=tmp_path / "cut")
    # What is resumed is the last step of the head alone, and a step of the whole arm.
    train_with_power_cuts(cut, monkeypatch, [3, 4])
    assert_same_runs(whole, cut)


def test_re_estimated_statistics_are_kept_and_a_power_cut_changes_nothing(run_options, tmp_path, monkeypatch):
    whole = replace(run_options, **RECIPE, reestimate_batchnorm=2)
    train_fold(prepare_fold(whole))
    cut = replace(whole, runs=tmp_path / "cut")
    train_with_power_cuts(cut, monkeypatch, [4])
    assert_same_runs(whole, cut)
    # What is kept is not what training went on from: averages, and statistics made for them.
    arm = build_arm("tiny300")
    load_weights(arm, run_of(whole).last_weights)
    trained, _ = load_checkpoint(run_of(whole).checkpoints)
    kept = variables(arm)
    for variable, value, other in zip(arm.variables, kept, trained.values(), strict=False):
        assert not np.array_equal(value, other), variable.path


def test_a_cosine_can_not_be_made_longer_but_patience_can(run_options):
    for changed, refused in ((RECIPE, True), ({"patience": 3}, False)):
        first = replace(run_options, runs=run_options.runs / str(refused), **changed)
        prepared = prepare_fold(first)
        prepared.run.write(prepared.record)
        longer = replace(first, epochs=9, patience=5, resume=True)
        if refused:
            with pytest.raises(InputError, match="can't be resumed with other settings") as caught:
                prepare_fold(longer)
            lines = [line.split() for line in str(caught.value).splitlines()]
            assert ["epochs", "2", "9"] in lines
            assert not any(line and line[0] == "patience" for line in lines)
        else:
            prepare_fold(longer)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"schedule": "linear"}, "--schedule must be one of constant, cosine; received 'linear'"),
        ({"warmup_steps": 5}, "--warmup-steps 5 needs --schedule cosine"),
        ({"clip_norm": 0.0}, "--clip-norm must be a positive number"),
        ({"ema": 1.0}, "--ema must be between 0 and 1, received 1.0"),
        ({"ema": float("nan")}, "--ema must be between 0 and 1"),
        ({"loss_weights": "any"}, "--loss-weights must be one of paper, kaggle"),
        ({"flips": "vertical"}, "--flips must be one of both, horizontal, none"),
        ({"freeze_epochs": 4}, "--freeze-epochs must be below --epochs = 4, received 4"),
        ({"freeze_epochs": 1, "reestimate_batchnorm": 9}, "Choose one"),
        ({"patience": 0}, "--patience must be 1 or more"),
        ({"reestimate_batchnorm": -1}, "--reestimate-batchnorm must be 0 or more"),
    ],
)
def test_bad_recipes_are_named(changed, words):
    with pytest.raises(InputError, match=words) as caught:
        options(**changed)
    assert caught.value.reason == "bad-argument"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"schedule": "cosine", "warmup_steps": 4}, "must be below the 4 steps that the schedule has"),
        (
            {"schedule": "cosine", "warmup_steps": 2, "freeze_epochs": 1, "weights": "imagenet"},
            r"below the 2 steps that the schedule has \(2 an epoch\), received 2",
        ),
        ({"freeze_epochs": 1}, "needs weights to start from, received --weights none"),
    ],
)
def test_recipes_that_the_data_rule_out_are_named(run_options, changed, words):
    with pytest.raises(InputError, match=words):
        prepare_fold(replace(run_options, **changed))
