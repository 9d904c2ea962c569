"""Certification of a small trained network: against AutoAttack, hand arithmetic, and itself interrupted."""

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.certification import Certification, Certifier
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.storage.journal import Journal
from keras_rcl.vocabulary.attacks import DDN, FMN, AutoAttack, AutoPGD, RayS

EPSILONS = (8 / 255, 24 / 255)
QUICK = (AutoPGD(num_steps=10),)
COUNT = 20
LONG = 1e5
"""Seconds; no verdict hangs on how fast this machine is."""


@pytest.fixture(scope="module")
def network():
    """Two hidden layers on digits, trained for a moment."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(12, activation="relu"), keras.layers.Dense(12, activation="relu")]
    network = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), *layers, keras.layers.Dense(10)])
    network.compile(
        keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    images, labels = digits(1000)
    network.fit(images, labels, epochs=5, batch_size=100, verbose=0)
    return network


def digits(count):
    found = load_digits()
    return (found.images[-count:, ..., None] / 16).astype("float32"), found.target[-count:].astype("int32")


@pytest.fixture(scope="module")
def certifier(network):
    return Certifier(network, EPSILONS, attacks=QUICK, timeout=LONG)


@pytest.fixture(scope="module")
def found(certifier):
    return certifier(*digits(COUNT))


def with_graphs_of(traced, certifier):
    """A certifier of the same network, attacks and dtype, with the graphs of one that is traced."""
    vars(certifier).update({name: vars(traced)[name] for name in ("_bounds", "_branch_and_bound", "_evaluators")})
    return certifier


def logits_of(network, images):
    """By hand, in float64."""
    x = images.reshape(len(images), -1).astype("float64")
    *hidden, last = (layer for layer in network.layers if layer.weights)
    for layer in hidden:
        x = np.maximum(x @ layer.kernel.numpy().astype("float64") + layer.bias.numpy(), 0)
    return x @ last.kernel.numpy().astype("float64") + last.bias.numpy()


@pytest.mark.slow
def test_every_image_is_decided(network, found):
    images, labels = digits(COUNT)
    statuses = found.statuses
    right = logits_of(network, images).argmax(axis=1) == labels
    np.testing.assert_array_equal(statuses != "misclassified", np.tile(right, (2, 1)))
    assert set(statuses.ravel()) <= {"misclassified", "unsafe", "safe-incomplete", "safe"}
    assert {"unsafe", "safe-incomplete", "safe"} <= set(statuses.ravel()), "all are seen at work"
    verified = np.isin(statuses, ("safe", "safe-incomplete"))
    assert np.all(verified[0] | ~verified[1]), "what is safe in a ball is safe in a smaller one"
    assert np.all(found.margins[verified] > 0)
    by = found.decided_by
    assert np.all((by == "branch-and-bound") >= (statuses == "safe")) and np.all((by == "") == ~np.tile(right, (2, 1)))


@pytest.mark.slow
def test_counterexamples_are_true_ones(network, found):
    images, labels = digits(COUNT)
    assert set(found.counterexamples) == set(zip(*np.nonzero(found.statuses == "unsafe"), strict=True))
    for (number, index), image in found.counterexamples.items():
        assert image.dtype == np.float32 and 0 <= image.min() and image.max() <= 1
        change = np.abs(image.astype("float64") - images[index].astype("float64"))
        assert change.max() <= EPSILONS[number] + 1e-15
        assert logits_of(network, image[None]).argmax() != labels[index]


@pytest.mark.slow
def test_no_verified_image_is_broken_by_autoattack(network, found):
    images, labels = digits(COUNT)
    attacks = [AutoAttack(epsilon=epsilon) for epsilon in EPSILONS]
    survived = Evaluator(lambda x: network(x, training=False), attacks, batch_size=COUNT)(images, labels).survived
    verified = np.isin(found.statuses, ("safe", "safe-incomplete"))
    assert not np.any(verified & ~survived)
    assert verified.any() and np.any(~survived & (found.statuses == "unsafe"))


@pytest.mark.slow
@pytest.mark.parametrize("norm, epsilon", [("l2", 0.4), ("l1", 1.0)])
def test_in_other_norms_no_verified_image_is_broken_by_attacks_of_the_norm(network, norm, epsilon):
    """`benchmarks.bounds_norms` adds AutoAttack and branch and bound."""
    images, labels = digits(COUNT)
    found = Certifier(network, (epsilon,), norm=norm, method="crown", attacks=())(images, labels)
    words = [FMN(norm=norm, epsilon=epsilon, num_steps=50), AutoPGD(norm=norm, epsilon=epsilon, num_steps=20)]
    words += [DDN(epsilon=epsilon, num_steps=50)] * (norm == "l2")
    survival = Evaluator(lambda x: network(x, training=False), words, batch_size=COUNT)(images, labels)
    survived, verified = survival.survived.all(axis=0), np.isin(found.statuses[0], ("safe", "safe-incomplete"))
    assert not np.any(verified & ~survived)
    assert verified.any() and np.any(~survived & survival.clean) and found.rows()[0]["norm"] == norm


@pytest.mark.slow
def test_without_attack_and_in_float64_the_same_is_true(network, found):
    other = Certifier(network, EPSILONS, attacks=(), timeout=LONG, float64=True)(*digits(COUNT))
    verified = [np.isin(one.statuses, ("safe", "safe-incomplete")) for one in (found, other)]
    np.testing.assert_array_equal(*verified)
    np.testing.assert_array_equal(found.statuses == "unsafe", other.statuses == "unsafe")
    assert set(other.decided_by[other.statuses == "unsafe"]) == {"branch-and-bound"}


@pytest.mark.slow
def test_bounds_alone_leave_some_unknown(network, found):
    images, labels = digits(COUNT)
    bounds = Certifier(network, EPSILONS, attacks=(), method="crown")(images, labels)
    assert set(bounds.statuses.ravel()) == {"misclassified", "safe-incomplete", "unknown"}
    assert set(bounds.decided_by.ravel()) <= {"", "ibp", "crown-ibp", "crown"}
    verified = [np.isin(one.statuses, ("safe", "safe-incomplete")) for one in (bounds, found)]
    assert np.all(verified[0] <= verified[1]) and verified[0].sum() < verified[1].sum()


@pytest.mark.slow
def test_at_most_count_images_that_survive_the_attack_are_bounded(network, certifier, found):
    three = Certifier(network, EPSILONS, attacks=QUICK, timeout=LONG, count=3)
    counted = with_graphs_of(certifier, three)(*digits(COUNT))
    for some, every, by in zip(counted.statuses, found.statuses, found.decided_by, strict=True):
        standing = np.flatnonzero((by != "attack") & (every != "misclassified"))
        assert len(standing) > 3
        np.testing.assert_array_equal(some[standing[:3]], every[standing[:3]])
        assert set(some[standing[3:]]) == {"unknown"}
        np.testing.assert_array_equal(np.delete(some, standing), np.delete(every, standing))


@pytest.mark.slow
def test_without_time_what_bounds_leave_open_is_a_timeout(network, certifier, found):
    without = Certifier(network, EPSILONS, attacks=QUICK, timeout=0.0)
    hasty = with_graphs_of(certifier, without)(*digits(COUNT))
    out = hasty.statuses == "timeout"
    assert out[1].any() and np.all(hasty.margins[out] <= 0)
    np.testing.assert_array_equal(hasty.statuses[~out], found.statuses[~out])


def test_a_supposed_counterexample_is_moved_into_ball_and_box_or_dropped():
    """The logits are the two pixels."""
    pixels = keras.Input((1, 2, 1))
    network = keras.Model(pixels, keras.layers.Dense(2)(keras.layers.Flatten()(pixels)))
    network.layers[-1].set_weights([np.eye(2), np.zeros(2)])
    certifier = Certifier(network, EPSILONS, attacks=(), method="ibp")
    image, beyond = (np.array(values, "float32").reshape(1, 2, 1) for values in ((0.7, 0.1), (-3.0, 5.0)))
    assert certifier.counterexample(image, beyond, 0, 0.1) is None, "0.6 and 0.2 at the corner of the ball"
    for epsilon, corner in ((0.4, (0.3, 0.5)), (0.95, (0.0, 1.0))):
        moved = certifier.counterexample(image, beyond, 0, epsilon)
        assert moved.dtype == np.float32 and 0 <= moved.min() and moved.max() <= 1
        assert np.abs(moved.astype("float64") - image).max() <= epsilon + 1e-16
        np.testing.assert_allclose(moved.ravel(), corner, atol=1e-7)


def two_pixels():
    pixels = keras.Input((1, 2, 1))
    network = keras.Model(pixels, keras.layers.Dense(2)(keras.layers.Flatten()(pixels)))
    network.layers[-1].set_weights([np.eye(2), np.zeros(2)])
    return network


@pytest.mark.parametrize("norm, order, nearest", [("l2", 2, (0.4, 0.5)), ("l1", 1, (0.7 - 15 / 70, 0.1 + 2 / 7))])
def test_a_supposed_counterexample_is_moved_into_the_ball_of_its_norm(norm, order, nearest):
    certifier = Certifier(two_pixels(), (0.5,), norm=norm, attacks=(), method="ibp")
    image, beyond = (np.array(values, "float32").reshape(1, 2, 1) for values in ((0.7, 0.1), (0.4, 0.5)))
    moved = certifier.counterexample(image, beyond, 0, 0.5)
    if norm == "l1":
        assert moved is None, "0.486 and 0.386 at the distance 0.5"
        moved = certifier.counterexample(image, beyond, 1, 0.5)
    change = moved.astype("float64").ravel() - image.astype("float64").ravel()
    assert moved.dtype == np.float32 and np.linalg.norm(change, order) <= 0.5
    np.testing.assert_allclose(moved.ravel(), nearest, atol=1e-6)


def test_radii_and_attacks_that_do_not_fit_the_norm_are_refused():
    network = two_pixels()
    for norm, epsilon, message in (
        ("l1", 12 / 255, "epsilon 12/255 in l1 is less than the range of one pixel; hint: .* such as epsilon=12"),
        ("l2", 3.0, "epsilon 3 in l2 is larger than 1.41421, the largest distance of two 1x2x1 images"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            Certifier(network, [epsilon], norm=norm, attacks=(), method="ibp")
    with pytest.raises(InvalidInputError, match="RayS.* does not attack in l2; hint: "):
        Certifier(network, [0.1], norm="l2", attacks=(RayS(),), method="ibp")
    certifiers = [Certifier(network, [0.1], norm=norm, attacks=(), method="ibp") for norm in ("linf", "l2", "l2")]
    linf, *l2 = (one.fingerprint(np.zeros((1, 1, 2, 1), "float32"), np.zeros(1, int)) for one in certifiers)
    assert l2[0] == l2[1] and l2[0].diff(linf) == ["norm"], "so that only the same norm is resumed"


@pytest.mark.slow
def test_interrupted_and_resumed_it_returns_the_same(certifier, found, tmp_path, monkeypatch):
    images, labels = digits(COUNT)
    whole, done = Certifier._branch, []

    def breaking(*arguments):
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    def journal():
        return Journal(tmp_path / "journal", certifier.fingerprint(images, labels))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), journal() as kept:
        patch.setattr(Certifier, "_branch", breaking)
        certifier(images, labels, journal=kept)
    with journal() as kept:
        assert len(kept) > 3
        resumed = certifier(images, labels, journal=kept)
        kept.discard()
    np.testing.assert_array_equal(resumed.statuses, found.statuses)
    np.testing.assert_array_equal(resumed.decided_by, found.decided_by)
    assert resumed.counterexamples.keys() == found.counterexamples.keys()
    for key, image in resumed.counterexamples.items():
        np.testing.assert_array_equal(image, found.counterexamples[key])


def test_rows_by_hand():
    statuses = np.array([["misclassified", "unsafe", "safe", "safe-incomplete", "timeout", "unknown", "safe", "safe"]])
    labels = np.arange(8)
    found = Certification(
        epsilons=(2 / 255,),
        labels=labels,
        clean_predictions=np.where(labels == 0, 9, labels),
        statuses=statuses,
        decided_by=np.full((1, 8), ""),
        margins=np.zeros((1, 8)),
        seconds=np.full((1, 8), 0.5),
        counterexamples={},
    )
    (row,) = found.rows()
    assert (row["clean_accuracy"], row["attacked_accuracy"], row["verified_accuracy"]) == (7 / 8, 6 / 8, 4 / 8)
    assert row["counts"] == {
        "misclassified": 1,
        "unsafe": 1,
        "safe-incomplete": 1,
        "safe": 3,
        "timeout": 1,
        "unknown": 1,
    }
    assert row["seconds"] == 4.0 and row["epsilon"] == 2 / 255
    assert str(found).splitlines() == [
        "8 images, clean accuracy 87.5%",
        "linf 2/255: robust accuracy at least 50.0%, at most 75.0% "
        "(1 misclassified, 1 unsafe, 1 safe-incomplete, 3 safe, 1 timeout, 1 unknown)",
    ]
    assert repr(found) == "Certification(linf 2/255, images=8, verified_accuracy=0.5)"


def test_an_unknown_method_and_an_unsupported_layer_are_refused(network):
    with pytest.raises(InvalidInputError, match="unknown method 'milp'; choose from ibp, .*branch-and-bound"):
        Certifier(network, EPSILONS, method="milp")
    image = keras.Input((8, 8, 1))
    other = keras.Model(image, keras.layers.Dense(2)(keras.layers.Softmax(name="odd")(keras.layers.Flatten()(image))))
    with pytest.raises(InvalidInputError, match="layer odd .Softmax. has no bounds"):
        Certifier(other, EPSILONS)
