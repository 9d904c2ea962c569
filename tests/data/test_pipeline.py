"""Batches: a pure function of (seed, epoch, step), whole epochs, balanced where asked for."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.data.augmentations import augment
from keras_rcl.data.pipeline import Batches
from keras_rcl.data.sources import Split
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import PGD, Stored
from keras_rcl.vocabulary.dataset import CropFlip, LayerAugmentation, SimCLR
from keras_rcl.vocabulary.phase import Adversarial, Augmented, Clean

CROP, SIMCLR = Augmented(policy="crop_flip"), Augmented(policy="simclr")
ATTACK = PGD(epsilon="8/255", step_size="2/255", num_steps=1)


def part(labels=tuple(range(5)) * 5):
    """One image a label, 4x4 RGB; the first pixel's red is the index."""
    labels = np.asarray(labels, np.int64)
    images = np.random.default_rng(0).integers(0, 255, (len(labels), 4, 4, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return Split(images, labels, np.arange(len(labels)))


def epoch_of(batches, epoch):
    batches.start_epoch(epoch)
    return [tuple(np.asarray(x) for x in element) for element in batches.dataset]


def indices(elements):
    return np.concatenate([np.rint(images[0, :, 0, 0, 0] * 255).astype(int) for images, _, _ in elements])


def test_elements():
    batches = Batches(part(), (Clean(), CROP, SIMCLR), 8, 0)
    assert batches.batch_size == 8 and batches.steps_per_epoch == 3 and len(list(batches.dataset)) == 3
    assert batches.dataset.element_spec == (
        tf.TensorSpec((3, 8, 4, 4, 3), tf.float32),
        tf.TensorSpec((8,), tf.int32),
        tf.TensorSpec((2,), tf.int32),
    )
    source = part()
    for images, labels, _ in epoch_of(batches, 0):
        assert 0 <= images.min() and images.max() <= 1
        chosen = np.rint(images[0, :, 0, 0, 0] * 255).astype(int)
        np.testing.assert_allclose(images[0], source.images[chosen] / 255, atol=1e-7)
        np.testing.assert_array_equal(labels, source.labels[chosen])


def test_each_epoch_is_another_permutation():
    batches = Batches(part(), (Clean(),), 8, 0)
    orders = [indices(epoch_of(batches, epoch)) for epoch in range(3)]
    for order in orders:
        assert len(set(order)) == 24
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])
    whole = Batches(part(), (Clean(),), 5, 0)
    assert sorted(indices(epoch_of(whole, 0))) == list(range(25))


@pytest.mark.parametrize("balanced", [False, True])
def test_a_pure_function_of_seed_and_epoch(balanced):
    views = (CROP, CROP)

    def run(seed, order):
        batches = Batches(part(), views, 6, seed, balanced=balanced)
        return {epoch: epoch_of(batches, epoch) for epoch in order}

    first, again, other = run((1, 2), [0, 1, 2]), run((1, 2), [2, 0, 1]), run((2, 1), [0, 1, 2])
    for epoch in range(3):
        for a, b, c in zip(first[epoch], again[epoch], other[epoch], strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)
            assert not np.array_equal(a[0], c[0]) and not np.array_equal(a[2], c[2])


def test_iterating_twice_and_serially_gives_the_same():
    batches = Batches(part(), (SIMCLR, CROP), 6, 3)
    once, twice = epoch_of(batches, 4), epoch_of(batches, 4)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    batches.start_epoch(4)
    serial = [tuple(np.asarray(x) for x in element) for element in batches.dataset.with_options(options)]
    for a, b, c in zip(once, twice, serial, strict=True):
        for x, y, z in zip(a, b, c, strict=True):
            np.testing.assert_array_equal(x, y)
            np.testing.assert_array_equal(x, z)


def test_seeds_of_attacks_never_repeat():
    batches = Batches(part(), (Clean(),), 5, 0)
    seeds = [tuple(seed) for epoch in range(4) for _, _, seed in epoch_of(batches, epoch)]
    assert len(set(seeds)) == len(seeds) == 20


@pytest.mark.slow
def test_views_are_drawn_apart_and_adversarial_ones_start_at_theirs():
    views = (Clean(), SIMCLR, SIMCLR, Adversarial(attack=ATTACK), Adversarial(attack=ATTACK, of=SIMCLR))
    (images, _, _), *_ = epoch_of(Batches(part(), views, 25, 0), 0)
    np.testing.assert_array_equal(images[0], images[3])
    for a, b in ((0, 1), (1, 2), (0, 4), (2, 4)):
        assert not np.array_equal(images[a], images[b])


def test_augmented_views_are_those_of_the_policy():
    """The view is `augment` of the clean images with a seed: undone by asking for the same seed again."""
    batches = Batches(part(), (Clean(), SIMCLR), 25, 0)
    images, _, _ = batches._batch(tf.range(25), tf.constant([1, 2]))
    seed = tf.random.experimental.stateless_split([1, 2], num=3)[2]
    np.testing.assert_allclose(images[1], augment(SimCLR(), images[0], seed), atol=1e-6)


def test_views_share_the_augmentation_of_their_phase():
    views = (Clean(), Adversarial(attack=PGD()))
    (plain, _, _), *_ = epoch_of(Batches(part(), views, 25, 0), 0)
    (images, _, _), *_ = epoch_of(Batches(part(), views, 25, 0, augmentation=SimCLR()), 0)
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.array_equal(images[0], plain[0])


@pytest.mark.parametrize("batch_size", [3, 4, 10, 7])
def test_balanced_batches(batch_size):
    labels = [0] * 20 + [1] * 3 + [2] * 9 + [5] * 8
    batches = Batches(part(labels), (Clean(),), batch_size, 0, balanced=True)
    elements = epoch_of(batches, 0)
    for _, drawn, _ in elements:
        counts = np.array([np.sum(drawn == label) for label in (0, 1, 2, 5)])
        assert np.ptp(counts) <= 1
    order, drawn = indices(elements), np.concatenate([labels for _, labels, _ in elements])
    for label in (0, 1, 2, 5):  # no image comes again before all of its class came
        of_class = order[drawn == label]
        times = np.bincount(of_class, minlength=len(labels))[np.asarray(labels) == label]
        assert np.ptp(times) <= 1
    assert not np.array_equal(order, indices(epoch_of(batches, 1)))


@pytest.mark.slow
def test_shares_make_up_the_batch():
    """Each worker's rows are those that one process would have drawn, under every policy."""
    count = 2
    cutout = LayerAugmentation(layer="RandomCutout", arguments={"height_factor": 0.5, "width_factor": 0.5})
    views = (Clean(), SIMCLR, Augmented(policy=cutout), Adversarial(attack=ATTACK, of=CROP))

    def third_epoch(share):
        return epoch_of(Batches(part(), views, 8, 0, augmentation=CropFlip(padding=1), share=share), 2)

    shares = [third_epoch((index, count)) for index in range(count)]
    for (images, labels, seed), *parts in zip(third_epoch((0, 1)), *shares, strict=True):
        assert {rows.shape for rows, _, _ in parts} == {(4, 8 // count, 4, 4, 3)}
        np.testing.assert_allclose(np.concatenate([rows for rows, _, _ in parts], axis=1), images, atol=1e-6)
        np.testing.assert_array_equal(np.concatenate([rows for _, rows, _ in parts]), labels)
        assert all(np.array_equal(drawn, seed) for _, _, drawn in parts)


def test_fewer_images_than_a_batch():
    batches = Batches(part([0, 1, 2]), (Clean(),), 128, 0)
    assert batches.batch_size == 3 and batches.steps_per_epoch == 1
    assert sorted(indices(epoch_of(batches, 0))) == [0, 1, 2]


def test_an_empty_part_is_refused():
    with pytest.raises(InvalidInputError, match="no images"):
        Batches(part([]), (Clean(),), 8, 0)


def test_no_iterator_waits_for_autotuning():
    """Which its end may, for as long as the epoch took."""
    batches = Batches(part(), (Clean(),), 4, 0)
    assert batches.dataset.options().autotune.enabled is False


def test_epochs_do_not_retrace():
    traced = []
    batches = Batches(part(), (Clean(),), 8, 0)
    step = tf.function(lambda images, labels, seed: traced.append(1) or tf.reduce_sum(images))
    for epoch in range(3):
        batches.start_epoch(epoch)
        for element in batches.dataset:
            step(*element)
    assert traced == [1]


def test_stored_examples_are_varied_as_their_images_are():
    """Of the inverted images the view is the inverted view: same image, same flip, drawn once or for the view."""
    whole = part()
    whole = Split(whole.images, whole.labels, whole.indices, {"inverted": 255 - whole.images})
    flip = dict(name="crop_flip", padding=0)
    stored = Stored(folder="inverted")
    shared = Batches(whole, (Clean(), Adversarial(attack=stored)), 8, 0, augmentation=CropFlip(**flip))
    for images, _, _ in epoch_of(shared, 0):
        np.testing.assert_allclose(images[1], 1 - images[0], atol=1e-6)
    alone = Batches(whole, (Adversarial(attack=stored, of=Augmented(policy=flip)),), 8, 0)
    crafted = Batches(whole, (Adversarial(attack=ATTACK, of=Augmented(policy=flip)),), 8, 0)
    for (images, _, _), (clean, _, _) in zip(epoch_of(alone, 3), epoch_of(crafted, 3), strict=True):
        np.testing.assert_allclose(images, 1 - clean, atol=1e-6)
