"""The papers' own protocols, against NumPy loops of what their code does."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from reference import objectives as loops

from keras_rcl.attacks import craft
from keras_rcl.attacks.surrogates import contrast_within
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import BIM, FGSM, MIFGSM, PGD, Embedding, JointAttack, SupConAttack
from keras_rcl.vocabulary.threat import PROTOCOLS

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 1, (9, 4, 4, 3)).astype("float32")
KERNEL, BIAS = RNG.normal(size=(48, 3)), RNG.normal(size=3)
LABELS = np.argmax(IMAGES.reshape(9, 48) @ KERNEL + BIAS, axis=1)
EPSILON, STEP = 8 / 255, 2 / 255

# The published constants of CIFAR-10 and CIFAR-100, red, green, blue.
MEAN10, STD10 = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
MEAN100, STD100 = np.array([0.5071, 0.4867, 0.4408]), np.array([0.2675, 0.2565, 0.2761])


def logits(x):
    return tf.reshape(tf.cast(x, tf.float64), [-1, 48]) @ KERNEL + BIAS


def signed_gradient(x, label):
    """The sign of the gradient of the cross-entropy with respect to the pixels: W (softmax - onehot)."""
    values = x.reshape(48) @ KERNEL + BIAS
    share = np.exp(values - values.max())
    share = share / share.sum() - np.eye(3)[label]
    return np.sign(KERNEL @ share).reshape(x.shape)


def is_fooled(x, label):
    return np.argmax(x.reshape(48) @ KERNEL + BIAS) != label


def claf(image, label, steps):
    """torchattacks' PGD without random start on a normalised tensor: clamps to [0, 1] in the units of that tensor."""
    normalized = (image - MEAN10) / STD10
    u = normalized
    for _ in range(steps):
        u = u + STEP * signed_gradient(u * STD10 + MEAN10, label)
        u = np.clip(normalized + np.clip(u - normalized, -EPSILON, EPSILON), 0, 1)
    return u * STD10 + MEAN10


def cusin(image, label, steps):
    """PGD in [-1, 1] that records before each step whether it succeeds now, and never after the last."""
    u = start = 2 * image - 1
    for _ in range(steps):
        found = u
        u = u + STEP * signed_gradient((u + 1) / 2, label)
        u = np.clip(np.clip(u, start - EPSILON, start + EPSILON), -1, 1)
    return (found + 1) / 2


def wang_minus1to1(image, label, steps):
    u = start = 2 * image - 1
    for _ in range(steps):
        u = u + STEP * signed_gradient((u + 1) / 2, label)
        u = np.clip(np.clip(u, start - EPSILON, start + EPSILON), -1, 1)
    return (u + 1) / 2


def wang_meanstd(image, label, steps):
    u = start = (image - MEAN100) / STD100
    for _ in range(steps):
        u = u + STEP * signed_gradient(u * STD100 + MEAN100, label)
        u = np.clip(np.clip(u, start - EPSILON, start + EPSILON), -MEAN100 / STD100, (1 - MEAN100) / STD100)
    return u * STD100 + MEAN100


LOOPS = {"claf-repo": claf, "cusin-repo": cusin, "wang-minus1to1": wang_minus1to1, "wang-meanstd": wang_meanstd}


@pytest.mark.parametrize("steps", [2, 7])
@pytest.mark.parametrize("protocol", LOOPS)
def test_against_a_numpy_loop(protocol, steps):
    attack = BIM(epsilon=EPSILON, step_size=STEP, num_steps=steps, protocol=protocol)
    found = craft(attack, logits, IMAGES, LABELS)
    expected = [LOOPS[protocol](x.astype("float64"), y, steps) for x, y in zip(IMAGES, LABELS, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_every_protocol_but_pixel_has_its_loop():
    assert set(PROTOCOLS) == {"pixel", *LOOPS}


def test_the_loops_meet_what_tells_them_apart():
    """Some image falls at the last step alone, which Cusin's code loses, and some before."""
    first = []
    for x, y in zip(IMAGES.astype("float64"), LABELS, strict=True):
        path = [wang_minus1to1(x, y, steps) for steps in range(8)]
        first.append(next((k for k, found in enumerate(path) if is_fooled(found, y)), 99))
    assert {2, 7} & set(first) and any(f in (1, 2, 3, 4) for f in first)


def test_how_far_each_goes_in_pixels():
    """The largest change of a pixel: epsilon times the channel's scale; what the clamp of `claf-repo` does is more."""
    far = {}
    for protocol in PROTOCOLS:
        attack = BIM(epsilon=EPSILON, step_size=STEP, num_steps=9, protocol=protocol)
        inner = 0.5 + 0.14 * IMAGES  # above CIFAR-10's mean, below mean + std in every channel: that clamp rests
        never = np.full(9, 99) % 3
        change = np.abs(craft(attack, lambda x: 1e-3 * logits(x), inner, never) - inner)
        far[protocol] = change.max(axis=(0, 1, 2))
    np.testing.assert_allclose(far["pixel"], EPSILON, atol=1e-6)
    np.testing.assert_allclose(far["claf-repo"], EPSILON * STD10, atol=1e-6)
    np.testing.assert_allclose(far["wang-minus1to1"], EPSILON / 2, atol=1e-6)
    np.testing.assert_allclose(far["wang-meanstd"], EPSILON * STD100, atol=1e-6)
    clamped = craft(FGSM(epsilon=0, protocol="claf-repo"), logits, IMAGES, LABELS)
    np.testing.assert_allclose(clamped, np.clip(IMAGES, MEAN10, MEAN10 + STD10), atol=1e-6)


@pytest.mark.parametrize("protocol", LOOPS)
def test_random_starts_lie_in_the_protocols_ball(protocol):
    found = PROTOCOLS[protocol]
    still = PGD(epsilon=EPSILON, step_size=1e-12, num_steps=1, protocol=protocol)
    u = (craft(still, logits, IMAGES, LABELS, seed=3) - found.shift) / found.scale
    origin = (IMAGES - np.array(found.shift)) / found.scale
    inside = (origin > EPSILON) & (origin < 1 - EPSILON) if found.box else np.ones_like(origin, bool)
    change = np.abs(u - origin)[inside]
    assert change.max() < EPSILON + 1e-5 and np.mean(change) > 0.3 * EPSILON


def test_grey_images_take_the_mean_of_the_constants():
    grey = IMAGES[..., :1]
    found = craft(FGSM(epsilon=0.1, protocol="wang-meanstd"), lambda x: logits(tf.tile(x, [1, 1, 1, 3])), grey, LABELS)
    inside = (found > 1e-3) & (found < 1 - 1e-3)
    np.testing.assert_allclose(np.abs(found - grey)[inside], 0.1 * STD100.mean(), atol=1e-6)


def test_other_channel_counts_are_refused():
    four = np.concatenate([IMAGES, IMAGES[..., :1]], axis=-1)
    with pytest.raises(InvalidInputError, match="1 or 3 channels, not 4"):
        craft(FGSM(protocol="claf-repo"), lambda x: logits(x[..., :3]), four, LABELS)


def test_momentum_against_a_numpy_loop():
    """Dong et al. 2018, Algorithm 1: gradients of unit L1 length are summed with a decay."""
    attack = MIFGSM(epsilon=EPSILON, num_steps=6, momentum=0.8)
    found = craft(attack, logits, IMAGES, LABELS)
    for image, label, result in zip(IMAGES.astype("float64"), LABELS, found, strict=True):
        x, total = image, np.zeros_like(image)
        for _ in range(6):
            values = x.reshape(48) @ KERNEL + BIAS
            share = np.exp(values - values.max())
            gradient = (KERNEL @ (share / share.sum() - np.eye(3)[label])).reshape(x.shape)
            total = 0.8 * total + gradient / np.abs(gradient).sum()
            x = np.clip(np.clip(x + EPSILON / 6 * np.sign(total), image - EPSILON, image + EPSILON), 0, 1)
        np.testing.assert_allclose(result, x, rtol=0, atol=2e-6)


def test_the_embedding_attack_on_a_linear_encoder():
    """The squared distance of W delta is convex: where W has one row, the ball's corner along it, either way."""
    row = RNG.normal(size=(48, 1)).astype("float32")
    grey = np.full((5, 4, 4, 3), 0.5, "float32")
    found = craft(Embedding(num_steps=12), lambda x: tf.reshape(x, [-1, 48]) @ row, grey, np.zeros(5), seed=1)
    change = (found.numpy() - grey).reshape(5, 48)
    np.testing.assert_allclose(np.abs(change @ row)[:, 0], 8 / 255 * np.abs(row).sum(), rtol=1e-4)


def test_the_supcon_attack_raises_the_loss_of_the_paper():
    """-1/|P| sum_p log(exp(z.z_p / tau) / sum_a exp(z.z_a / tau)) in NumPy, before and after; alone as in company."""
    kernel = RNG.normal(size=(48, 5)).astype("float32")

    def project(x):
        return tf.math.l2_normalize(tf.reshape(x - 0.5, [-1, 48]) @ kernel, axis=1)

    support_labels, support = np.repeat([0, 1, 2], 4), np.asarray(project(RNG.uniform(0, 1, (12, 4, 4, 3)).astype("f")))

    def loss(x):
        found = []
        for z, label in zip(np.asarray(project(x)), LABELS, strict=True):
            shares = np.exp(support @ z / 0.5)
            found.append(-np.mean([np.log(shares[p] / shares.sum()) for p in range(12) if support_labels[p] == label]))
        return np.array(found)

    attack = SupConAttack(epsilon=0.1, num_steps=10, temperature=0.5)
    contrast = (tf.constant(support_labels), tf.constant(support))
    found = craft(attack, project, IMAGES, LABELS, seed=2, support=contrast)
    assert np.all(loss(found) > loss(IMAGES) + 0.05)
    alone = craft(attack, project, IMAGES[[4]], LABELS[[4]], seed=2, support=contrast)
    np.testing.assert_allclose(alone[0], found[4], atol=1e-5)
    in_training = craft(attack, project, IMAGES, LABELS, seed=2)
    assert in_training.shape == IMAGES.shape and not np.allclose(in_training, found)


def test_the_supcon_attack_can_move_all_images_of_a_batch_at_once():
    """Its loss is the paper's SupCon of the attacked batch itself, by the loop; one step is up its gradient."""
    kernel = RNG.normal(size=(48, 5)).astype("float32")

    def project(x):
        return tf.math.l2_normalize(tf.reshape(x - 0.5, [-1, 48]) @ kernel, axis=1)

    def loss(x):
        return loops.supcon(LABELS, np.asarray(project(tf.constant(x))), 0.5).mean()

    np.testing.assert_allclose(
        contrast_within(LABELS, project(IMAGES), 0.5), loops.supcon(LABELS, project(IMAGES), 0.5), rtol=1e-4
    )
    attack = SupConAttack(epsilon=0.01, step_size=0.01, num_steps=1, temperature=0.5, contrast="attacked")
    assert attack.label == "SupCon-1 together"
    start = craft(dataclasses.replace(attack, step_size=1e-9), project, IMAGES, LABELS, seed=2).numpy()
    found = craft(dataclasses.replace(attack, step_size=1e-3), project, IMAGES, LABELS, seed=2).numpy()
    for place in np.ndindex(2, 2, 2, 3):
        up, down = start.copy(), start.copy()
        up[place] += 0.01
        down[place] -= 0.01
        slope = loss(up) - loss(down)
        inside = 0.01 < start[place] < 0.99 and abs(start[place] - IMAGES[place]) < 0.0085
        assert abs(slope) < 1e-4 or not inside or np.sign(found[place] - start[place]) == np.sign(slope)
    with pytest.raises(InvalidInputError, match="together contrasts an image with its batch"):
        craft(attack, project, IMAGES, LABELS, support=(tf.constant(LABELS), project(IMAGES)))
    with pytest.raises(InvalidInputError, match="contrast attacked has no other view of an image"):
        SupConAttack(contrast="attacked", positives="image")


@pytest.mark.parametrize("attack", [Embedding(num_steps=3), SupConAttack(num_steps=3)])
def test_an_attack_that_reads_no_logits_makes_all_its_steps(attack):
    """It cannot tell success, on which the quirk of `cusin-repo` turns; the coordinates are those of [-1, 1]."""

    def encoder(x):
        return tf.reshape(x, [-1, 48])[:, ::5]

    found, expected = (
        craft(dataclasses.replace(attack, protocol=protocol), encoder, IMAGES, LABELS)
        for protocol in ("cusin-repo", "wang-minus1to1")
    )
    np.testing.assert_array_equal(found, expected)
    assert attack.with_protocol("cusin-repo").num_passes == attack.num_passes


def test_the_supcon_attack_brings_embeddings_to_unit_length():
    kernel = RNG.normal(size=(48, 5)).astype("float32")

    def embed(x):
        return 7.0 * tf.reshape(x - 0.5, [-1, 48]) @ kernel

    attack = SupConAttack(epsilon=0.1, num_steps=3, temperature=0.5, reads="embedding")
    found = craft(attack, embed, IMAGES, LABELS, seed=2)
    same = craft(attack, lambda x: tf.math.l2_normalize(embed(x), axis=1), IMAGES, LABELS, seed=2)
    np.testing.assert_allclose(found, same, atol=1e-5)


def test_the_supcon_attack_image_by_image_needs_no_label():
    """RoCL: each image away from itself and toward the others: the cosine to itself falls, whatever the labels."""
    kernel = RNG.normal(size=(48, 5)).astype("float32")

    def project(x):
        return tf.math.l2_normalize(tf.reshape(x - 0.5, [-1, 48]) @ kernel, axis=1)

    attack = SupConAttack(epsilon=0.1, num_steps=10, temperature=0.5, positives="image")
    found = craft(attack, project, IMAGES, LABELS, seed=2)
    np.testing.assert_array_equal(found, craft(attack, project, IMAGES, np.zeros_like(LABELS), seed=2))
    noise = craft(dataclasses.replace(attack, step_size=1e-9, num_steps=1), project, IMAGES, LABELS, seed=2)

    def to_itself(x):
        return np.sum(project(x) * project(IMAGES), axis=1)

    assert np.all(to_itself(found) < to_itself(noise) - 0.01)
    with pytest.raises(InvalidInputError, match="image by image contrasts an image with its batch"):
        craft(attack, project, IMAGES, LABELS, support=(tf.constant(LABELS), project(IMAGES)))


@pytest.mark.parametrize("loss", ["cross_entropy", "kl_to_clean"])
def test_the_joint_attack_is_of_the_weighted_sum(loss):
    """Without weight PGD, with an overwhelming one the SupCon attack; its step raises the sum more than theirs do."""
    kernel = RNG.normal(size=(48, 5)).astype("float32")

    def project(x):
        return 3.0 * tf.reshape(x - 0.5, [-1, 48]) @ kernel

    def found(weight, **fields):
        """By the joint attack, and by the two others, from one start."""
        ball = dict(epsilon=0.1, **fields)
        joint = JointAttack(loss=loss, weight=weight, temperature=0.5, **ball)
        return (
            craft(joint, lambda x: (logits(x), project(x)), IMAGES, LABELS, seed=2).numpy(),
            craft(PGD(loss=loss, **ball), logits, IMAGES, LABELS, seed=2).numpy(),
            craft(SupConAttack(temperature=0.5, **ball), project, IMAGES, LABELS, seed=2).numpy(),
        )

    def total(x):
        """Both losses of each image, summed, by their loops."""
        z, clean = np.asarray(logits(x)), np.asarray(logits(IMAGES))
        q, p = (np.exp(v) / np.exp(v).sum(axis=1, keepdims=True) for v in (z, clean))
        values = -np.log(q[np.arange(9), LABELS]) if loss == "cross_entropy" else np.sum(p * np.log(p / q), axis=1)
        anchors, others = (np.asarray(tf.math.l2_normalize(project(v), axis=1)) for v in (x, IMAGES))
        for index, (anchor, label) in enumerate(zip(anchors, LABELS, strict=True)):
            shares = np.exp(others @ anchor / 0.5)
            values[index] -= np.mean([np.log(shares[j] / shares.sum()) for j in range(9) if LABELS[j] == label])
        return values

    without, pgd, _ = found(0.0, num_steps=10)
    np.testing.assert_allclose(without, pgd, atol=1e-5)
    overwhelming, _, supcon = found(1e7, num_steps=10)
    np.testing.assert_allclose(overwhelming, supcon, atol=1e-5)
    by_sum, by_logits, by_projection = map(total, found(1.0, num_steps=1, step_size=1e-3))
    for other in (by_logits, by_projection):
        assert np.all(by_sum > other - 1e-5) and np.any(by_sum > other + 1e-4)


def test_attacks_that_read_no_logits_cannot_choose_among_restarts():
    with pytest.raises(InvalidInputError, match="does not tell which restart fools"):
        craft(Embedding(num_restarts=2), lambda x: tf.reshape(x, [-1, 48]), IMAGES, LABELS)


@pytest.mark.parametrize("loss", ["dlr", "kl_to_clean"])
def test_the_other_surrogates_rise(loss):
    def value(x):
        z, clean = np.asarray(logits(x)), np.asarray(logits(IMAGES))
        if loss == "kl_to_clean":
            p, q = (np.exp(v) / np.exp(v).sum(axis=1, keepdims=True) for v in (clean, z))
            return np.sum(p * np.log(p / q), axis=1)
        ordered = -np.sort(-z, axis=1)
        others = np.where(np.eye(3)[LABELS] == 1, -np.inf, z).max(axis=1)
        return (others - z[np.arange(9), LABELS]) / (ordered[:, 0] - ordered[:, 2])

    attack = PGD(epsilon=EPSILON, num_steps=10, loss=loss)
    found = craft(attack, logits, IMAGES, LABELS)
    start = craft(dataclasses.replace(attack, num_steps=1, step_size=1e-12), logits, IMAGES, LABELS)
    assert np.all(value(found) > value(start))
