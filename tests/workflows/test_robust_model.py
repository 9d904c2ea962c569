"""`RobustModel` and `RobustValidation`: the engine's step, Keras' callbacks, the user's model."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_rcl
from keras_rcl import AT, ATSCL, InvalidInputError, RobustModel, RobustValidation
from keras_rcl.data.sources import ImageData, Split
from keras_rcl.methods import VARIANTS
from keras_rcl.networks import build_network
from keras_rcl.runtime.progress import Silent
from keras_rcl.training.optimizers import make_optimizer
from keras_rcl.training.phase_runner import PhaseRunner
from keras_rcl.vocabulary.dataset import CropFlip
from keras_rcl.vocabulary.network import Network
from keras_rcl.vocabulary.phase import SGD
from tests import forked

pytestmark = pytest.mark.usefixtures("unoptimized")

PROGRAM = Path(__file__).with_name("robust_program.py")
CLASSES, BATCH = 3, 32
WEAK = keras_rcl.PGD(epsilon=16 / 255, num_steps=2)


def stripes(count: int = 2 * BATCH, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 8, 8, 1]; each class is bright in rows of its own."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % CLASSES
    images = rng.integers(0, 96, (count, 8, 8, 1))
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 3] += 128
    return images.astype(np.uint8), labels


def small(end: str | None = "softmax", outputs: int = CLASSES) -> keras.Model:
    """A user's own CNN that reads 0..255."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, strides=2, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(outputs, activation=end),
        ]
    )


def recorded(weights: list, model: keras.Model) -> keras.callbacks.Callback:
    """A callback that keeps the weights after each step."""
    return keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: weights.append(model.get_weights()))


def averaged() -> RobustModel:
    """A model whose weights are averaged, always the same one."""
    keras.utils.set_random_seed(3)
    robust = RobustModel(small(), AT(attack=WEAK, augmentation="crop_flip", ema=0.9), input_range="0..255")
    robust.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    return robust


def train_in_order(robust: RobustModel, epochs: int, *callbacks) -> list[int]:
    """Train on the same batches in the same order; returns the epochs that were run."""
    images, labels = stripes(3 * BATCH)
    history = robust.fit(
        images, labels, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks]
    )
    return history.epoch


def test_at_takes_the_steps_of_the_recipe():
    """The weights after each step of two epochs, of the phase and of `fit` on the same batches."""
    images, labels = stripes()
    part = Split(images, labels, np.arange(len(labels)))
    data = ImageData("stripes", ("a", "b", "c"), part, part, part)
    optimizer = SGD(learning_rate=0.1, schedule="cosine", weight_decay=5e-4)
    method = AT(attack=WEAK, augmentation=CropFlip(padding=1), optimizer=optimizer, batch_size=BATCH, epochs=2)
    (phase,) = method.phases()
    word = Network(encoder="small_cnn", projection_hidden=8, projection_dim=4)
    network, twin = (build_network(word, (8, 8, 1), CLASSES, mean=[0.35], std=[0.3]) for _ in range(2))
    steps = PhaseRunner(network, phase, data, epochs=2, seed=(5, 0, 0))
    own = keras.Model(twin.input, twin.output["logits"])
    expected, order = [], []
    chosen = keras.Model(network.input, network.output["logits"])
    for epoch in range(2):
        steps.batches.start_epoch(epoch)
        order += [steps.batches.indices(step) for step in range(2)]
        steps.run_epoch(Silent(), "", after_step=lambda _: expected.append(chosen.get_weights()))
    robust, found = RobustModel(own, method, seed=5), []
    robust.compile(make_optimizer(optimizer, 2 * 2))
    rows = np.concatenate(order)
    dataset = tf.data.Dataset.from_tensor_slices((images[rows].astype(np.float32) / 255, labels[rows]))
    dataset = dataset.batch(BATCH, drop_remainder=True)
    robust.fit(dataset, epochs=2, steps_per_epoch=2, verbose=0, callbacks=[recorded(found, own)])
    assert len(expected) == len(found) == 4
    for step in range(4):
        for one, other in zip(found[step], expected[step], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    assert max(np.abs(one - other).max() for one, other in zip(found[-1], found[0], strict=True)) > 1e-2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model after `fit` with the usual callbacks, weights of classes and one-hot labels; all of it traced once."""
    folder = tmp_path_factory.mktemp("fit")
    keras.utils.set_random_seed(0)
    (images, labels), model = stripes(80), small()
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]
    strong = keras_rcl.PGD(epsilon=90 / 255, num_steps=3)
    robust = RobustModel(model, AT(attack=WEAK, augmentation="none"), attack=strong)  # its Rescaling tells 0..255
    robust.compile(
        keras.optimizers.Adam(0.01), metrics=["accuracy", keras.metrics.TopKCategoricalAccuracy(2, name="top2")]
    )
    rates: list[float] = []
    history = robust.fit(
        images,
        one_hot,
        batch_size=BATCH,
        epochs=6,
        verbose=0,
        validation_data=(images, one_hot),
        class_weight={0: 1.0, 1: 2.0, 2: 1.0},
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.01 if epoch < 4 else 0.0),
            keras.callbacks.ModelCheckpoint(
                folder / "best.keras", "val_robust_accuracy", mode="max", save_best_only=True
            ),
            keras.callbacks.EarlyStopping("val_robust_accuracy", mode="max", patience=1, restore_best_weights=True),
            keras.callbacks.TensorBoard(folder / "logs"),
            keras.callbacks.BackupAndRestore(folder / "backup"),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: rates.append(float(robust.optimizer.learning_rate))
            ),
        ],
    )
    return robust, history.history, folder, rates


@pytest.mark.slow
def test_the_usual_callbacks_work(trained):
    robust, history, folder, rates = trained
    scores = history["val_robust_accuracy"]
    best = int(np.argmax(scores))
    assert len(scores) == min(6, best + 2)  # stopped one epoch after the best
    assert rates == pytest.approx([0.01 if epoch < 4 else 0.0 for epoch in range(len(scores))])
    images, labels = stripes(80)
    best = keras.models.load_model(folder / "best.keras")
    np.testing.assert_allclose(best(images), robust.model(images), rtol=1e-5, atol=1e-6)  # both are the best epoch
    assert type(best) is keras.Sequential
    events = [path.name for path in (folder / "logs").rglob("events*")]
    assert len(events) == 2  # training and validation
    assert not (folder / "backup").exists()  # removed after a training that ended
    assert robust.predict(images, verbose=0).shape == (80, CLASSES)


@pytest.mark.slow
def test_evaluate_gives_what_an_evaluator_gives(trained):
    robust, history, _, _ = trained
    images, labels = stripes(80)
    found = robust.evaluate(images, np.eye(CLASSES)[labels], verbose=0, return_dict=True)
    *_, hidden, last = robust.model.layers
    row = keras.Model(robust.model.inputs[0], hidden.output)
    evaluator = keras_rcl.Evaluator(lambda x: row(255 * x) @ last.kernel + last.bias, [robust.attack])
    survival = evaluator(images.astype(np.float32) / 255, labels)
    assert found["clean_accuracy"] == pytest.approx(survival.clean_accuracy)
    assert found["accuracy"] == pytest.approx(survival.clean_accuracy)
    assert found["robust_accuracy"] == pytest.approx(survival.survived[0].mean(), abs=1.5 / 80)
    assert 0.1 < found["robust_accuracy"] < found["clean_accuracy"]
    probabilities = np.asarray(robust.model(images))[np.arange(80), labels]
    assert found["loss"] == pytest.approx(-np.log(probabilities).mean(), rel=1e-4)
    assert max(history["val_robust_accuracy"]) == pytest.approx(found["robust_accuracy"])


def test_weights_of_images_multiply_their_losses():
    from keras_rcl.training.loss_terms import Batch, evaluate_terms
    from keras_rcl.vocabulary.phase import CrossEntropy, Phase, SupCon

    rng = np.random.default_rng(0)
    logits, projection = rng.normal(size=(8, 3)), rng.normal(size=(8, 4))
    projection /= np.linalg.norm(projection, axis=1, keepdims=True)
    labels, weights = np.tile([0, 1, 2, 0], 2), np.tile([0.0, 1.0, 2.0, 0.5], 2)
    views = ({"kind": "clean"}, {"kind": "adversarial", "attack": WEAK})
    terms = (CrossEntropy(on="adversarial"), SupCon(temperature=0.5))
    phase = Phase(name="both", epochs=1, trains=("encoder",), views=views, terms=terms)
    outputs = {name: tf.constant(rows, tf.float32) for name, rows in (("logits", logits), ("projection", projection))}
    found = evaluate_terms(
        phase, Batch(tf.constant(labels), outputs, ("clean", "adversarial"), tf.constant(weights, tf.float32))
    )
    entropy = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits[4:], labels[4:], strict=True)]
    assert float(found["cross_entropy_adversarial"]) == pytest.approx(np.dot(entropy, weights[4:]) / 4, rel=1e-5)
    total = 0.0
    for i in range(8):
        others = [j for j in range(8) if j != i]
        scale = np.log(sum(np.exp(projection[i] @ projection[j] / 0.5) for j in others))
        positives = [projection[i] @ projection[j] / 0.5 - scale for j in others if labels[j] == labels[i]]
        total -= weights[i] * np.mean(positives) / 8
    assert float(found["supcon"]) == pytest.approx(total, rel=1e-5)


REFUSED = {
    "several phases": (lambda: RobustModel(small(), keras_rcl.CLAFS()), "several phases"),
    "a loss": (lambda: RobustModel(small(), AT()).compile("adam", loss="mse"), "has its own losses"),
    "another range": (lambda: _fit_in("0..1"), "span \\[0, 223\\] and input_range is 0..1"),
    "unknown range": (lambda: RobustModel(small(), AT(), input_range="0..2"), "unknown input range"),
    "no embedding": (lambda: RobustModel(_pooled(), ATSCL()), "reads an embedding"),
    "unknown epochs": (lambda: _fit_unknown(), "give steps_per_epoch"),
    "no bounds": (lambda: RobustModel(_pooled("gelu"), keras_rcl.Certified()), "gelu"),
    "no method": (lambda: RobustModel(small(), AT), "the class AT is not a method"),
    "unknown name": (lambda: RobustModel(small(), "att"), "unknown variant 'att'; did you mean 'at'\\?"),
    "no attack": (lambda: RobustModel(small(), AT(), attack=3), "3 is not an attack"),
    "a targeted attack": (lambda: RobustModel(small(), AT(), attack=keras_rcl.FGSM(targeted=True)), "away from"),
}


def _pooled(activation="relu") -> keras.Model:
    convolution = layers.Conv2D(CLASSES, 3, activation=activation)
    return keras.Sequential([keras.Input((8, 8, 1)), convolution, layers.GlobalAveragePooling2D()])


def _fit_in(input_range: str) -> None:
    robust = RobustModel(small(), AT(attack=WEAK), input_range=input_range)
    robust.compile("adam")
    images, labels = stripes()
    images[0, 0, 0, 0], images[images > 223] = 0, 223
    robust.fit(images, labels, verbose=0)


def _fit_unknown() -> None:
    robust = RobustModel(small(None), keras_rcl.Certified(), input_range="0..255")
    robust.compile("adam")
    robust.fit((stripes() for _ in range(2)), verbose=0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_one_line(name):
    build, message = REFUSED[name]
    with pytest.raises(InvalidInputError, match=message) as raised:
        build()
    assert "\n" not in str(raised.value)


# --- slow -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ("trades", "scl", "certified"))
def test_methods_with_other_losses_learn(name):
    """A loss of two views, of a projection, and of bounds; `test_variants.py` trains all methods."""
    keras.utils.set_random_seed(1)
    images, labels = stripes(4 * BATCH)
    fields = VARIANTS[name].__dataclass_fields__
    changes = {"attack": {**fields["attack"].default.__dict__, "num_steps": 1}} if "attack" in fields else {}
    changes |= {"start_epochs": 0, "ramp_epochs": 2, "epsilon": 2 / 255} if "ramp_epochs" in fields else {}
    method = VARIANTS[name](augmentation="none", **changes)
    robust = RobustModel(small(None), method, input_range="0..255", projection=Network(projection_hidden=8))
    robust.compile(keras.optimizers.Adam(0.01))
    robust.fit(tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH), epochs=8, verbose=0)
    assert robust.evaluate(images, labels, verbose=0, return_dict=True)["clean_accuracy"] > 0.8


@pytest.mark.slow
def test_a_contrastive_head_is_trained_and_not_part_of_the_model():
    images, labels = stripes()
    model = small(None)
    names = [variable.path for variable in model.variables]
    robust = RobustModel(model, ATSCL(attack=WEAK, second_view="none"), input_range="0..255")
    robust.compile("adam", steps_per_execution=2)
    (head,) = (layer for layer in robust.network.layers if layer.name == "projector")
    before = head.get_weights()
    robust.fit(images, labels, batch_size=BATCH, epochs=1, verbose=0)
    assert [variable.path for variable in model.variables] == names
    assert all((one != other).any() for one, other in zip(before[::2], head.get_weights()[::2], strict=True))


@pytest.mark.slow
def test_averaged_weights_are_validated_and_saved(tmp_path):
    keras.utils.set_random_seed(0)
    (images, labels), model = stripes(), small(None)
    robust = RobustModel(model, AT(attack=WEAK, augmentation="none", ema=0.9), input_range="0..255")
    robust.compile(keras.optimizers.SGD(0.1))
    seen: list = [model.get_weights()]
    history = robust.fit(
        images,
        labels,
        batch_size=BATCH,
        epochs=2,
        shuffle=False,
        verbose=0,
        validation_data=(images, labels),
        callbacks=[recorded(seen, model), keras.callbacks.ModelCheckpoint(tmp_path / "last.keras")],
    ).history
    average = seen[0]
    for step, weights in enumerate(seen[1:], start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        average = [decay * old + (1 - decay) * new for old, new in zip(average, weights, strict=True)]
    saved = keras.models.load_model(tmp_path / "last.keras")
    for found in (saved.get_weights(), model.get_weights()):
        for one, other in zip(found, average, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    accuracy = (np.asarray(saved(images)).argmax(1) == labels).mean()
    assert history["val_clean_accuracy"][-1] == pytest.approx(accuracy)


@pytest.mark.slow
def test_two_classes_by_one_sigmoid_and_labels_of_one_column():
    keras.utils.set_random_seed(0)
    images, labels = stripes(4 * BATCH)
    labels = (labels > 0)[:, None]
    robust = RobustModel(small("sigmoid", 1), AT(attack=WEAK, augmentation="none"), input_range="0..255")
    robust.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"])
    robust.fit(images, labels, batch_size=BATCH, epochs=6, verbose=0)
    found = robust.evaluate(images, labels, verbose=0, return_dict=True)
    assert found["accuracy"] == pytest.approx(found["clean_accuracy"]) and found["accuracy"] > 0.8


@pytest.mark.slow
def test_mixed_precision_scales_the_loss():
    images, labels = stripes()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        robust = RobustModel(small(None), AT(attack=WEAK, augmentation="none"), input_range="0..255")
    finally:
        keras.config.set_dtype_policy("float32")
    robust.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"])
    assert isinstance(robust.optimizer, keras.optimizers.LossScaleOptimizer)
    history = robust.fit(images, labels, batch_size=BATCH, epochs=6, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert robust.evaluate(images, labels, verbose=0, return_dict=True)["loss"] < 1


@pytest.mark.slow
def test_weight_regularizers_of_the_model_are_part_of_the_loss():
    images, labels = stripes(BATCH)
    penalty = layers.Dense(CLASSES, kernel_regularizer=keras.regularizers.L2(1.0))
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), penalty])
    squares = float((model.get_weights()[0] ** 2).sum())
    robust = RobustModel(model, keras_rcl.Baseline(), input_range="0..255")
    robust.compile(keras.optimizers.SGD(0.0))
    logs = {
        name: values[-1] for name, values in robust.fit(images, labels, batch_size=BATCH, verbose=0).history.items()
    }
    assert logs["loss"] - logs["cross_entropy"] == pytest.approx(squares, rel=1e-4)


@pytest.mark.slow
def test_robust_validation_serves_early_stopping_of_any_model():
    keras.utils.set_random_seed(0)
    (images, labels), model = stripes(80), small()
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    held_out = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH)
    validation = RobustValidation(held_out, WEAK, input_range="0..255", limit=40)
    stopping = keras.callbacks.EarlyStopping("val_robust_accuracy", mode="max", patience=8, restore_best_weights=True)
    history = model.fit(images, labels, epochs=8, verbose=0, callbacks=[validation, stopping]).history
    evaluator = keras_rcl.Evaluator(lambda x: keras.ops.log(model(255 * x)), [WEAK])
    survival = evaluator(images[:40].astype(np.float32) / 255, labels[:40])
    assert max(history["val_robust_accuracy"]) == pytest.approx(survival.survived.mean(), abs=1.5 / 40)


@pytest.fixture(scope="module")
def processes(trained, tmp_path_factory):
    """The folder of processes that have ended, by name their exit codes, and what they printed."""
    folder, (images, _), model = tmp_path_factory.mktemp("processes"), stripes(8), trained[0].model
    model.save(folder / "model.keras")
    np.savez(folder / "expected.npz", images=images, outputs=model(images))
    done = forked.run(PROGRAM, folder)
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    return folder, dict(zip(("loaded", "killed", "replicas"), codes, strict=True)), done.stderr


@pytest.mark.slow
def test_a_killed_training_resumes_and_ends_with_the_same_weights(processes):
    """Keras' backup is read by another process than the one that died."""
    folder, codes, printed = processes
    assert codes["killed"] == 9, printed
    resumed, whole = averaged(), averaged()
    assert train_in_order(resumed, 3, keras.callbacks.BackupAndRestore(folder / "backup")) == [2]
    train_in_order(whole, 3)
    for one, other in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_trained_model_loads_without_this_package(processes):
    _, codes, printed = processes
    assert codes["loaded"] == 0, printed


@pytest.mark.slow
def test_two_replicas_take_the_step_of_one_device(processes):
    _, codes, printed = processes
    assert codes["replicas"] == 0, printed
