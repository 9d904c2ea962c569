"""Adversarial training and its evaluation, written with `RobustModel`, with ART, and with foolbox and plain Keras.

Each program is what a user would write: it trains a Keras model on images in [0, 1] by PGD-5 at 8/255 with Adam, and
returns its robust accuracy under PGD-20. `benchmarks.robust_model --peers` runs them and counts their lines.
"""

from collections.abc import Callable
from importlib import util

import keras
import numpy as np
import tensorflow as tf


def small_cnn() -> keras.Model:
    """A user's own CNN: 32x32 RGB images in [0, 1] -> logits of ten classes."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(64, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def with_robust_model(model, x, y, x_test, y_test, epochs):
    import keras_rcl as rcl

    method = rcl.AT(attack=rcl.PGD(epsilon="8/255", step_size="2/255", num_steps=5), augmentation="none")
    robust = rcl.RobustModel(model, method, attack=rcl.PGD(epsilon="8/255", step_size="2/255", num_steps=20))
    robust.compile(keras.optimizers.Adam(1e-3))
    robust.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    return robust.evaluate(x_test, y_test, batch_size=250, verbose=0, return_dict=True)["robust_accuracy"]


def with_art(model, x, y, x_test, y_test, epochs):
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.trainer import AdversarialTrainer
    from art.estimators.classification import TensorFlowV2Classifier

    optimizer, loss = keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def train_step(model, images, labels):
        with tf.GradientTape() as tape:
            value = loss(labels, model(images, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    classifier = TensorFlowV2Classifier(
        model, nb_classes=10, input_shape=(32, 32, 3), loss_object=loss, train_step=train_step, clip_values=(0, 1)
    )
    settings = dict(eps=8 / 255, eps_step=2 / 255, num_random_init=1, verbose=False)
    attack = ProjectedGradientDescent(classifier, max_iter=5, batch_size=128, **settings)
    AdversarialTrainer(classifier, attack, ratio=1.0).fit(x, y, batch_size=128, nb_epochs=epochs)
    test = ProjectedGradientDescent(classifier, max_iter=20, batch_size=250, **settings)
    adversarial = test.generate(x_test, y_test)
    return float(np.mean(classifier.predict(adversarial).argmax(axis=1) == y_test))


def with_foolbox(model, x, y, x_test, y_test, epochs):
    import foolbox

    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    attacked = foolbox.TensorFlowModel(lambda images: model(images, training=False), bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=2 / 255, steps=5, random_start=True)
    batches = tf.data.Dataset.from_tensor_slices((x, y.astype(np.int64))).shuffle(len(x)).batch(128)
    for _ in range(epochs):
        for images, labels in batches:
            _, adversarial, _ = attack(attacked, images, labels, epsilons=8 / 255)
            model.train_on_batch(adversarial, labels)
    test = foolbox.attacks.LinfPGD(abs_stepsize=2 / 255, steps=20, random_start=True)
    broken = []
    for images, labels in tf.data.Dataset.from_tensor_slices((x_test, y_test.astype(np.int64))).batch(250):
        broken.append(test(attacked, images, labels, epsilons=8 / 255)[2].numpy())
    return float(1 - np.concatenate(broken).mean())


PROGRAMS: dict[str, tuple[Callable[[], bool], Callable]] = {
    "RobustModel": (lambda: True, with_robust_model),
    "ART": (lambda: util.find_spec("art") is not None, with_art),
    "foolbox": (lambda: util.find_spec("foolbox") is not None, with_foolbox),
}
"""The name of a program -> whether it can run, and the program."""
