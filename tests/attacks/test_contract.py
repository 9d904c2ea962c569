"""The contract of every attack, one row per attack: ball and box, network, batch, seed, graph and tape."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl import attacks
from keras_rcl.attacks.craft import RUNNERS
from keras_rcl.errors import InvalidInputError
from keras_rcl.networks import build_network
from keras_rcl.vocabulary import attacks as vocabulary
from keras_rcl.vocabulary.attacks import (
    BIM,
    DDN,
    FAB,
    FGSM,
    FMN,
    MIFGSM,
    PGD,
    AutoPGD,
    CarliniWagner,
    Corruptions,
    DeepFool,
    Embedding,
    HopSkipJump,
    Noise,
    RayS,
    SmoothedAttack,
    Spatial,
    Square,
    SupConAttack,
    Transfer,
)
from keras_rcl.vocabulary.network import Network

ATTACKS = {
    "fgsm": FGSM(epsilon="8/255"),
    "fgsm l2": FGSM(epsilon="100/255", norm="l2"),
    "fgsm l1": FGSM(epsilon=2, norm="l1"),
    "fgsm targeted": FGSM(epsilon="8/255", targeted=True),
    "bim": BIM(epsilon="8/255", step_size="2/255", num_steps=6),
    "bim l2": BIM(epsilon="100/255", norm="l2", num_steps=6),
    "pgd": PGD(epsilon="8/255", step_size="2/255", num_steps=6),
    "pgd l2": PGD(epsilon="100/255", norm="l2", num_steps=6),
    "pgd without random start": PGD(epsilon="8/255", num_steps=6, random_start=False),
    "pgd l2 without random start": PGD(epsilon="100/255", norm="l2", num_steps=6, random_start=False),
    "pgd l1": PGD(epsilon=2, norm="l1", num_steps=6),
    "pgd restarts": PGD(epsilon="8/255", num_steps=4, num_restarts=3),
    "pgd l2 restarts": PGD(epsilon="100/255", norm="l2", num_steps=4, num_restarts=3),
    "pgd targeted": PGD(epsilon="8/255", num_steps=6, targeted=True),
    "pgd targeted restarts": PGD(epsilon="8/255", num_steps=4, num_restarts=3, targeted=True),
    "pgd eot": PGD(epsilon="8/255", num_steps=6, eot_iter=3),
    "pgd logit_margin": PGD(epsilon="8/255", num_steps=6, loss="logit_margin"),
    "pgd l2 logit_margin targeted": PGD(epsilon="100/255", norm="l2", num_steps=6, loss="logit_margin", targeted=True),
}
ENSEMBLE = {
    "apgd": AutoPGD(epsilon="8/255", num_steps=12),
    "apgd l2 dlr restarts": AutoPGD(epsilon="100/255", norm="l2", num_steps=8, loss="dlr", num_restarts=2),
    "apgd targeted dlr": AutoPGD(epsilon="8/255", num_steps=8, loss="dlr_targeted"),
    "apgd l1": AutoPGD(epsilon=2, norm="l1", num_steps=12),
    "apgd eot": AutoPGD(epsilon="8/255", num_steps=4, eot_iter=3),
    "fab": FAB(epsilon="8/255", num_steps=4),
    "fab untargeted": FAB(epsilon="8/255", num_steps=8, multi_targeted=False),
    "fab l2 untargeted restarts": FAB(epsilon="100/255", norm="l2", num_steps=4, multi_targeted=False, num_restarts=2),
    "fab l2": FAB(epsilon="100/255", norm="l2", num_steps=4),
    "fab l1": FAB(epsilon=2, norm="l1", num_steps=4),
    "cw": CarliniWagner(epsilon="100/255", num_steps=8, binary_search_steps=3, initial_const=0.1, learning_rate=0.1),
    "deepfool": DeepFool(epsilon="8/255", norm="linf", num_steps=5),
    "deepfool l2": DeepFool(epsilon="100/255", num_steps=5, num_targets=2),
    "ddn": DDN(epsilon="100/255", num_steps=8, initial_epsilon=0.3),
    "fmn": FMN(epsilon="8/255", num_steps=8),
    "fmn l2": FMN(epsilon="100/255", norm="l2", num_steps=8),
    "fmn l1": FMN(epsilon=2, norm="l1", num_steps=8),
    "square": Square(epsilon="8/255", num_queries=30),
    "square l2": Square(epsilon="100/255", norm="l2", num_queries=30),
    "square l1": Square(epsilon=2, norm="l1", num_queries=30),
    "rays": RayS(epsilon="8/255", num_queries=60),
    "hopskipjump": HopSkipJump(epsilon="100/255", num_queries=200),
}
"""AutoAttack's and those that look for the nearest image: they stop at the first image that fools, or return the image
where none near does."""
NOISE = {
    f"noise {kind} {norm}": Noise(kind=kind, norm=norm, epsilon=epsilon)
    for kind in ("uniform", "gaussian", "salt_and_pepper")
    for norm, epsilon in (("linf", "8/255"), ("l2", "100/255"), ("l1", 2))
}
"""Move any image, and ask the classifier nothing."""
OTHERS = {
    "mifgsm": MIFGSM(epsilon="8/255", num_steps=6),
    "mifgsm l2 targeted": MIFGSM(epsilon="100/255", norm="l2", num_steps=6, targeted=True),
    "pgd dlr": PGD(epsilon="8/255", num_steps=6, loss="dlr"),
    "pgd kl_to_clean": PGD(epsilon="8/255", num_steps=6, loss="kl_to_clean"),
    "embedding": Embedding(epsilon="8/255", num_steps=6),
    "embedding l2": Embedding(epsilon="100/255", norm="l2", num_steps=6),
    "supcon": SupConAttack(epsilon="8/255", num_steps=6, temperature=0.5),
    "transfer": Transfer(source="another", attack=PGD(epsilon="8/255", num_steps=6)),
    "smoothed": SmoothedAttack(attack=PGD(epsilon="8/255", num_steps=6), sigma=0.1),
}
"""Climb something else, or by another way; what they look at is here the same function as for all others."""
WITHOUT_BALL = {
    "spatial": Spatial(num_rotations=3, num_translations=3),
    "spatial random": Spatial(num_random=4, padding="reflect"),
    "corruptions": Corruptions(kind="gaussian_noise", severity=3),
}
"""No norm bounds them; test_spatial.py and test_corruptions.py say which images they may return."""
BOUNDED = ATTACKS | ENSEMBLE | NOISE | OTHERS
EVERY = BOUNDED | WITHOUT_BALL
WITHOUT_A_ROW = {
    "autoattack": "an ensemble: its members are rows",
    "joint": "reads two outputs at once: see test_protocols.py",
    "stored": "reads examples from a folder: see data/test_adversarial_store.py",
    "refreshed": "gives examples of an earlier epoch: see training/test_refreshed_examples.py",
}
"""Attacks that cannot be a row of the contract, and why."""
VARIANTS = {
    "pgd l2 without random start",
    "pgd l2 restarts",
    "pgd targeted restarts",
    "pgd l2 logit_margin targeted",
    "apgd l2 dlr restarts",
    "fab l2 untargeted restarts",
    "mifgsm l2 targeted",
    "embedding l2",
    "deepfool l2",
    "fmn l2",
    "fgsm l1",
    "apgd l1",
    "fab l1",
    "fmn l1",
    "square l1",
    "noise uniform l1",
    "noise gaussian l1",
    "noise salt_and_pepper l1",
}
"""Rows that combine what other rows test one by one; they are tested for the ball, the box and epsilon 0."""


def rows(attacks):
    """Test parameters of some rows."""
    return [pytest.param(attack, id=name) for name, attack in attacks.items()]


gradient_attack = pytest.mark.parametrize("attack", rows(ATTACKS))
every_row = pytest.mark.parametrize("attack", rows(EVERY))
bounded_row = pytest.mark.parametrize("attack", rows(BOUNDED))
every_attack = pytest.mark.parametrize("attack", rows({name: EVERY[name] for name in EVERY if name not in VARIANTS}))

CLASSES = 4
RNG = np.random.default_rng(0)
# A third of the pixels on the edge of the box, so that it binds.
IMAGES = np.clip(RNG.uniform(-0.25, 1.25, (7, 8, 8, 1)), 0, 1).astype("float32")
LABELS = RNG.integers(0, CLASSES, 7)
HIDDEN, OUTPUT = RNG.normal(size=(64, 16)) / 4, RNG.normal(size=(16, CLASSES))


def craft(attack, fn, x, labels, **options):
    """`craft`, with fixed samples for the SupCon attack to contrast with."""
    if attack.name == "supcon":
        samples = np.random.default_rng(7).uniform(0, 1, (8, 8, 8, 1)).astype("float32")
        options["support"] = np.arange(8) % CLASSES, tf.cast(fn(samples), tf.float32)
    return attacks.craft(attack, fn, x, labels, **options)


def smooth(x):
    """A multilayer perceptron in float64: kernels for other batch sizes round elsewhere, and 1e-16 flips no sign."""
    return tf.tanh(tf.reshape(tf.cast(x, tf.float64) - 0.5, [-1, 64]) @ HIDDEN) @ OUTPUT


def aims(attack):
    """The labels to leave, or the classes to reach."""
    return (LABELS + 1) % CLASSES if attack.targeted else LABELS


@functools.cache
def crafted(attack):
    """The adversarial images of the smooth classifier under seed 5, crafted in eager mode once per attack."""
    return craft(attack, smooth, IMAGES, aims(attack), seed=5).numpy()


@functools.cache
def compiled(attack):
    """`craft` of the smooth classifier as one graph for batches of any size, traced once per attack."""
    signature = tf.TensorSpec([None, 8, 8, 1]), tf.TensorSpec([None], tf.int64), tf.TensorSpec([], tf.int32)
    return tf.function(lambda x, labels, seed: craft(attack, smooth, x, labels, seed=seed), signature, autograph=False)


def lengths(delta, norm):
    flat = np.abs(np.asarray(delta, "float64")).reshape(len(delta), -1)
    return np.linalg.norm(flat, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)


@pytest.fixture(scope="module")
def network():
    """small_cnn whose BatchNorm statistics are those of no batch and not the initial ones."""
    network = build_network(
        Network(projection_hidden=8, projection_dim=4, normalization="minus1to1"), (8, 8, 1), CLASSES
    )
    rng = np.random.default_rng(1)
    for variable in network.non_trainable_variables:
        if variable.name in ("moving_mean", "moving_variance"):
            variable.assign(rng.uniform(0.2, 1.5, variable.shape))
    assert sum(variable.name == "moving_variance" for variable in network.non_trainable_variables) >= 2
    return network


@pytest.fixture(scope="module")
def logits(network):
    """The network's logits by a graph, which an attack that runs eagerly calls many times."""
    return tf.function(lambda x: network(x, training=False)["logits"], autograph=False)


def test_every_attack_of_the_vocabulary_has_a_row():
    """An attack that is added to `keras_rcl.vocabulary.attacks` is a row of the contract, or says why it cannot be."""
    named = {attack.name for attack in EVERY.values()}
    assert named.isdisjoint(WITHOUT_A_ROW)
    assert named | {*WITHOUT_A_ROW} == {*vocabulary.ATTACKS}


def test_every_attack_that_runs_has_a_runner():
    runners = {name for name in vocabulary.ATTACKS if name not in ("autoattack", "stored", "refreshed")}
    assert {*RUNNERS} == runners


@pytest.mark.slow_after(4)
@every_row
def test_in_the_ball_and_in_the_box_and_the_network_is_untouched(attack, network, logits):
    """A surrounding tape sees neither the image nor the weights."""
    before = [np.array(variable) for variable in network.variables]
    x = tf.constant(IMAGES)
    with tf.GradientTape() as tape:
        tape.watch(x)
        x_adv = craft(attack, logits, x, aims(attack), seed=5)
        total = tf.reduce_sum(x_adv**2)
    after = [np.array(variable) for variable in network.variables]
    weights = [variable.value for variable in network.trainable_variables]
    image_gradient, *gradients = tape.gradient(total, [x, *weights])
    assert image_gradient is None
    assert all(gradient is None or not np.any(gradient) for gradient in gradients)
    assert [variable.tobytes() for variable in after] == [variable.tobytes() for variable in before]

    x_adv = x_adv.numpy()
    assert x_adv.dtype == np.float32 and x_adv.shape == IMAGES.shape
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    if attack in WITHOUT_BALL.values():
        assert attack.norm is attack.epsilon is attack.threat_model is None
        return
    found = lengths(x_adv.astype("float64") - IMAGES, attack.norm)
    assert found.max() <= attack.epsilon + 1e-6
    assert found.min() > attack.epsilon / 4 or attack in ENSEMBLE.values()


@bounded_row
def test_epsilon_0_returns_the_image(attack):
    assert craft(attack.with_epsilon(0.0), smooth, IMAGES, aims(attack), seed=5).numpy().tobytes() == IMAGES.tobytes()


@pytest.mark.slow_after(2)
@every_attack
def test_neither_order_nor_neighbours_matter(attack):
    few = np.array([5, 2])
    found = compiled(attack)(IMAGES[few], aims(attack)[few], 5)
    np.testing.assert_allclose(found, crafted(attack)[few], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["pgd", "pgd l2"])
def test_neighbours_hardly_matter_to_a_float32_network(logits, name):
    """Float32 kernels of another batch size may flip the sign of a gradient that is all but zero, here and there."""
    attack = ATTACKS[name]
    together = craft(attack, logits, IMAGES, LABELS, seed=5).numpy()
    for i in (0, 4):
        alone = craft(attack, logits, IMAGES[[i]], LABELS[[i]], seed=5).numpy()
        assert np.mean(np.abs(alone[0] - together[i]) > 1e-5) < 0.02


@pytest.mark.slow_after(2)
@every_attack
def test_the_seed_decides(attack):
    first, second = (compiled(attack)(IMAGES, aims(attack), 5).numpy() for _ in range(2))
    assert first.tobytes() == second.tobytes()
    if attack in (ENSEMBLE | WITHOUT_BALL).values() or isinstance(attack, Transfer | SmoothedAttack):
        return
    # After many steps other starts may end in the same corner of the ball; after one step they do not.
    one_step = attack if isinstance(attack, FGSM | Noise) else dataclasses.replace(attack, num_steps=1)
    results = [craft(one_step, smooth, IMAGES, aims(attack), seed=seed).numpy() for seed in (5, 6, (5, 6))]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        differ = np.any(results[i] != results[j], axis=(1, 2, 3))
        assert differ.all() if attack in NOISE.values() or attack.random_start else not differ.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_next_seed_has_other_restarts(norm):
    """Else the spread over seeds would be that of restarts drawn twice."""
    still = PGD(epsilon="8/255", norm=norm, num_steps=1, step_size=1e-12)
    restarted = dataclasses.replace(still, num_restarts=4)
    best = craft(restarted, smooth, IMAGES, LABELS, seed=0).numpy()
    starts = [craft(still, smooth, IMAGES, LABELS, seed=seed).numpy() for seed in range(4)]
    kept_first = np.all(best == starts[0], axis=(1, 2, 3))
    assert not kept_first.all()
    assert not any(np.all(best == start, axis=(1, 2, 3)).any() for start in starts[1:])


@pytest.mark.slow_after(2)
@every_attack
def test_eagerly_and_in_a_graph_alike(attack):
    found = compiled(attack)(IMAGES, aims(attack), 5)
    np.testing.assert_allclose(found, crafted(attack), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["pgd", "pgd l2 restarts"])
def test_xla_draws_the_same_starts(name):
    attack = dataclasses.replace(ATTACKS[name], num_steps=2)
    compiled = tf.function(
        lambda x, labels: craft(attack, smooth, x, labels, seed=5), autograph=False, jit_compile=True
    )
    expected = craft(attack, smooth, IMAGES, LABELS, seed=5)
    np.testing.assert_allclose(compiled(IMAGES, LABELS), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("attack", rows(ENSEMBLE))
def test_no_image_is_made_worse_for_the_attacker(attack):
    """An image that is wrong stays wrong, and the classifier is fooled by more images than before."""
    before = np.argmax(smooth(IMAGES), axis=1)
    labels = np.where(np.arange(7) < 5, before, (before + 1) % CLASSES)
    after = np.argmax(smooth(craft(attack.with_epsilon(0.4), smooth, IMAGES, labels, seed=5)), axis=1)
    assert np.all(after[5:] != labels[5:])
    assert np.sum(after != labels) > 2


@gradient_attack
def test_the_loss_does_not_fall(attack):
    """Cross-entropy or margin of each image before and after, by NumPy; a targeted attack lowers it."""

    def loss(x):
        logits = np.asarray(smooth(x))
        found = []
        for row, label in zip(logits, aims(attack), strict=True):
            if attack.loss == "cross_entropy":
                found.append(np.log(np.exp(row).sum()) - row[label])
            else:
                found.append(max(row[k] for k in range(CLASSES) if k != label) - row[label])
        return np.mean(found)

    gain = loss(crafted(attack)) - loss(IMAGES)
    assert (-gain if attack.targeted else gain) > 0.05


STILL = PGD(epsilon=0.5, num_steps=1, step_size=1e-12)
"""Returns its random starts as they are, so that nothing but the choice among the restarts is seen."""


@pytest.mark.parametrize(
    "targeted, fooling, not_fooling",
    [
        # Label 0. Cross-entropy 0.74 where fooled, ln 3 where not.
        (False, [0.0, 0.1, -20.0], [0.001, 0.0, 0.0]),
        # Class 0 to reach. Cross-entropy 1.03 where reached, 0.74 where not.
        (True, [0.1, 0.0, 0.0], [0.0, 0.1, -20.0]),
    ],
)
def test_restarts_keep_what_fools_before_what_has_the_better_loss(targeted, fooling, not_fooling):
    """The first pixel's half decides; 1 in 2^12 images finds no fooling one among 12 restarts."""
    attack = dataclasses.replace(STILL, num_restarts=12, targeted=targeted)
    images = np.random.default_rng(0).uniform(0.49, 0.51, (9, 2, 2, 1)).astype("float32")

    def halves(x):
        return tf.where(x[:, 0, 0] > 0.5, fooling, not_fooling) + 0.0 * x[:, 0, 0]

    found = craft(attack, halves, images, np.zeros(9, int), seed=1).numpy()
    assert np.all(found[:, 0, 0, 0] > 0.5)


@pytest.mark.parametrize("targeted", [False, True])
def test_restarts_keep_the_highest_loss_among_equals(targeted):
    """With two classes and no image fooled: the mean pixel, whose loss is monotone, of the best start of all."""

    def brightness(x):
        """A logit of class 0 that falls with the mean pixel and never below that of class 1."""
        return tf.stack([10.0 - tf.reduce_mean(x, axis=(1, 2, 3)), tf.zeros_like(x[:, 0, 0, 0])], axis=1)

    images = np.random.default_rng(0).uniform(0.4, 0.6, (9, 2, 2, 1)).astype("float32")
    labels = np.full(9, int(targeted))
    means = []
    for restarts in range(1, 6):
        attack = dataclasses.replace(STILL, num_restarts=restarts, targeted=targeted)
        means.append(craft(attack, brightness, images, labels, seed=1).numpy().mean(axis=(1, 2, 3)))
    assert np.all(np.diff(means, axis=0) >= 0)
    assert np.all(means[-1] > np.max(images, axis=(1, 2, 3)) - 0.1) and np.mean(means[-1] > means[0]) > 0.5


@pytest.mark.parametrize("field", ["num_steps", "num_restarts", "eot_iter"])
def test_the_graph_does_not_grow(field):
    def operations(value):
        attack = dataclasses.replace(PGD(num_steps=3, num_restarts=3), **{field: value})
        graph = tf.function(lambda x, labels: craft(attack, smooth, x, labels), autograph=False)
        definition = graph.get_concrete_function(IMAGES, LABELS).graph.as_graph_def()
        return len(definition.node) + sum(len(function.node_def) for function in definition.library.function)

    few = operations(2)
    assert few > 50
    assert operations(20) == operations(200) == few


def loops(concrete) -> int:
    """How many loops a graph runs: those of a function as often as it is called."""
    definition = concrete.graph.as_graph_def()
    functions = {function.signature.name: function.node_def for function in definition.library.function}

    def within(nodes):
        called = (value.func.name for node in nodes for value in node.attr.values() if value.func.name in functions)
        return sum(node.op in ("While", "StatelessWhile") for node in nodes) + sum(within(functions[f]) for f in called)

    return within(definition.node)


@pytest.mark.parametrize("attack", [ATTACKS["pgd"], ENSEMBLE["apgd"], ENSEMBLE["fab"], ENSEMBLE["square"]])
def test_a_batch_in_two_halves_is_attacked_as_in_small_ones(attack):
    """32 images are attacked in two halves side by side; in batches of 8 they are not."""
    rng = np.random.default_rng(5)
    kernel = rng.normal(size=(48, 5))
    x, labels = rng.random((32, 4, 4, 3), np.float32), rng.integers(0, 5, 32).astype("int32")

    def linear(images):  # in float64, so that rounding is not what is tested
        return tf.reshape(tf.cast(images, tf.float64), [-1, 48]) @ kernel

    @tf.function(autograph=False)
    def run(images, of):
        return attacks.craft(attack, linear, images, of, seed=3)

    whole = run(tf.constant(x), tf.constant(labels))
    apart = [run(tf.constant(x[i : i + 8]), tf.constant(labels[i : i + 8])) for i in range(0, 32, 8)]
    assert loops(run.get_concrete_function(x, labels)) > loops(run.get_concrete_function(x[:8], labels[:8]))
    np.testing.assert_allclose(whole, np.concatenate(apart), atol=1e-6)


@pytest.mark.parametrize("traced", [False, True])
def test_an_operation_without_a_gradient_is_named(traced):
    def shrunk(x):
        return tf.reshape(tf.image.resize(x, (2, 2), method="area"), [-1, CLASSES])

    run = functools.partial(craft, ATTACKS["fgsm"], shrunk)
    with pytest.raises(InvalidInputError, match=r"FGSM.* ResizeArea has none; hint: use square or rays"):
        (tf.function(run, autograph=False) if traced else run)(IMAGES, LABELS)
    assert craft(ENSEMBLE["square"], shrunk, IMAGES, LABELS).shape == IMAGES.shape
