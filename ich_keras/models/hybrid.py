"""The hybrid: the mean of its arms' probabilities (paper, section 2.3)."""

from collections.abc import Sequence

import keras

from ich_keras.errors import InputError


def build_hybrid(arms: Sequence[keras.Model]) -> keras.Model:
    """Joins arms into one functional model; one arm is given the same interface.

    Args:
        arms: models of `build_arm`, no name twice. Their weights are shared, not copied.

    Returns:
        A model named by its arms. Inputs: a dict of images, `[N, n, n, 3]` with 0..255, keyed by arm.
        Output "probability": float32 `[N, 6]`.

    Raises:
        InputError: no arm, or one twice.
    """
    check_arms(arms)
    images = {arm.name: keras.Input(arm.input_shape[1:], name=arm.name) for arm in arms}
    # Keras wants an input's name to be its key, and no other name in the model to be the same.
    twins = [keras.Model(arm.input, arm.output, name=f"{arm.name}_arm") for arm in arms]
    probabilities = [twin(image) for twin, image in zip(twins, images.values(), strict=True)]
    if len(arms) == 1:
        # Average refuses a single input.
        output = keras.layers.Identity(dtype="float32", name="probability")(probabilities[0])
    else:
        output = keras.layers.Average(dtype="float32", name="probability")(probabilities)
    return keras.Model(images, output, name="_".join(images))


def check_arms(arms: Sequence[keras.Model]) -> None:
    """Raises InputError("bad-argument") where there is no arm, or one twice."""
    names = [arm.name for arm in arms]
    if not names or len(set(names)) < len(names):
        raise InputError(
            "bad-argument",
            f"a hybrid needs at least one arm and none twice; received {', '.join(names) or 'none'}",
        )


def with_arms(hybrid: keras.Model, names: Sequence[str]) -> keras.Model:
    """The hybrid with its arms' outputs beside its own: what is served and what is evaluated.

    Args:
        hybrid: of `build_hybrid`.
        names: its arms, in order.

    Returns:
        A model of the same inputs. Output: a dict of float32 `[N, 6]`, "probability" and one entry per arm.
    """
    parts = hybrid.get_layer("probability").input
    parts = parts if isinstance(parts, list) else [parts]
    return keras.Model(hybrid.input, {"probability": hybrid.output, **dict(zip(names, parts, strict=True))})
