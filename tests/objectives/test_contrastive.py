"""The contrastive objectives against the papers' loops, and the properties that the equations promise."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import objectives as reference

from keras_rcl.errors import InvalidInputError
from keras_rcl.objectives import (
    BoostedCrossEntropy,
    CrossEntropy,
    EuclideanSupCon,
    MarginContrastive,
    PrototypeContrastive,
    SupervisedContrastive,
    collapse_value,
    euclidean_supcon,
    has_positive,
    margin_contrastive,
    mean_over_anchors,
    supervised_contrastive,
)

TEMPERATURES = (0.01, 0.07, 0.1, 1.0)
quick = settings(max_examples=15)


def unit(rng, *shape):
    """Float32 rows of unit length."""
    z = rng.normal(size=shape)
    return (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype("float32")


@st.composite
def batches(draw):
    """Labels [M] and unit projections [M, D]: from a single class to one class per anchor, and with equal rows."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_anchors = draw(st.integers(1, 14))
    labels = rng.integers(0, draw(st.integers(1, num_anchors)), num_anchors)
    projection = unit(rng, num_anchors, draw(st.sampled_from((1, 3, 16))))
    duplicated = draw(st.integers(0, num_anchors - 1))
    projection[:duplicated] = projection[duplicated]
    return labels, projection


def close(actual, expected):
    np.testing.assert_allclose(np.array(actual), expected, rtol=1e-6, atol=1e-6)


def gradient(loss, projection):
    z = tf.constant(projection)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(z)
    return tape.gradient(value, z).numpy()


@quick
@given(batches(), st.sampled_from(TEMPERATURES))
def test_supcon_is_the_papers_loop(batch, temperature):
    labels, projection = batch
    values = supervised_contrastive(labels, projection, temperature=temperature)
    close(values, reference.supcon(labels, projection, temperature))
    close(mean_over_anchors(values, labels), reference.supcon_mean(labels, projection, temperature))


@quick
@given(batches(), st.booleans())
def test_the_class_takes_the_mean_over_the_anchors_that_it_names(batch, of_all):
    labels, projection = batch
    loss = SupervisedContrastive(0.1, anchors="all" if of_all else "with_positives")
    loop = reference.supcon_mean_of_all if of_all else reference.supcon_mean
    close(loss(labels, projection), loop(labels, projection, 0.1))
    assert SupervisedContrastive.from_config(loss.get_config()).anchors == loss.anchors


def test_the_two_means_differ_by_the_share_of_anchors_with_positives():
    """At 128 images of 100 classes a share 1 - 0.99^127 = 0.721 of the anchors has positives: a factor of 1.39."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(40):
        labels, projection = rng.integers(0, 100, 128), unit(rng, 128, 8)
        values = [SupervisedContrastive(0.1, anchors=name)(labels, projection) for name in ("with_positives", "all")]
        ratios.append(float(values[0] / values[1]))
    assert np.mean(ratios) == pytest.approx(1 / (1 - 0.99**127), abs=0.02)


@quick
@given(batches(), st.sampled_from(("ignored", "subtracted")), st.floats(0.1, 30))
def test_euclidean_supcon_is_the_papers_loop(batch, negatives, length):
    """Unit rows of another length, equal ones among them; float32 squares leave about 3e-4 of a length between them."""
    labels, embedding = batch
    embedding = (length * embedding).astype("float32")
    expected = reference.euclidean_supcon(labels, embedding, float(negatives == "subtracted"))
    actual = euclidean_supcon(labels, embedding, negatives=negatives)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3 * length * len(labels))
    assert np.isfinite(gradient(lambda z: tf.reduce_sum(euclidean_supcon(labels, z)), embedding)).all()


def test_euclidean_supcon_has_the_gradient_of_its_loop_and_0_at_equal_rows():
    rng = np.random.default_rng(1)
    labels, embedding = np.array([0, 0, 1, 1, 2]), rng.normal(size=(5, 3)).astype("float32")
    expected = np.zeros_like(embedding, "float64")
    for place in np.ndindex(embedding.shape):
        step = np.zeros_like(expected)
        step[place] = 1e-6
        up, down = (reference.euclidean_supcon(labels, embedding + sign * step, 1.0).sum() for sign in (1, -1))
        expected[place] = (up - down) / 2e-6
    loss = EuclideanSupCon(negatives="subtracted", reduction="sum")
    np.testing.assert_allclose(gradient(lambda z: loss(labels, z), embedding), expected, rtol=1e-4, atol=1e-4)
    equal = np.ones((4, 3), "float32")
    assert not gradient(lambda z: EuclideanSupCon()(np.zeros(4, int), z), equal).any()
    assert EuclideanSupCon.from_config(loss.get_config()).negatives == "subtracted"
    with pytest.raises(InvalidInputError, match="negatives 'pushed' is unknown; hint: choose one of ignored"):
        EuclideanSupCon(negatives="pushed")


@quick
@given(batches(), st.sampled_from(((0.5, 0.1), (0.9, -0.3), (1.0, 0.0))))
def test_margin_is_the_papers_loop(batch, margins):
    labels, projection = batch
    values = margin_contrastive(labels, projection, positive_margin=margins[0], negative_margin=margins[1])
    close(values, reference.margin(labels, projection, *margins))


@quick
@given(batches(), st.randoms(use_true_random=False))
def test_order_of_the_batch_does_not_matter(batch, random):
    labels, projection = batch
    order = list(range(len(labels)))
    random.shuffle(order)
    for objective in (lambda y, z: supervised_contrastive(y, z, temperature=0.1), margin_contrastive):
        np.testing.assert_allclose(
            np.array(objective(labels, projection))[order], objective(labels[order], projection[order]), atol=1e-5
        )


@quick
@given(batches(), st.sampled_from(TEMPERATURES))
def test_gradients_are_finite(batch, temperature):
    labels, projection = batch
    for dtype in ("float32", "float16"):
        z = projection.astype(dtype)
        supcon = gradient(lambda z: tf.reduce_sum(supervised_contrastive(labels, z, temperature=temperature)), z)
        margin = gradient(lambda z: tf.reduce_sum(margin_contrastive(labels, z)), z)
        assert supcon.dtype == margin.dtype == dtype
        assert np.isfinite(supcon).all() and np.isfinite(margin).all()


@pytest.mark.parametrize("num_anchors", [2, 3, 50])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equal_embeddings_have_the_collapse_value(num_anchors, temperature):
    projection = np.tile(unit(np.random.default_rng(0), 1, 8), (num_anchors, 1))
    values = supervised_contrastive(np.zeros(num_anchors, int), projection, temperature=temperature)
    np.testing.assert_allclose(values, math.log(num_anchors - 1), rtol=1e-6)
    assert collapse_value(num_anchors) == math.log(num_anchors - 1)


@pytest.mark.parametrize("num_anchors", [1, 2, 7])
def test_batch_without_any_positive_is_zero_with_zero_gradient(num_anchors):
    labels, projection = np.arange(num_anchors), unit(np.random.default_rng(1), num_anchors, 4)
    slope = gradient(
        lambda z: mean_over_anchors(supervised_contrastive(labels, z, temperature=0.07), labels), projection
    )
    assert not slope.any()
    loss = SupervisedContrastive(temperature=0.07)
    assert float(loss(labels, projection)) == 0.0
    assert not gradient(lambda z: loss(labels, z), projection).any()
    assert not np.array(has_positive(labels)).any()


def test_perfectly_separated_batch_is_the_best_there_is():
    """Two classes at opposite poles: the loss of each anchor is ln(|P|) in the limit of a low temperature."""
    labels = np.array([0, 0, 0, 1, 1, 1])
    projection = np.where(labels[:, None] == 0, 1.0, -1.0).astype("float32")
    np.testing.assert_allclose(supervised_contrastive(labels, projection, temperature=0.01), math.log(2), rtol=1e-6)
    np.testing.assert_array_equal(margin_contrastive(labels, projection), 0.0)


def test_anchor_without_positive_leaves_supcon_and_stays_in_margin():
    labels, projection = np.array([0, 0, 1]), np.ones((3, 1), "float32")
    np.testing.assert_array_equal(has_positive(labels), [True, True, False])
    supcon = supervised_contrastive(labels, projection, temperature=1.0)
    close(supcon, [math.log(2), math.log(2), 0.0])
    close(mean_over_anchors(supcon, labels), math.log(2))
    close(margin_contrastive(labels, projection), [0.9, 0.9, 0.9])


def test_prototype_contrastive_has_the_gradient_of_its_loop():
    rng = np.random.default_rng(4)
    labels, projection = np.array([0, 0, 1, 1, 1, 2]), unit(rng, 6, 3)
    expected = np.zeros_like(projection, "float64")
    for place in np.ndindex(projection.shape):
        step = np.zeros_like(expected)
        step[place] = 1e-6
        up, down = (reference.prototype_contrastive(labels, projection + way * step, 0.3).sum() for way in (1, -1))
        expected[place] = (up - down) / 2e-6
    loss = PrototypeContrastive(0.3, reduction="sum")
    np.testing.assert_allclose(gradient(lambda z: loss(labels, z), projection), expected, rtol=1e-3, atol=1e-4)
    detached = gradient(lambda z: PrototypeContrastive(0.3, detached=True, reduction="sum")(labels, z), projection)
    assert not detached[5].any()  # a class of one row: only the gradient through the means reaches it
    assert np.abs(expected[5]).max() > 1e-3 and np.abs(detached[:5]).max() > 1e-3


def test_half_precision_projection_is_computed_in_float32():
    rng = np.random.default_rng(2)
    labels, projection = rng.integers(0, 3, 12), unit(rng, 12, 8).astype("float16")
    values = supervised_contrastive(labels, projection, temperature=0.01)
    assert values.dtype == margin_contrastive(labels, projection).dtype == "float32"
    close(values, reference.supcon(labels, projection, 0.01))


@pytest.mark.parametrize("labels", [np.array([0, 1, 0, 1, 2], dtype) for dtype in ("int32", "int64", "uint8")])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("num_views", [None, 1, 2, 3])
def test_loss_classes_take_views_and_equal_the_functions(labels, column, num_views):
    shape = (5, 6) if num_views is None else (5, num_views, 6)
    projection = unit(np.random.default_rng(3), *shape)
    y_true = labels[:, None] if column else labels
    stacked, repeated = projection.reshape(-1, 6), np.repeat(labels, num_views or 1)
    supcon = reference.supcon(repeated, stacked, 0.1)
    margin = reference.margin(repeated, stacked, 0.5, 0.1)
    close(SupervisedContrastive(0.1)(y_true, projection), reference.supcon_mean(repeated, stacked, 0.1))
    close(SupervisedContrastive(0.1, reduction="sum")(y_true, projection), supcon.sum())
    close(MarginContrastive()(y_true, projection), margin.mean())
    close(MarginContrastive(reduction="sum")(y_true, projection), margin.sum())
    close(SupervisedContrastive(0.1, reduction=None)(y_true, projection), supcon.reshape(5, -1).mean(axis=1))


@pytest.mark.parametrize(
    "loss",
    [
        SupervisedContrastive(0.2, "sum", "one"),
        MarginContrastive(0.4, 0.2, "sum", "two"),
        PrototypeContrastive(0.2, True, "sum", "three"),
    ],
)
def test_loss_classes_survive_serialisation(loss):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss) and again.get_config() == loss.get_config()


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
@pytest.mark.parametrize("loss", [SupervisedContrastive(0.01), MarginContrastive()])
def test_anybodys_model_trains_on_them(precision, loss):
    """`compile(loss=...)` on a model whose projections come in half precision: the weights move and stay finite.

    At temperature 0.01 the first scaled gradients overflow float16; Keras skips those steps and halves the scale.
    """
    keras.utils.set_random_seed(0)
    policy = keras.DTypePolicy(precision)
    image = keras.Input((4,))
    model = keras.Model(image, keras.layers.Dense(3, activation="tanh", dtype=policy)(image))
    model.dtype_policy = policy
    model.compile(keras.optimizers.SGD(0.01), loss=loss, jit_compile=False)
    assert model.output.dtype == policy.compute_dtype
    before = model.get_weights()[0]
    rng = np.random.default_rng(0)
    history = model.fit(rng.normal(size=(16, 4)), rng.integers(0, 3, 16), batch_size=8, epochs=5, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert np.isfinite(model.get_weights()[0]).all() and (model.get_weights()[0] != before).any()


@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan")])
def test_a_temperature_that_is_not_positive_raises(temperature):
    with pytest.raises(InvalidInputError, match=f"temperature {temperature} is not positive"):
        SupervisedContrastive(temperature)
    with pytest.raises(InvalidInputError, match=f"temperature {temperature} is not positive"):
        supervised_contrastive(np.zeros(2, int), np.ones((2, 2)), temperature=temperature)


def test_wrong_shapes_raise():
    with pytest.raises(InvalidInputError, match=r"\(2, 3, 4\) are not \[M, D\]"):
        margin_contrastive(np.zeros(2, int), np.ones((2, 3, 4)))
    with pytest.raises(InvalidInputError, match=r"labels of shape \(2, 1\) are not \[M\]"):
        supervised_contrastive(np.zeros((2, 1), int), np.ones((2, 3)), temperature=0.1)
    with pytest.raises(InvalidInputError, match=r"\(2,\) are not \[N, D\] or \[N, V, D\]"):
        SupervisedContrastive()(np.zeros(2), np.ones(2))
    with pytest.raises(InvalidInputError, match="1 anchors cannot be contrasted"):
        collapse_value(1)


@pytest.mark.parametrize(
    "labels",
    [
        2**24 + np.arange(8),  # rounded to float32 they run together in pairs
        np.array([3000000001, 3000000002] * 4),
        2**32 * np.array([0, 1] * 4),  # as int32 they are all 0
        -(2**40) + np.arange(8) // 2,
        np.uint64(2**63) + np.arange(8, dtype="uint64") % 4,
    ],
    ids=["above 2^24", "ten digits", "2^32 apart", "negative", "uint64"],
)
@pytest.mark.parametrize("column", [False, True])
def test_labels_of_any_size_are_told_apart(labels, column):
    projection = unit(np.random.default_rng(0), 8, 16)
    numbers = np.unique(labels, return_inverse=True)[1]
    y_true = labels[:, None] if column else labels
    close(SupervisedContrastive(0.1)(y_true, projection), reference.supcon_mean(numbers, projection, 0.1))
    close(MarginContrastive()(y_true, projection), reference.margin(numbers, projection, 0.5, 0.1).mean())
    close(supervised_contrastive(labels, projection, temperature=0.1), reference.supcon(numbers, projection, 0.1))


def test_large_labels_in_fit_are_told_apart():
    """In `fit` the labels pass through the data adapter and a traced step."""
    labels, projection = 2**24 + np.arange(8), unit(np.random.default_rng(0), 8, 16)
    model = keras.Sequential([keras.Input((16,)), keras.layers.Identity()])
    model.compile(loss=SupervisedContrastive(0.1), jit_compile=False)
    assert model.evaluate(projection, labels, batch_size=8, verbose=0) == 0.0  # no label is there twice
    numbers = np.arange(8) // 2
    expected = reference.supcon_mean(numbers, projection, 0.1)
    assert model.evaluate(projection, 2**24 + 2 * numbers + 1, batch_size=8, verbose=0) == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize("loss", [SupervisedContrastive(0.1), MarginContrastive()])
def test_views_stacked_view_by_view_with_one_label_per_image_raise(loss):
    """Row 1 would become the second view of image 0; with a label per row, or as [N, V, D], the batch is right."""
    labels, projection = np.arange(4), unit(np.random.default_rng(0), 8, 16)
    with pytest.raises(InvalidInputError, match=r"4 labels, and projections of shape \(8, 16\); hint: stack the views"):
        loss(labels, projection)
    close(loss(labels, np.stack([projection[:4], projection[4:]], axis=1)), loss(np.tile(labels, 2), projection))


def test_numbers_of_labels_and_projections_that_differ_raise():
    rows = unit(np.random.default_rng(0), 8, 16)
    for labels, projection in ((np.arange(16), rows), ([0], rows), (np.arange(4), rows.reshape(2, 4, 16))):
        with pytest.raises(InvalidInputError, match="labels and projections differ in number"):
            SupervisedContrastive(0.1)(labels, projection)
    for function in (lambda y, z: supervised_contrastive(y, z, temperature=0.1), margin_contrastive):
        with pytest.raises(InvalidInputError, match="1 labels, and projections"):
            function(np.array([0]), rows)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, 16], tf.float32)])
    def traced(y_true, y_pred):
        return SupervisedContrastive(0.1)(y_true, y_pred)

    close(traced(np.tile(np.arange(4), 2), rows), reference.supcon_mean(np.tile(np.arange(4), 2), rows, 0.1))
    for labels in (np.arange(4), np.array([0])):
        with pytest.raises(tf.errors.InvalidArgumentError, match="reshape|broadcast|segment_ids"):
            traced(labels, rows)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.eye(4)[[0, 1, 0, 1]], r"labels of shape \(4, 4\) are not \[N\] or \[N, 1\]; hint: .*argmax"),
        (np.zeros((4, 1, 1), int), r"labels of shape \(4, 1, 1\)"),
        (np.array(["cat", "dog", "cat", "dog"]), "labels are text"),
        (np.array([0.5, 1.0, 0.5, 1.0]), "labels are not integers"),
        (np.array([0.0, np.nan, 0.0, 1.0]), "labels are not integers"),
    ],
    ids=["one-hot", "three axes", "text", "fractions", "not a number"],
)
@pytest.mark.parametrize(
    "loss", [SupervisedContrastive(0.1), MarginContrastive(), CrossEntropy(), BoostedCrossEntropy()]
)
def test_labels_that_are_not_one_integer_per_image_raise(loss, labels, message):
    with pytest.raises(InvalidInputError, match=message):
        loss(labels, np.ones((4, 4), "float32"))
