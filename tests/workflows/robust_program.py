"""Trainings by `RobustModel` in processes of their own: one that is killed, one that resumes, one on two replicas."""

import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

import keras_rcl  # noqa: E402

RobustModel, AT = keras_rcl.RobustModel, keras_rcl.AT

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from test_robust_model import BATCH, CLASSES, WEAK, small, stripes  # noqa: E402


def robust_model(ema: float = 0.0, model=None) -> RobustModel:
    keras.utils.set_random_seed(3)
    method = AT(attack=WEAK, augmentation="crop_flip", ema=ema)
    robust = RobustModel(model or small(), method, input_range="0..255")
    robust.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    return robust


def train(robust: RobustModel, epochs: int, *callbacks) -> list[int]:
    """Train on the same batches in the same order; returns the epochs that were run."""
    images, labels = stripes(3 * BATCH)
    history = robust.fit(
        images, labels, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks]
    )
    return history.epoch


def killed(folder: Path) -> None:
    def die(batch, logs):
        if int(robust.optimizer.iterations) == 8:  # in the third epoch
            os._exit(9)

    robust = robust_model(ema=0.9)
    backup = keras.callbacks.BackupAndRestore(folder / "backup")
    train(robust, 4, backup, keras.callbacks.LambdaCallback(on_train_batch_end=die))


def resumed(folder: Path) -> None:
    robust, whole = robust_model(ema=0.9), robust_model(ema=0.9)
    epochs = train(robust, 4, keras.callbacks.BackupAndRestore(folder / "backup"))
    print(f"epochs {epochs[0]} to {epochs[-1]}")
    train(whole, 4)
    for one, other in zip(robust.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    images, _ = stripes(8)
    np.save(folder / "images.npy", images)
    np.save(folder / "outputs.npy", robust.model(images))
    robust.model.save(folder / "model.keras")


def replicas() -> None:
    """The gradient of two halves of each batch is that of the batch, in a network without BatchNorm."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

    def plain() -> keras.Model:
        keras.utils.set_random_seed(4)
        dense = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(CLASSES)]
        return keras.Sequential(
            [keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), *dense]
        )

    def trained(model: keras.Model) -> list:
        method = AT(attack=WEAK, augmentation="crop_flip")
        robust = RobustModel(model, method, input_range="0..255")
        robust.compile(keras.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
        images, labels = stripes(2 * BATCH)
        robust.fit(
            images, labels, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, validation_data=(images, labels)
        )
        return model.get_weights()

    one_device = trained(plain())
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        both = trained(plain())
    for one, other in zip(one_device, both, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


if __name__ == "__main__":
    mode, *folder = sys.argv[1:]
    {"killed": killed, "resumed": resumed, "replicas": replicas}[mode](*map(Path, folder))
