import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from ich_keras.datasets.batches import decode_batch, slice_table
from ich_keras.datasets.pipeline import inference_dataset, slice_errors, training_dataset
from ich_keras.errors import InputError, SliceError
from ich_keras.labels import LABELS

POSITIONS = np.array([31, 2, 3, 5, 8, 9, 11, 14, 15, 17, 20])


def take(dataset, count):
    return [(images.numpy(), labels.numpy()) for images, labels in dataset.take(count)]


def stream(index, arm="tiny300", positions=POSITIONS, **options):
    return training_dataset(index, positions, arm, **{"batch_size": 4, "seed": 7, **options})


@pytest.fixture(scope="module")
def plain(mixed):
    """{position: its image of 300 x 300}"""
    images = decode_batch(slice_table(mixed[0]), POSITIONS, (300,))[300]
    return dict(zip(POSITIONS.tolist(), images, strict=True))


def recognise(image, plain):
    """(position, flips) of an image: exactly one must fit."""
    views = {0: image, 1: image[:, ::-1], 2: image[::-1], 3: image[::-1, ::-1]}
    found = [(p, f) for p, known in plain.items() for f, view in views.items() if np.array_equal(view, known)]
    assert len(found) == 1
    return found[0]


def test_training_batches(mixed):
    dataset = stream(mixed[0], "tiny299", batch_size=6)
    images, labels = dataset.element_spec
    assert images == tf.TensorSpec((6, 299, 299, 3), tf.uint8)
    assert labels == tf.TensorSpec((6, len(LABELS)), tf.float32)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    images, labels = take(dataset, 1)[0]
    assert images.shape == (6, 299, 299, 3)
    assert images.max() == 255


def test_epochs_are_permutations_and_labels_stay_with_images(mixed, plain):
    index, _ = mixed
    seen = []
    for images, labels in take(stream(index), 22):
        for image, label in zip(images, labels, strict=True):
            position, flips = recognise(image, plain)
            np.testing.assert_array_equal(label, index.rows.loc[position, list(LABELS)].to_numpy(float))
            seen.append((position, flips))
    epochs = np.array([position for position, _ in seen]).reshape(8, len(POSITIONS))
    assert (np.sort(epochs, axis=1) == np.sort(POSITIONS)).all()
    assert len(np.unique(epochs, axis=0)) == 8
    assert {flips for _, flips in seen} == {0, 1, 2, 3}


def test_without_flips(mixed, plain):
    for images, _ in take(stream(mixed[0], flips=()), 4):
        for image in images:
            assert recognise(image, plain)[1] == 0


def test_same_seed_same_stream(mixed):
    one, again, other = (take(stream(mixed[0], seed=seed), 6) for seed in (7, 7, 8))
    for (a, la), (b, lb) in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(la, lb)
    assert any((a != c).any() for (a, _), (c, _) in zip(one, other, strict=True))


@pytest.mark.parametrize("start", [1, 5])
def test_a_stream_started_late_is_the_tail_of_the_whole(mixed, start):
    whole = take(stream(mixed[0]), start + 4)
    tail = take(stream(mixed[0], start_step=start), 4)
    for (a, la), (b, lb) in zip(whole[start:], tail, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(la, lb)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_inference_gives_every_row_once_in_order(mixed, batch_size):
    index, _ = mixed
    dataset = inference_dataset(index, POSITIONS, ["tiny300", "tiny299"], batch_size=batch_size)
    assert dataset.element_spec["tiny299"] == tf.TensorSpec((None, 299, 299, 3), tf.uint8)
    batches = [{arm: images.numpy() for arm, images in batch.items()} for batch in dataset]
    sizes = [len(batch["tiny300"]) for batch in batches]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert sum(sizes) == len(POSITIONS)
    assert len(batches) == dataset.cardinality()
    expected = decode_batch(slice_table(index), POSITIONS, (300, 299))
    for arm, size in (("tiny300", 300), ("tiny299", 299)):
        images = np.concatenate([batch[arm] for batch in batches])
        np.testing.assert_array_equal(images, expected[size])


def test_arms_of_one_size_share_images(mixed):
    dataset = inference_dataset(mixed[0], POSITIONS, ["tiny300", "efficientnetb3"], batch_size=4)
    for batch in dataset:
        assert list(batch) == ["tiny300", "efficientnetb3"]
        np.testing.assert_array_equal(batch["tiny300"], batch["efficientnetb3"])


def test_inference_over_nothing(mixed):
    assert list(inference_dataset(mixed[0], np.empty(0, int), ["tiny300"], batch_size=4)) == []


def test_every_row_of_real_data_once(rsna_sample, tmp_path):
    from ich_keras.datasets.index import load_index

    shutil.copytree(rsna_sample, tmp_path / "sample")
    index = load_index(tmp_path / "sample", workers=1)
    dataset = inference_dataset(index, np.arange(len(index.rows)), ["tiny299"], batch_size=32)
    assert sum(len(batch["tiny299"]) for batch in dataset) == len(index.rows)


@pytest.mark.parametrize("which", ["training", "inference"])
def test_a_slice_that_vanished_is_named(mixed, tmp_path, which):
    index, _ = mixed
    shutil.copytree(index.root, tmp_path / "data")
    moved = replace(index, root=tmp_path / "data")
    (moved.root / index.rows["path"][POSITIONS[4]]).unlink()
    if which == "training":
        dataset = stream(moved).take(3)
    else:
        dataset = inference_dataset(moved, POSITIONS, ["tiny300"], batch_size=4)
    with (
        pytest.raises(SliceError, match=f"^slice {index.rows['id'][POSITIONS[4]]}: ") as raised,
        slice_errors(),
    ):
        list(dataset)
    assert raised.value.reason == "unreadable-file"
    assert "[unreadable-file]" not in str(raised.value)


def test_other_errors_pass_unchanged():
    with pytest.raises(tf.errors.InvalidArgumentError, match="something else"), slice_errors():
        raise tf.errors.InvalidArgumentError(None, None, "something else")


@pytest.mark.parametrize(
    ("call", "reason", "words"),
    [
        (lambda index: stream(index, "resnet50"), "bad-argument", "resnet50"),
        (lambda index: stream(index, positions=[]), "too-few-slices", "no slice"),
        (lambda index: stream(index, flips=("diagonal",)), "bad-argument", "diagonal"),
        (lambda index: inference_dataset(index, [0], ["b3"], batch_size=1), "bad-argument", "b3"),
    ],
)
def test_clear_errors(mixed, call, reason, words):
    with pytest.raises(InputError, match=words) as raised:
        call(mixed[0])
    assert raised.value.reason == reason
