"""Attacks that start where the last one on their image ended."""

import numpy as np
import pytest
import tensorflow as tf
from tiny import BATCH, image_data, runner, tiny_clafs, tiny_network

from keras_rcl.methods.clafs import CLAFS
from keras_rcl.runtime.progress import Silent
from keras_rcl.training.warm_starts import WarmStarts
from keras_rcl.vocabulary.attacks import FGSM, PGD
from keras_rcl.vocabulary.dataset import CropFlip
from keras_rcl.vocabulary.phase import Adversarial, Augmented, Clean, CrossEntropy, Phase

pytestmark = pytest.mark.slow

EPSILON = 8 / 255
VIEW = Adversarial(attack=PGD(epsilon=EPSILON, num_steps=5), warm_steps=2)


def test_an_image_starts_at_its_own_last_perturbation():
    """Of five images two batches, in another order the second time; each start is within half a level of the last."""
    rng = np.random.default_rng(0)
    images = rng.random((5, 4, 4, 1), np.float32)
    changed = np.clip(images + rng.uniform(-EPSILON, EPSILON, images.shape), 0, 1).astype("float32")
    starts, seen = WarmStarts(5, (4, 4, 1), EPSILON), []

    def attacked(attack, x, labels, start=None):
        seen.append((attack, start))
        made = tf.gather(changed, labels)  # labels name the images here
        return made, tf.zeros(len(labels))

    for batch in ([0, 3], [1, 4]):
        made, _ = starts(attacked, VIEW, tf.gather(images, batch), tf.constant(batch), tf.constant(batch))
        np.testing.assert_array_equal(made, changed[batch])
    assert [(attack, start) for attack, start in seen] == [(VIEW.attack, None)] * 2

    starts.warm.assign(True)
    batch = [4, 2, 0]
    starts(attacked, VIEW, tf.gather(images, batch), tf.constant(batch), tf.constant(batch))
    attack, start = seen[-1]
    assert (attack.num_steps, attack.epsilon) == (2, EPSILON)
    level = EPSILON / 127
    np.testing.assert_allclose(start.numpy()[[0, 2]], changed[[4, 0]], atol=level / 2 + 1e-6)
    np.testing.assert_array_equal(start[1], images[2])  # which no attack has seen
    assert np.abs(start.numpy() - images[batch]).max() <= EPSILON + 1e-6


def head_phase(**changes):
    return Phase(name="head", epochs=2, trains=("classifier",), views=(VIEW,), terms=(CrossEntropy(),), **changes)


def test_the_first_epoch_starts_cold_and_the_next_ones_warm():
    """Every image is attacked; in the second epoch fewer passes are made, and the examples are still in the ball."""
    data = image_data()
    steps = runner(tiny_network(), head_phase(batch_size=BATCH), data)
    starts = steps.warm_starts[0]
    assert all(any(v is kept for kept in steps.variables()) for v in (starts.levels, starts.warm))
    steps.begin()
    assert not starts.warm.numpy()
    steps.run_epoch(Silent(), "")
    first = starts.levels.numpy().astype(int)
    assert starts.warm.numpy() and np.all(np.abs(first).reshape(len(first), -1).max(axis=1) == 127)
    steps.run_epoch(Silent(), "")
    second = starts.levels.numpy().astype(int)
    assert np.abs(second).max() == 127 and (second != first).any()
    # Two steps of epsilon / 4 move no value farther than half of epsilon: the attack did not start at the image.
    assert np.abs(second - first).max() <= 2 * 127 / 4 + 2
    steps.begin()
    assert not starts.warm.numpy()


def test_claf_warms_its_inner_epochs_or_its_positives():
    _, stage, _ = tiny_clafs(warm_steps=1).phases()
    assert [view.warm_steps for view in stage.refresh[0].views] == [1] and not stage.warm_views
    _, stage, final = tiny_clafs(warm_steps=1, head="online", linear_evaluation="adversarial").phases()
    assert stage.warm_views == (2,) and not final.warm_views
    assert CLAFS().phases()[1].refresh[0].warm_views == ()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Adversarial(attack=FGSM(), warm_steps=1), "FGSM cannot start from its last image"),
        (lambda: Adversarial(attack=PGD(num_restarts=2), warm_steps=1), "PGD-10.* cannot start from its last image"),
        (lambda: Adversarial(attack=PGD(), of=Augmented(policy=CropFlip()), warm_steps=1), "not crops"),
        (lambda: head_phase(augmentation=CropFlip()), "leave augmentation out"),
        (lambda: tiny_clafs(warm_steps=1, head="online", positive_of="crop").phases(), "not crops"),
    ],
)
def test_an_attack_that_cannot_start_warm_raises(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_clean_views_are_not_warm():
    assert Phase(name="p", epochs=1, trains=("classifier",), views=(Clean(),), terms=(CrossEntropy(),)).warm_views == ()
