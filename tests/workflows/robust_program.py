"""What of `RobustModel` needs processes of its own: `robust_program.py FOLDER`.

One process loads `model.keras` without keras_rcl, one trains and is killed, one trains on two replicas. They are forked
from this one, which has imported Keras and not started TensorFlow, and which prints their exit codes.
"""

import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402


def loaded(folder: Path) -> None:
    """The model computes what it computed in the process that trained it."""
    sys.modules["keras_rcl"] = None  # type: ignore[assignment]
    model, expected = keras.models.load_model(folder / "model.keras"), np.load(folder / "expected.npz")
    np.testing.assert_allclose(model(expected["images"]), expected["outputs"], rtol=1e-5, atol=1e-6)


def killed(folder: Path) -> None:
    """Keras' backup is left behind, of two epochs of three."""
    from test_robust_model import averaged, train_in_order

    def die(batch, logs):
        if int(robust.optimizer.iterations) == 8:  # in the third epoch
            os._exit(9)

    robust = averaged()
    backup = keras.callbacks.BackupAndRestore(folder / "backup")
    train_in_order(robust, 3, backup, keras.callbacks.LambdaCallback(on_train_batch_end=die))


def replicas(folder: Path) -> None:
    """The gradient of two halves of each batch is that of the batch, in a network without BatchNorm."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    from test_robust_model import BATCH, CLASSES, WEAK, stripes

    from keras_rcl import AT, RobustModel

    images, labels = stripes(2 * BATCH)

    def plain() -> keras.Model:
        keras.utils.set_random_seed(4)
        dense = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(CLASSES)]
        return keras.Sequential(
            [keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), *dense]
        )

    def trained(model: keras.Model, **validation) -> list:
        method = AT(attack=WEAK, augmentation="crop_flip")
        robust = RobustModel(model, method, input_range="0..255")
        robust.compile(keras.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
        robust.fit(images, labels, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, **validation)
        return model.get_weights()

    one_device = trained(plain())
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        both = trained(plain(), validation_data=(images, labels))
    for one, other in zip(one_device, both, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def main(folder: Path) -> None:
    """Fork the processes, each of which returns from here when it is done, and wait for them."""
    children = []
    for part in (loaded, killed, replicas):
        child = os.fork()
        if not child:
            return part(folder)
        children.append(child)
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
