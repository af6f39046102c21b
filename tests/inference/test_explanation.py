import cv2
import keras
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from ich_keras.ct.phantom import make_study
from ich_keras.ct.preprocess import slice_to_image
from ich_keras.inference.explanation import overlay, slice_map, write_overlays
from ich_keras.labels import ARMS, LABELS, SUBTYPES
from ich_keras.models.arms import build_arm, feature_maps

ANY = LABELS.index("any")


def cells_with(height, width, row, column, value=1.0, label="any"):
    cells = np.zeros((height, width, 6), np.float32)
    cells[row, column, LABELS.index(label)] = value
    return cells


@pytest.mark.parametrize("arm", list(ARMS))
def test_a_cell_is_drawn_where_it_looks(arm):
    size, first, step = ARMS[arm].image_size, ARMS[arm].map_first, ARMS[arm].map_step
    drawn = slice_map({arm: cells_with(8, 7, 5, 2)}, "any", (400, 512))
    assert drawn.shape == (400, 512)
    assert drawn.dtype == np.float32
    row, column = np.unravel_index(drawn.argmax(), drawn.shape)
    assert (row + 0.5) / 400 * size == pytest.approx(first + 5 * step, abs=0.5)
    assert (column + 0.5) / 512 * size == pytest.approx(first + 2 * step, abs=0.5)
    assert slice_map({arm: cells_with(8, 7, 5, 2)}, "subdural", (400, 512)).max() == 0


def test_between_cells_the_map_is_bilinear_and_beyond_them_constant():
    cells = np.random.default_rng(0).normal(size=(8, 8, 6)).astype(np.float32)
    drawn = slice_map({"inceptionresnetv2": cells}, "epidural", (512, 300))
    rows, columns = (((np.arange(n) + 0.5) / n * 299 - 37.5) / 32 for n in drawn.shape)
    expected = map_coordinates(
        cells[..., 0].astype(np.float64), np.meshgrid(rows, columns, indexing="ij"), order=1, mode="nearest"
    )
    np.testing.assert_allclose(drawn, expected, atol=1e-5)


def test_the_mean_of_the_arms_is_taken_at_the_slice():
    one, other = {"tiny300": cells_with(19, 19, 4, 4)}, {"inceptionresnetv2": cells_with(8, 8, 6, 6)}
    mean = slice_map(one | other, "any", (512, 512))
    parts = [slice_map(maps, "any", (512, 512)) for maps in (one, other)]
    np.testing.assert_allclose(mean, np.mean(parts, axis=0))


def test_overlay_colours_what_speaks_for_the_label_and_nothing_else():
    hu = np.full((512, 512), 40, np.float32)
    cells = cells_with(19, 19, 5, 5, 3.0) + cells_with(19, 19, 14, 14, -30.0)
    image = overlay(hu, {"tiny300": cells}, "any")
    assert image.shape == (512, 512, 3)
    assert image.dtype == np.uint8
    place, against = (int((8 + 16 * k) / 300 * 512) for k in (5, 14))
    red, green, blue = image[place, place].astype(int)
    assert min(red, green) > blue + 20
    assert np.array_equal(image[against, against], [128, 128, 128])
    assert np.array_equal(overlay(hu, {"tiny300": -abs(cells)}, "any"), np.full_like(image, 128))
    # Colours run up to the map's own highest value.
    np.testing.assert_array_equal(overlay(hu, {"tiny300": 7 * cells}, "any"), image)


def test_overlays_are_written_as_png(tmp_path):
    hu = np.random.default_rng(0).normal(40, 30, (256, 300)).astype(np.float32)
    maps = {"tiny300": cells_with(19, 19, 9, 9), "tiny299": cells_with(19, 19, 3, 3)}
    written = write_overlays(tmp_path / "maps", "ID_0a", hu, maps, "any")
    assert [path.name for path in written] == [
        "ID_0a-any.png",
        "ID_0a-any-tiny300.png",
        "ID_0a-any-tiny299.png",
    ]
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == sorted(p.name for p in written)
    read = cv2.imread(str(written[0]), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(read, overlay(hu, maps, "any"))
    assert len(write_overlays(tmp_path, "ID_0b", hu, {"tiny300": maps["tiny300"]}, "any")) == 1


def phantom_slices(seed):
    """Of ten bleeding phantoms the slices whose lesion fills 0.4% or more, and those without a lesion."""
    rngs = [np.random.default_rng((seed, number)) for number in range(10)]
    studies = [
        make_study(rng, subtype, thickness=10.0) for rng, subtype in zip(rngs, SUBTYPES * 2, strict=True)
    ]
    # The lowest and the highest slices hold little brain.
    hu, masks = (
        np.concatenate([getattr(study, name)[3:-2] for study in studies]) for name in ("hu", "lesion")
    )
    masks = masks > 0
    labels = np.concatenate([study.labels[3:-2] for study in studies])
    kept = (masks.mean(axis=(1, 2)) > 0.004) | (labels[:, ANY] == 0)
    return hu[kept], labels[kept], masks[kept]


def lesion_factors(arm, hu, masks):
    """For each label: how much of the maps' positive part lies in lesions, over their share of the area."""
    images = np.stack([slice_to_image(one, arm.input_shape[1]) for one in hu])
    features = keras.Model(arm.input, feature_maps(arm)).predict_on_batch(images)
    maps = features @ arm.get_layer("probability").get_weights()[0]
    factors = []
    for label in LABELS:
        positive = np.stack(
            [np.maximum(slice_map({arm.name: cells}, label, hu.shape[1:]), 0) for cells in maps]
        )
        held = (positive * masks).sum(axis=(1, 2)) / np.maximum(positive.sum(axis=(1, 2)), 1e-9)
        factors.append(held.mean() / masks.mean())
    return np.array(factors)


@pytest.mark.slow
def test_the_map_of_a_trained_arm_is_on_the_lesion_and_that_of_random_weights_is_not():
    hu, labels, _ = phantom_slices(1)
    arm = build_arm("tiny300", seed=0)
    arm.compile(optimizer=keras.optimizers.Adam(2e-3), loss="binary_crossentropy", jit_compile=False)
    images = np.stack([slice_to_image(one, 300) for one in hu])
    rng = np.random.default_rng(0)
    bleeding, clean = (np.flatnonzero(labels[:, ANY] == value) for value in (1, 0))
    for _ in range(50):
        drawn = np.concatenate([rng.choice(bleeding, 8), rng.choice(clean, 8)])
        rows, columns = rng.choice([-1, 1], 2)
        arm.train_on_batch(images[drawn][:, ::rows, ::columns], labels[drawn].astype(np.float32))

    hu, labels, masks = phantom_slices(2)
    seen = np.flatnonzero(labels[:, ANY] == 1)[::3]
    trained = lesion_factors(arm, hu[seen], masks[seen])[ANY]
    # Sanity check of Adebayo et al. 2018. A random map may be positive nearly nowhere, so that its share
    # means little: the middle one of six labels of three arms counts.
    random = np.median(
        [lesion_factors(build_arm("tiny300", seed=seed), hu[seen], masks[seen]) for seed in (10, 11, 12)]
    )
    assert trained > 3
    assert random < 1.5
