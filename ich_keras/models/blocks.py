"""An arm's blocks and their output shapes, read from the model itself (the paper's Figures 6 and 7)."""

import re

import keras

NAMED = re.compile(r"(stem|top|conv_7b|mixed_\d[a-z]|block\d+)(?:([a-z])_|_(\d+)_|_)")
"""The names that keras.applications gives to the layers of a block and of its repeats."""


def arm_blocks(arm: keras.Model) -> list[tuple[str, tuple[int | None, ...]]]:
    """The arm's blocks from the input down, as (name, output shape without the batch).

    Blocks are told by the layers' names; an arm whose layers have none is told by the image sizes it
    passes through.
    """
    shapes: dict[str, tuple[int | None, ...]] = {"image": tuple(arm.input_shape[1:])}
    repeats: dict[str, set[str]] = {}
    named = any(NAMED.match(layer.name) for layer in arm.layers)
    for layer in arm.layers[1:]:
        shape = tuple(layer.output.shape[1:])
        if layer.name in ("pooling", "probability"):
            shapes[{"pooling": "global average pooling", "probability": "Dense, sigmoid"}[layer.name]] = shape
        elif len(shape) == 3 and min(shape[:2]) > 1:
            match = NAMED.match(layer.name)
            if named and not match:
                continue
            name = match[1] if match else f"{shape[0]} x {shape[1]}"
            shapes[name] = shape
            repeats.setdefault(name, set()).add((match[2] or match[3] or "") if match else "")
    return [
        (f"{name} ({len(repeats[name])} times)" if len(repeats.get(name, ())) > 1 else name, shape)
        for name, shape in shapes.items()
    ]
