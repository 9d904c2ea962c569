"""`RobustValidation`: the robust accuracy of any Keras classifier after each epoch of `fit`."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.evaluation.input_range import INPUT_RANGES, check_input_range
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.networks.own_model import around_model
from keras_rcl.vocabulary.attacks import PGD, Attack, as_attack
from keras_rcl.vocabulary.labels import class_labels
from keras_rcl.workflows.robust_model import RobustModel, range_that_is_read

DEFAULT_ATTACK = PGD()
"""PGD-10 at 8/255."""


class RobustValidation(keras.callbacks.Callback):
    """Attacks held-out images after each epoch of `fit`, and adds the accuracies to the logs.

    The logs receive `val_clean_accuracy`, and `val_robust_accuracy`: the share of images that are classified correctly
    before and after the attack. Callbacks that read them, such as `EarlyStopping(monitor="val_robust_accuracy",
    mode="max")`, come after this one in the list.

    Args:
        validation_data: (images [N, H, W, C], labels), or a `tf.data.Dataset` of batches of both. Images are in the
            range that the model reads; labels are integers [N] or [N, 1], or one-hot [N, K].
        attack: The attack; by default PGD-10 at 8/255.
        input_range: The range of the images that the model reads: `0..1`, `0..255` or `-1..1`. If it is not given, it
            is read from the model's first layers, such as a Rescaling; otherwise it is `0..1`.
        limit: Attack at most the first N images. None: all.
        batch_size: Images attacked at once; it changes the speed, and no result.
        every: Attack after every n-th epoch.

    Raises:
        InvalidInputError: If the images are outside `input_range`, or the model is not a classifier of images.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import keras_rcl
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> images, labels = np.random.default_rng(0).random((8, 4, 4, 1), np.float32), np.arange(8) % 2
        >>> validation = keras_rcl.RobustValidation((images, labels), keras_rcl.FGSM(epsilon="8/255"))
        >>> history = model.fit(images, labels, epochs=1, verbose=0, callbacks=[validation])
        >>> "val_robust_accuracy" in history.history
        True
    """

    def __init__(
        self,
        validation_data: Any,
        attack: Attack | str = DEFAULT_ATTACK,
        *,
        input_range: str | None = None,
        limit: int | None = None,
        batch_size: int = 250,
        every: int = 1,
    ):
        super().__init__()
        if input_range is not None:
            check_input_range(input_range)
        self._input_range, self._every = input_range, every
        self._attack, self._batch_size = as_attack(attack), batch_size
        self._images, self._labels = _arrays(validation_data, limit)

    def on_train_begin(self, logs=None):
        model = self.model.model if isinstance(self.model, RobustModel) else self.model
        scale, offset = INPUT_RANGES[range_that_is_read(model, self._input_range)]
        network = around_model(model, pixels=(scale, offset)).network
        self._pixels = (self._images.astype(np.float32) - offset) / np.float32(scale)
        self._evaluator = Evaluator(
            lambda images: network(images, training=False)["logits"],
            (self._attack,),
            batch_size=min(self._batch_size, len(self._labels)),
        )

    def on_epoch_end(self, epoch, logs=None):
        if logs is None or (epoch + 1) % self._every:
            return
        survival = self._evaluator(self._pixels, self._labels)
        logs["val_clean_accuracy"] = survival.clean_accuracy
        logs["val_robust_accuracy"] = float(survival.survived[0].mean())


def _arrays(data: Any, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` images, and their labels [N]."""
    if isinstance(data, tf.data.Dataset):
        batches = data.unbatch().take(-1 if limit is None else limit).batch(256)
        images, labels = (np.concatenate(arrays) for arrays in zip(*batches.as_numpy_iterator(), strict=True))
    else:
        images, labels = (np.asarray(array)[:limit] for array in data)
    return images, class_labels(labels, count=len(images))
