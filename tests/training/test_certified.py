"""Certified training against loops over single neurons, and against points of the balls that it bounds."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import BATCH, CLASSES, eager_epoch, image_data, runner, tiny_network

from keras_rcl.bounds import output_bounds, training_pass, worst_case_margins, worst_case_outputs
from keras_rcl.bounds.input_sets import Interval
from keras_rcl.bounds.worst_case import interval_tightness, relu_balance
from keras_rcl.errors import InvalidInputError
from keras_rcl.methods import VARIANTS
from keras_rcl.networks import build_network, initialize_for_intervals, parts
from keras_rcl.runtime.progress import Silent
from keras_rcl.training.steps.step import StepInput
from keras_rcl.vocabulary.attacks import PGD, AutoPGD
from keras_rcl.vocabulary.network import Network
from keras_rcl.vocabulary.phase import Adam, Adversarial, Clean, CrossEntropy, Phase, Ramp, WorstCase

EPSILON = 0.1


def batch(seed: int = 0):
    rng = np.random.default_rng(seed)
    images = np.clip(rng.uniform(-0.3, 1.3, (6, 8, 8, 1)), 0, 1).astype("float32")
    return images, np.arange(6) % CLASSES


def plain_network():
    """Of two dense layers, whose weights are of the size that makes bounds matter."""
    image = keras.Input((2, 2, 1))
    hidden = keras.layers.Dense(5, activation="relu")(keras.layers.Flatten()(image))
    network = keras.Model(image, {"logits": keras.layers.Dense(CLASSES)(hidden)})
    rng = np.random.default_rng(1)
    for variable in network.weights:
        variable.assign(rng.normal(size=variable.shape))
    return network


def loop_of_worst_case_cross_entropy(weights, image, label, radius=EPSILON):
    """-log softmax of the upper bounds of logit_j - logit_y, neuron by neuron (Gowal et al. 2018, eq. 5 to 9)."""
    first, bias, second, shift = (np.float64(w) for w in weights)
    pixels = np.float64(image).ravel()
    low, high = np.maximum(pixels - radius, 0), np.minimum(pixels + radius, 1)
    least, most = [], []
    for j in range(len(bias)):
        bottom = top = bias[j]
        for i, w in enumerate(first[:, j]):
            bottom += w * (low[i] if w > 0 else high[i])
            top += w * (high[i] if w > 0 else low[i])
        least.append(max(bottom, 0))
        most.append(max(top, 0))
    worst = []
    for j in range(CLASSES):
        total = shift[j] - shift[label]
        for i in range(len(bias)):
            difference = second[i, j] - second[i, label]
            total += difference * (most[i] if difference > 0 else least[i])
        worst.append(total)
    return np.log(np.sum(np.exp(worst))) - worst[label]


def test_the_worst_cases_cross_entropy_is_the_papers():
    network, rng = plain_network(), np.random.default_rng(2)
    images, labels = rng.random((7, 2, 2, 1)).astype("float32"), np.arange(7) % CLASSES
    logits = worst_case_outputs(network, images, labels, EPSILON)["logits"]
    found = crossentropy(logits, labels)
    expected = [
        loop_of_worst_case_cross_entropy(network.get_weights(), *pair) for pair in zip(images, labels, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_loss_of_sabr_is_of_a_small_box_around_an_adversarial_image():
    """A quarter of the way up the ramp the box and the attack have a quarter of their radii (Mueller et al. 2023)."""
    image = keras.Input((8, 8, 1))
    hidden = keras.layers.Dense(5, activation="relu")(keras.layers.Flatten()(image))
    encoder = keras.Model(image, hidden, name="encoder")
    word = Network(encoder="own", projection_hidden=None, projection_dim=None, normalization="none")
    network = build_network(word, (8, 8, 1), CLASSES, encoder=encoder)
    method = small("sabr", box_share=0.4, ramp_epochs=2, regularization=0.0)
    (phase,) = method.phases()
    run = runner(network, dataclasses.replace(phase, views=tuple(map(linearly, phase.views))))
    run.optimizer.iterations.assign(run.batches.steps_per_epoch // 2)
    images, labels = batch()
    step = run.trainer.step_input(tf.constant(np.stack([images, images])), tf.constant(labels), tf.constant([3, 4]))
    adversarial, boxed = np.split(step.images.numpy(), 2)
    np.testing.assert_array_equal(boxed, adversarial)
    moved = np.abs(adversarial - images)
    assert moved.max() == pytest.approx(0.6 * EPSILON / 4, rel=1e-4) and np.median(moved) > 0.3 * EPSILON / 4
    outputs = run.trainer(step, training=True)
    _, values = run.trainer.loss_and_values(step.labels, outputs)
    weights = [*encoder.get_weights(), *parts(network)["classifier"].get_weights()]
    at, around = (
        np.mean([loop_of_worst_case_cross_entropy(weights, *pair, r) for pair in zip(x, labels, strict=True)])
        for x, r in ((images, 0.0), (adversarial, 0.4 * EPSILON / 4))
    )
    assert float(values["cross_entropy_worst_case"]) == pytest.approx(around, rel=1e-5)
    assert around > np.mean(crossentropy(outputs["logits"], labels)) > at
    assert float(values["epsilon"]) == pytest.approx(EPSILON / 4)


def linearly(view):
    """The view with a ramp whose values are plain."""
    name = "growth" if view.kind == "adversarial" else "epsilon"
    return dataclasses.replace(view, **{name: dataclasses.replace(getattr(view, name), shape="linear")})


def crossentropy(logits, labels):
    return keras.ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def random_intervals():
    rng = np.random.default_rng(3)
    centers = [rng.normal(0.4, 1, (4, 6)), 3 * rng.normal(-0.2, 1, (4, 9))]
    return [Interval(c - r, c + r) for c, r in zip(centers, (0.2, 2.0), strict=True)]


def test_tightness_is_the_papers():
    width, total = 0.3, 0.0
    for x in random_intervals():
        mean = sum((x.upper.ravel()[i] - x.lower.ravel()[i]) / 2 for i in range(x.lower.size)) / x.lower.size
        total += max(0.0, 0.5 - width / mean) / 0.5
    np.testing.assert_allclose(interval_tightness(width, random_intervals()), total / 2, rtol=1e-6)
    assert total > 0


def test_relu_balance_is_the_papers():
    total = 0.0
    for x in random_intervals():
        center = (x.lower + x.upper) / 2
        active, inactive = center[x.lower > 0], center[x.upper < 0]
        assert len(active) and len(inactive)
        mean = active.sum() / -inactive.sum()
        spread = ((active - center.mean()) ** 2).sum() / ((inactive - center.mean()) ** 2).sum()
        total += sum(max(0.0, 0.5 - min(ratio, 1 / ratio)) for ratio in (mean, spread)) / 0.5
    np.testing.assert_allclose(relu_balance(random_intervals()), total / 2, rtol=1e-6)
    assert total > 0


def test_relu_balance_of_relus_of_one_kind_is_zero():
    ones = np.ones((2, 3), "float32")
    assert float(relu_balance([Interval(ones, 2 * ones)])) == 0


def moved_to(network, statistics):
    """Let inference normalise by these statistics, as the batch's images were in training."""
    for layer in parts(network)["encoder"].layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            mean, variance = statistics[f"encoder/{layer.name}"]
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(variance)


@pytest.mark.parametrize("bound", ["ibp", "crown-ibp"])
def test_bounds_in_training_hold_for_every_image_of_the_ball(bound):
    """They are of the network that normalises by the statistics of the batch's own images."""
    network, (images, labels) = tiny_network(), batch()
    outputs, statistics = training_pass_in_training(network, images)
    worst = worst_case_outputs(network, images, labels, EPSILON, bound, statistics)["logits"].numpy()
    lower = {
        name: output_bounds(network, images, EPSILON, bound, name, statistics=statistics).lower.numpy()
        for name in ("logits", "embedding")
    }
    moved_to(network, statistics)
    np.testing.assert_allclose(network(images, training=False)["logits"], outputs["logits"], atol=1e-4)
    rng = np.random.default_rng(0)
    for share in np.linspace(0, 1, 20):
        step = EPSILON * np.where(rng.random(images.shape) < share, np.sign(rng.normal(size=images.shape)), 0.3)
        point = network(np.clip(images + step, 0, 1).astype("float32"), training=False)
        logits = point["logits"].numpy()
        assert (logits - logits[np.arange(6), labels][:, None] <= worst + 1e-4).all()
        assert all((point[name].numpy() >= values - 1e-4).all() for name, values in lower.items())


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.1, 20.0])
def test_loss_fusion_lies_between_the_cross_entropies_of_the_balls_images_and_of_intervals(epsilon):
    """The loss of no image of the ball is above it; at epsilon 0 it is that of the image."""
    network, (images, labels) = tiny_network(), batch()

    def cross_entropy(logits):
        logits = np.asarray(logits, "float64")
        return np.log(np.exp(logits - logits[np.arange(6), labels][:, None]).sum(axis=1))

    ibp, fused = (
        worst_case_outputs(network, images, labels, epsilon, bound)["logits"].numpy()
        for bound in ("ibp", "crown-ibp-fused")
    )
    assert (fused[np.arange(6), labels] == 0).all() and ((fused > -1e3).sum(axis=1) == 2).all()
    bounded = keras.ops.logsumexp(fused.astype("float64"), axis=1).numpy()
    assert (bounded <= keras.ops.logsumexp(ibp.astype("float64"), axis=1).numpy() + 1e-4).all()
    rng = np.random.default_rng(0)
    for share in np.linspace(0, 1, 20):
        step = epsilon * np.where(rng.random(images.shape) < share, np.sign(rng.normal(size=images.shape)), 0.3)
        logits = network(np.clip(images + step, 0, 1).astype("float32"), training=False)["logits"]
        assert (cross_entropy(logits) <= bounded + 1e-4).all()
        if epsilon == 0:
            np.testing.assert_allclose(bounded, cross_entropy(logits), atol=1e-4)


def training_pass_in_training(network, images):
    """As the trainer does it: in a step, whose call is in training mode."""

    class Caller(keras.Model):
        def call(self, x, training=None):
            return training_pass(network, x)

    return Caller()(images, training=True)


def test_the_training_pass_is_the_networks_own():
    one, other, (images, _) = tiny_network(), tiny_network(), batch()
    outputs, statistics = training_pass_in_training(one, images)
    for name, values in other(images, training=True).items():
        np.testing.assert_allclose(outputs[name], values, rtol=1e-5, atol=1e-6)
    for a, b in zip(one.weights, other.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert list(statistics) == ["encoder/conv1_norm", "encoder/conv2_norm", "encoder/embedding_norm"]


def phase_of(epsilon, *terms, **changes) -> Phase:
    views = (Clean(), WorstCase(epsilon=epsilon))
    settings = dict(name="test", epochs=1, trains=("encoder", "classifier"), views=views, terms=terms)
    return Phase(**{**settings, "batch_size": BATCH, "optimizer": Adam(learning_rate=1e-3), **changes})


@pytest.mark.slow
def test_epsilon_0_is_clean_training():
    trained = []
    for phase in (
        phase_of(0.0, CrossEntropy(on="worst_case")),
        phase_of(0.0, CrossEntropy(), views=(Clean(),)),
    ):
        network = tiny_network()
        metrics = eager_epoch(runner(network, phase))
        trained.append((metrics["loss"], [np.array(v) for v in network.weights]))
    (loss, weights), (clean_loss, clean_weights) = trained
    assert loss == pytest.approx(clean_loss, rel=1e-4)
    for one, other in zip(weights, clean_weights, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


def small(name: str, **changes):
    method = VARIANTS[name](batch_size=BATCH, epsilon=EPSILON, augmentation="none", ramp_epochs=1, start_epochs=0)
    epochs = {field.name: 2 for field in dataclasses.fields(method) if field.name in ("epochs", "linear_epochs")}
    return dataclasses.replace(method, **{**epochs, **changes})


UNSCHEDULED = dict(ramp_epochs=0, start_epochs=0, regularization=0, interval_initialization=False)


@pytest.mark.parametrize("name", ["certified", "certified_contrastive"])
def test_the_losses_of_cusins_code_are_of_lower_bounds(name):
    """CE of the lower bounds of all logits, without a ramp; CE of the classifier on lower bounds of the embedding."""
    if name == "certified":
        (phase,) = small(name, form="cusin", batch_size=6, **UNSCHEDULED).phases()
    else:
        phase = small(name, classifier_reads="embedding", bound="ibp", batch_size=6).phases()[-1]
        assert phase.trains == ("classifier",)
    network, (images, labels) = tiny_network(), batch()
    run = runner(network, phase, image_data(6))
    both = np.concatenate([images, images])
    outputs = run.trainer(StepInput(tf.constant(both), tf.constant(np.tile(labels, 2))), training=True)
    _, values = run.trainer.loss_and_values(tf.constant(np.tile(labels, 2)), outputs)
    if name == "certified":
        moved_to(network, training_pass_in_training(network, images)[1])
    read = "logits" if name == "certified" else "embedding"
    logits = np.asarray(output_bounds(network, images, EPSILON, "ibp", read).lower, np.float64)
    if name != "certified":
        kernel, bias = parts(network)["classifier"].get_weights()
        logits = logits @ kernel + bias
    shifted = logits - logits.max(1, keepdims=True)
    expected = np.mean(np.log(np.exp(shifted).sum(1)) - shifted[np.arange(6), labels])
    assert float(values["cross_entropy_worst_case"]) == pytest.approx(expected, rel=1e-4)
    assert float(values["epsilon"]) == pytest.approx(EPSILON)


def test_the_form_of_cusins_code_has_no_schedule():
    with pytest.raises(InvalidInputError, match="form cusin has no schedule; set start_epochs, ramp_epochs"):
        VARIANTS["certified"](form="cusin")
    with pytest.raises(InvalidInputError, match="use crown-ibp with form cusin"):
        VARIANTS["certified"](form="cusin", bound="crown-ibp-fused", **UNSCHEDULED)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        small("certified", bound="crown-ibp", initial_kappa=1.0, final_kappa=0.5),
        small("certified", bound="crown-ibp-fused"),
        small("certified_contrastive", form="sound", linear_epochs=0),
        small("certified", form="cusin", bound="crown-ibp", **UNSCHEDULED),
    ],
    ids=["crown-ibp", "fused", "sound contrastive", "cusin"],
)
def test_every_form_trains_on_finite_numbers(method):
    """The others, of intervals and of the paper's contrast, are trained in `test_variants.py`."""
    network = tiny_network()
    for phase in filter(lambda phase: phase.epochs, method.phases()):
        run, before = runner(network, phase), [np.array(v) for v in network.trainable_weights]
        run.begin()
        for _ in range(phase.epochs):
            metrics = run.run_epoch(Silent(), "")
        assert metrics["epsilon"] > 0 and np.isfinite(metrics["loss"])
        after = [np.array(v) for v in network.trainable_weights]
        assert all(np.isfinite(a).all() for a in after)
        assert any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        assert run.trainer.traces == 1


@pytest.mark.slow
def test_kappa_weighs_the_two_cross_entropies_and_the_radius_depends_on_the_steps_of_the_optimizer():
    """At kappa = 0.25 the loss is 0.25 CE(clean) + 0.75 CE(worst case), each as the log shows it.

    There are 2 steps per epoch, and the radius grows from 0 to 0.1 over 4 epochs. A resumed run continues where it was.
    """
    method = small("certified", initial_kappa=0.25, final_kappa=0.25, regularization=0.0)
    (phase,) = method.phases()
    *views, bounded = phase.views
    ramp = Ramp(start=0, stop=0.1, epochs=4)
    run = runner(tiny_network(), dataclasses.replace(phase, views=(*views, dataclasses.replace(bounded, epsilon=ramp))))
    assert run.batches.steps_per_epoch == 2
    epochs = [run.run_epoch(Silent(), "") for _ in range(2)]
    run.optimizer.iterations.assign(6)
    epochs.append(run.run_epoch(Silent(), ""))
    assert [metrics["epsilon"] for metrics in epochs] == pytest.approx(
        [(0 + 0.0125) / 2, (0.025 + 0.0375) / 2, (0.075 + 0.0875) / 2]
    )
    for metrics in epochs:
        clean, worst = metrics["cross_entropy_clean"], metrics["cross_entropy_worst_case"]
        assert worst > clean and metrics["loss"] == pytest.approx(0.25 * clean + 0.75 * worst, rel=1e-5)
    assert run.trainer.traces == 1


def test_kernels_are_drawn_so_that_intervals_keep_their_width():
    network = build_network(Network(encoder="convex_small"), (28, 28, 1), 10, mean=[0.0], std=[1.0])
    encoder = parts(network)["encoder"]
    initialize_for_intervals(encoder, seed=0)
    for name, inputs in (("conv2", 16 * 4 * 4), ("dense1", 1568)):
        kernel = np.array(encoder.get_layer(name).kernel)
        assert np.abs(kernel).mean() * inputs == pytest.approx(2, rel=0.05)
        assert kernel.mean() == pytest.approx(0, abs=1e-3)
    drawn = np.array(encoder.get_layer("conv2").kernel)
    initialize_for_intervals(encoder, seed=0)
    np.testing.assert_array_equal(encoder.get_layer("conv2").kernel, drawn)


def test_the_classifier_keeps_its_initialization():
    """As in the code of Shi et al., which leaves out the last layer."""
    (phase,) = small("certified").phases()
    network = tiny_network()
    before = [np.array(part.trainable_weights[0]) for part in map(parts(network).get, ("encoder", "classifier"))]
    runner(network, phase).begin()
    after = [np.array(part.trainable_weights[0]) for part in map(parts(network).get, ("encoder", "classifier"))]
    assert [np.array_equal(*pair) for pair in zip(before, after, strict=True)] == [False, True]


def test_a_layer_without_bounds_raises_before_training():
    network = tiny_network()
    encoder = parts(network)["encoder"]
    encoder.get_layer("conv2_relu").negative_slope = 0.1
    with pytest.raises(InvalidInputError, match="encoder/conv2_relu is not a plain ReLU"):
        runner(network, phase_of(0.1, CrossEntropy(on="worst_case")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(views=(WorstCase(epsilon=0.1),)), "one worst case comes last"),
        (dict(views=(WorstCase(epsilon=0.1), Clean())), "one worst case comes last"),
        (dict(detach_classifier=True), "leave detach_classifier out"),
        (dict(views=(Clean(),)), "no worst_case view"),
        (dict(views=(Clean(), WorstCase(epsilon=0.1, share=0.4))), "lies around one adversarial view"),
        (
            dict(views=(Adversarial(attack=PGD(epsilon=0.1)), WorstCase(epsilon=0.1, share=0.4))),
            "leaves the ball from an attack of epsilon 0.1; give it at most 0.06",
        ),
    ],
)
def test_phases_without_meaning_raise(changes, said):
    with pytest.raises(ValueError, match=said):
        phase_of(0.1, CrossEntropy(on="worst_case"), **changes)


def test_an_attack_that_cannot_grow_raises():
    growth = Ramp(start=0, stop=1, epochs=2)
    for attack in (PGD(num_restarts=2), AutoPGD()):
        with pytest.raises(ValueError, match="cannot grow; use growth with fgsm, bim, mifgsm or pgd of one restart"):
            Adversarial(attack=attack, growth=growth)


@pytest.mark.slow
def test_a_few_epochs_certify_most_of_an_easy_task():
    """Stripes of another brightness, 128/255 above the noise: an untrained network certifies none of them."""
    data = image_data(8 * BATCH)
    network = build_network(
        Network(encoder="convex_small", projection_hidden=None, projection_dim=None),
        data.image_shape,
        CLASSES,
        mean=[0.35],
        std=[0.3],
    )
    images, labels = np.float32(data.test.images) / 255, data.test.labels

    @tf.function(autograph=False)
    def certify():
        margins = worst_case_margins(network, images, labels, 0.05, "ibp")
        return tf.reduce_all(tf.one_hot(labels, margins.shape[1], True, False, dtype=tf.bool) | (margins > 0), axis=1)

    assert np.mean(certify()) < 0.1
    optimizer = Adam(learning_rate=3e-3, clip_norm=8.0)
    method = VARIANTS["certified"](
        epochs=20,
        start_epochs=0,
        ramp_epochs=8,
        epsilon=0.05,
        batch_size=BATCH,
        augmentation="none",
        optimizer=optimizer,
    )
    (phase,) = method.phases()
    run = runner(network, phase, data)
    run.begin()
    for _ in range(phase.epochs):
        run.run_epoch(Silent(), "")
    assert np.mean(certify()) > 0.8
