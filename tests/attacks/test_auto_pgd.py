"""APGD against the paper's algorithm in plain NumPy, closed forms, and its losses against loops."""

import numpy as np
import pytest
import tensorflow as tf
from reference import attacks as reference

from keras_rcl.attacks import craft
from keras_rcl.attacks.norms import boundary_start
from keras_rcl.attacks.surrogates import dlr, dlr_targeted, top_wrong_class
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import PGD, AutoAttack, AutoPGD, describe, parse_attack

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0.2, 0.8, (6, 4, 4, 1)).astype("float32")
HIDDEN, OUTPUT = RNG.normal(size=(16, 12)), RNG.normal(size=(12, 5))


def smooth(x):
    return tf.tanh(tf.reshape(tf.cast(x, tf.float64) - 0.5, [-1, 16]) @ HIDDEN) @ OUTPUT


def test_checkpoints_of_the_reference_are_the_papers():
    # By hand for 100 steps: 22, then windows of 19, 16, 13, 10, 7, 6.
    assert reference.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.05), ("l2", 0.2)])
def test_equals_the_papers_algorithm(norm, epsilon, monkeypatch):
    labels = np.argmax(smooth(IMAGES), axis=1)
    # Nothing fools: the label's logit is raised, so that the whole schedule runs.
    safe = tf.one_hot(labels, 5, on_value=tf.constant(9.0, tf.float64), off_value=tf.constant(0.0, tf.float64))
    starts = []

    def spied_start(x, *arguments):
        starts.append(boundary_start(x, *arguments))
        return starts[-1]

    monkeypatch.setattr("keras_rcl.attacks.auto_pgd.boundary_start", spied_start)
    attack = AutoPGD(norm=norm, epsilon=epsilon, num_steps=50, loss="cross_entropy")
    found = craft(attack, lambda x: smooth(x) + safe, IMAGES, labels).numpy()
    for index, label in enumerate(labels):

        def loss_and_gradient(x, index=index, label=label):
            value = tf.constant(x[None], tf.float64)
            with tf.GradientTape() as tape:
                tape.watch(value)
                loss = -tf.nn.log_softmax(smooth(value) + safe[index])[0, label]
            return float(loss), tape.gradient(loss, value).numpy()[0]

        x = IMAGES[index].astype("float64")
        start = starts[0][index].numpy().astype("float64")
        best, best_loss, sizes = reference.auto_pgd(loss_and_gradient, x, start, epsilon, norm, 50)
        assert len(set(sizes)) > 2, "the schedule is not exercised"
        # float32 against float64: on a flat top the place agrees to about the root of what the loss agrees to.
        np.testing.assert_allclose(found[index], best, atol=0.005 * epsilon)
        assert loss_and_gradient(found[index].astype("float64"))[0] == pytest.approx(best_loss, rel=1e-4)


@pytest.mark.parametrize("loss", ["cross_entropy", "dlr", "dlr_targeted"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fools_a_linear_classifier_exactly_where_that_is_possible(norm, loss):
    rng = np.random.default_rng(3)
    classes = 2 if loss == "cross_entropy" else 5  # of several classes, cross-entropy does not go for the nearest
    weights = rng.normal(size=(16, classes))
    images = rng.uniform(0.4, 0.6, (60, 4, 4, 1)).astype("float32")
    scores = (images - 0.5).reshape(60, 16) @ weights
    labels = scores.argmax(axis=1)
    # The distance to the nearest wrong class: margin over the dual norm of the difference of weights.
    order = {"linf": 1, "l2": 2}[norm]
    distances = np.array(
        [
            min(
                (scores[n, y] - scores[n, j]) / np.linalg.norm(weights[:, y] - weights[:, j], ord=order)
                for j in range(classes)
                if j != y
            )
            for n, y in enumerate(labels)
        ]
    )
    epsilon = float(np.median(distances))
    attack = AutoPGD(norm=norm, epsilon=epsilon, num_steps=30, loss=loss)
    x_adv = craft(attack, lambda x: tf.reshape(x - 0.5, [-1, 16]) @ weights.astype("float32"), images, labels).numpy()
    fooled = ((x_adv - 0.5).reshape(60, 16) @ weights).argmax(axis=1) != labels
    clear = np.abs(distances - epsilon) > 0.01 * epsilon
    np.testing.assert_array_equal(fooled[clear], (distances < epsilon)[clear])


def test_finds_at_least_what_pgd_finds():
    labels = np.argmax(smooth(IMAGES), axis=1)

    def mean_loss(attack):
        logits = smooth(craft(attack, lambda x: smooth(x) / 100, IMAGES, labels))
        return float(tf.reduce_mean(-tf.gather(tf.nn.log_softmax(logits), labels, batch_dims=1)))

    tiny = 1e-3  # a ball in which nothing fools
    assert mean_loss(AutoPGD(epsilon=tiny, num_steps=40)) >= mean_loss(PGD(epsilon=tiny, num_steps=40)) - 1e-4


def test_dlr_against_loops():
    rng = np.random.default_rng(1)
    logits, labels = tf.constant(rng.normal(size=(20, 6))), rng.integers(0, 6, 20)
    targets = (labels + rng.integers(1, 6, 20)) % 6
    for n in range(20):
        z, y, t = logits[n].numpy(), labels[n], targets[n]
        descending = sorted(z, reverse=True)
        wrong = max(z[j] for j in range(6) if j != y)
        expected = (wrong - z[y]) / (descending[0] - descending[2])
        expected_t = (z[t] - z[y]) / (descending[0] - (descending[2] + descending[3]) / 2)
        one = (labels[n : n + 1], logits[n : n + 1])
        assert float(dlr(*one)[0]) == pytest.approx(expected, rel=1e-9)
        assert float(dlr_targeted(*one, targets[n : n + 1])[0]) == pytest.approx(expected_t, rel=1e-9)
    np.testing.assert_allclose(dlr(labels, 7 * logits + 3), dlr(labels, logits), rtol=1e-9)


def test_top_wrong_class_class():
    logits = tf.constant([[3.0, 1.0, 2.0, 0.0], [0.0, 5.0, 1.0, 1.0]])
    assert [top_wrong_class([0, 2], logits, rank).numpy().tolist() for rank in range(3)] == [[2, 1], [1, 3], [3, 0]]


def test_few_classes_are_refused_or_fitted():
    assert AutoPGD(loss="dlr_targeted").for_classes(6).num_targets == 5
    assert AutoPGD(loss="dlr_targeted").for_classes(100).num_targets == 9
    refused = [(AutoPGD(loss="dlr_targeted"), 3), (AutoPGD(loss="dlr"), 2)]
    refused += [(AutoAttack(), 3), (AutoAttack(version="plus"), 3), (AutoAttack(version="rand"), 2)]
    for attack, classes in refused:
        with pytest.raises(
            InvalidInputError, match=f"needs at least {classes + 1} classes and the model has {classes}"
        ):
            attack.for_classes(classes)
        assert all(member.for_classes(classes + 1) for member in attack.for_classes(classes + 1).members)


@pytest.mark.parametrize("version", ["standard", "plus"])
def test_as_many_targets_as_there_are_wrong_classes(version):
    members = [member.for_classes(5) for member in AutoAttack(version=version).members]
    found = {member.label: member.num_rounds // member.num_restarts for member in members}
    assert found.pop("APGD-T") == 4
    assert found.pop("FAB-Tx5" if version == "plus" else "FAB-T") == 4
    assert set(found.values()) == {1}


@pytest.mark.parametrize(
    "version, members",
    [
        (None, [("APGD-CE", 100, 1), ("APGD-T", 100, 9), ("FAB-T", 100, 9), ("Square-5000", 5000, 1)]),
        (
            "plus",
            [
                ("APGD-CEx5", 100, 5),
                ("APGD-DLRx5", 100, 5),
                ("FABx5", 100, 5),
                ("Square-5000", 5000, 1),
                ("APGD-T", 100, 9),
                ("FAB-Tx5", 100, 45),
            ],
        ),
        ("rand", [("APGD-CE EOT-20", 100, 1), ("APGD-DLR EOT-20", 100, 1)]),
    ],
)
def test_the_ensembles_have_the_published_budgets(version, members):
    """Croce and Hein's `set_version`: members in their order, steps or queries, restarts times targets."""
    attack = parse_attack("autoattack:epsilon=8/255" + (f",version={version}" if version else ""))
    assert describe(attack) == f"AutoAttack{f' {version}' if version else ''} linf 8/255"
    assert [
        (member.label, getattr(member, member.steps_field), member.num_rounds) for member in attack.members
    ] == members
    assert {(member.norm, member.epsilon) for member in attack.with_epsilon(0.1).members} == {("linf", 0.1)}
    assert {getattr(member, "eot_iter", 1) for member in attack.members} == ({20} if version == "rand" else {1})
