"""Trainings by `RobustModel` that need a process of their own: one that is killed, and one on two replicas."""

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
from test_robust_model import BATCH, CLASSES, WEAK, averaged, stripes, train_in_order  # noqa: E402


def killed(folder: Path) -> None:
    def die(batch, logs):
        if int(robust.optimizer.iterations) == 8:  # in the third epoch
            os._exit(9)

    robust = averaged()
    backup = keras.callbacks.BackupAndRestore(folder / "backup")
    train_in_order(robust, 3, backup, keras.callbacks.LambdaCallback(on_train_batch_end=die))


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
    {"killed": killed, "replicas": replicas}[mode](*map(Path, folder))
