"""`RobustModel`: any classifier in Keras, trained by a method with `compile`, `fit` and `evaluate`."""

import inspect
import math
from typing import Any, get_args

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_rcl.attacks import craft_and_count
from keras_rcl.data.augmentations import Rows
from keras_rcl.data.pipeline import entropy, make_views, step_seed
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.input_range import INPUT_RANGES, check_input_range, range_of_layers, span_outside
from keras_rcl.methods import Method, as_method
from keras_rcl.networks.own_model import OwnModel, around_model
from keras_rcl.networks.two_headed import initialize_for_intervals, parts
from keras_rcl.objectives.classification import cross_entropy
from keras_rcl.training.loss_terms import is_contrastive
from keras_rcl.training.robust_trainer import RobustTrainer
from keras_rcl.training.views import gradient_fn
from keras_rcl.vocabulary.attacks import PGD, Attack, as_attack
from keras_rcl.vocabulary.compute import ComputeSettings
from keras_rcl.vocabulary.network import Network
from keras_rcl.vocabulary.phase import Adversarial, Phase, Ramp
from keras_rcl.vocabulary.threat import Norm

UNKNOWN = 2**31 - 1
"""The number of steps per epoch if it is not known: all steps are of the first epoch."""

ACCURACIES = ("clean_accuracy", "robust_accuracy")
"""What `evaluate` reports of every method."""

PROJECTION = Network()
"""The projection head that is added for a contrastive method: 512 hidden units and 128 dimensions."""


class RobustModel(keras.Model):
    """Trains a Keras classifier by a robust method, with `compile`, `fit` and `evaluate`.

    The losses, views and attacks are the method's; the optimizer, the batch size, the number of epochs, metrics and
    callbacks are those given to `compile` and `fit`. The classifier is trained in place: save it by `model.save`, and
    load it without this package. `save`, and so a `ModelCheckpoint` of whole models, writes the classifier too;
    `save_weights` writes everything that training depends on.

    In training, metrics given to `compile` compare labels with the predictions of the first view of each batch, the
    images under attack for `AT`. `evaluate`, and validation in `fit`, report the cross-entropy (`loss`), the metrics
    and `clean_accuracy` of the images as they are, and `robust_accuracy`: the share of images that are classified
    correctly before and after the attack. Attacks run in inference mode, so that BatchNorm statistics are read and not
    moved.

    Images are given in the range that the classifier reads; epsilon is always in units of the pixel range [0, 1].
    Labels are integers [N] or [N, 1], or one-hot [N, K].

    Args:
        model: Any built Keras model from images to logits or probabilities [N, K], or to one logit or probability of
            class 1, [N, 1].
        method: A method of one phase, such as `AT()`, or the name of one. Its `epochs`, `batch_size` and `optimizer`
            are not read. A method that initializes kernels for intervals does so now.
        attack: The attack of `evaluate`, or its text, such as `pgd-20`; by default PGD-10 with the method's norm and
            radius.
        input_range: The range of the images that the model reads: `0..1`, `0..255` or `-1..1`. If it is not given, it
            is read from the model's first layers, such as a Rescaling; otherwise it is `0..1`.
        embedding: The name of the layer whose output [N, E] a contrastive loss reads; by default the input of the last
            Dense layer.
        projection: The projection head that a contrastive method trains beside the model, which is left out
            of the saved model; its `projection_hidden` and `projection_dim` are read.
        seed: Of views, attacks and the projection head.

    Attributes:
        model: The classifier.
        attack: The attack of `evaluate`.
        input_range: The range of the images that the model reads.
        network: The two-headed network on the classifier's own layers.

    Raises:
        InvalidInputError: If the method has several phases or needs what only `fit` has, the model is not a classifier
            of images, or a method of bounds meets a layer without bounds.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import keras_rcl
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> images, labels = np.random.default_rng(0).random((8, 4, 4, 1), np.float32), np.arange(8) % 2
        >>> method = keras_rcl.AT(attack=keras_rcl.PGD(epsilon="8/255", num_steps=2), augmentation="none")
        >>> robust = keras_rcl.RobustModel(model, method)
        >>> robust.compile(optimizer="adam", metrics=["accuracy"])
        >>> history = robust.fit(images, labels, epochs=1, verbose=0)
        >>> sorted(robust.evaluate(images, labels, verbose=0, return_dict=True))
        ['accuracy', 'clean_accuracy', 'loss', 'robust_accuracy']
    """

    def __init__(
        self,
        model: keras.Model,
        method: Method | str,
        *,
        attack: Attack | str | None = None,
        input_range: str | None = None,
        embedding: str | None = None,
        projection: Network = PROJECTION,
        seed: int = 0,
    ):
        chosen = as_method(method)
        phase = single_phase(chosen)
        used_range = range_that_is_read(model, input_range)
        own = around_model(
            model,
            pixels=INPUT_RANGES[used_range],
            embedding=embedding,
            projection=projection if "projector" in phase.trains else None,
            seed=seed,
        )
        _check_embedding(model, phase, own)
        policy = own.network.dtype_policy
        super().__init__(name="robust_model", dtype=policy, autocast=False)
        self.model, self.method, self.network = model, chosen, own.network
        self.attack = evaluation_attack(phase) if attack is None else _checked(as_attack(attack))
        self.input_range, self._own, self._pixels = used_range, own, INPUT_RANGES[used_range]
        # Not a constant, by whose reciprocal TensorFlow would multiply: random starts depend on each bit of an image.
        self._scale = tf.Variable(self._pixels[0], trainable=False)
        self._seed = entropy((seed, 0, 0))  # that of the first phase of a run with this seed
        if phase.interval_initialization and "encoder" in phase.trains:
            initialize_for_intervals(parts(self.network)["encoder"], seed=seed)
        self._steps_per_epoch = tf.Variable(UNKNOWN, trainable=False)
        self.trainer = RobustTrainer(
            self.network,
            phase,
            ComputeSettings(precision=policy.name),
            steps_per_epoch=self._steps_per_epoch,
            replicas=self.distribute_strategy.num_replicas_in_sync,
        )
        self.trainer.built = True
        self.average_variables = [*self.trainer.average.variables] if self.trainer.average else []
        self.average_shown = keras.Variable(0, dtype="int32", trainable=False, aggregation="only_first_replica")
        self._tested = [keras.metrics.Mean(name=name) for name in ACCURACIES]
        self.built = True

    # Keras' interface

    def compile(self, optimizer: Any = "adam", *, metrics: Any = None, jit_compile: Any = False, **settings: Any):
        """Configure training, as `keras.Model.compile` does; the losses are those of the method.

        Args:
            optimizer: A Keras optimizer or its name.
            metrics: Of predictions and labels, as the classifier gives and the data set has them.
            jit_compile: Compile steps with XLA, which is several times slower on a CPU.
            **settings: Other arguments of `keras.Model.compile`, such as `weighted_metrics` or `steps_per_execution`.

        Raises:
            InvalidInputError: If a loss is given.
        """
        for name in ("loss", "loss_weights"):
            if settings.pop(name, None) is not None:
                raise InvalidInputError(
                    f"{name} is given and method {self.method.name} has its own losses; hint: leave it out"
                )
        super().compile(optimizer=optimizer, metrics=metrics, jit_compile=jit_compile, **settings)
        self.trainer.optimizer = self.optimizer  # Keras wraps it if the loss is to be scaled
        with self.distribute_strategy.scope():
            if not self.optimizer.built:
                self.optimizer.build(self.trainer.trainable_variables)

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Train, as `keras.Model.fit` does, with the same arguments.

        Raises:
            InvalidInputError: If images are outside `input_range`, or the method changes with the epochs and their
                length is not known.
        """
        given = inspect.signature(super().fit).bind(*args, **kwargs).arguments
        self._check_images(given.get("x"))
        steps = steps_per_epoch(given)
        if steps is None and _needs_epochs(self.trainer.phase):
            raise InvalidInputError(
                f"method {self.method.name} changes with the epochs and the number of steps per epoch is not known; "
                "hint: give steps_per_epoch"
            )
        self._steps_per_epoch.assign(UNKNOWN if steps is None else steps)
        if isinstance(given.get("x"), tf.data.Dataset):
            given.setdefault("shuffle", False)  # Keras warns of its own default
        if self.trainer.average:
            given["callbacks"] = [_Averages(), *keras.tree.flatten(given.get("callbacks") or [])]
        return super().fit(**given)

    def call(self, x, training: bool | None = None):
        """What the classifier gives for images in its own range."""
        return self.model(x, training=training)

    def save(self, filepath, *args: Any, **kwargs: Any) -> None:
        """Save the classifier alone, as `model.save` does."""
        self.model.save(filepath, *args, **kwargs)

    def export(self, filepath, *args: Any, **kwargs: Any) -> None:
        """Export the classifier alone, as `model.export` does."""
        self.model.export(filepath, *args, **kwargs)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The loss, the values of the method, the accuracies of `evaluate`, and the metrics given to `compile`."""
        compiled = getattr(self, "_compile_metrics", None)
        return [*self.trainer.metrics, *self._tested, *([compiled] if compiled is not None else [])]

    def train_step(self, data) -> dict[str, Any]:
        """Train on one batch; returns the means of the metrics over the epoch so far."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        images, labels = self._images(x), self._labels(y)
        step = self.trainer.update_weights(self._views(images, labels, sample_weight))
        self.trainer.record(step)
        predictions = self._own.predictions(step.outputs["logits"][: ops.shape(labels)[0]])
        found = self.compute_metrics(x, y, predictions, sample_weight)
        return {name: value for name, value in found.items() if name not in ACCURACIES}

    def test_step(self, data) -> dict[str, Any]:
        """Classify and attack one batch; returns the means of the metrics so far."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        images, labels = self._images(x), self._labels(y)
        logits = self._logits(images)
        crafted = craft_and_count(self.attack, gradient_fn(self.network, "logits"), images, labels)
        clean, robust = (
            ops.equal(ops.argmax(found, axis=-1), ops.cast(labels, "int32"))
            for found in (logits, self._logits(crafted.images))
        )
        losses = cross_entropy(labels, logits)
        weights = 1.0 if sample_weight is None else ops.reshape(ops.cast(sample_weight, "float32"), (-1,))
        self.trainer.mean_loss.update_state(losses * weights)
        for metric, hits in zip(self._tested, (clean, ops.logical_and(clean, robust)), strict=True):
            metric.update_state(ops.cast(hits, "float32"))
        found = self.compute_metrics(x, y, self._own.predictions(logits), sample_weight)
        return {name: value for name, value in found.items() if name not in self.trainer.means}

    # What a step is made of

    def _images(self, x) -> tf.Tensor:
        """Images float32 in [0, 1] of those that the classifier reads."""
        if isinstance(x, (dict, list, tuple)):
            raise InvalidInputError("the data has several inputs; a classifier of images has one")
        scale, offset = self._pixels
        images = tf.cast(x, tf.float32)
        images = images - offset if offset else images
        return images / self._scale if scale != 1 else images

    def _labels(self, y) -> tf.Tensor:
        """Labels int32 [N] of those that the data set has."""
        if y is None or isinstance(y, (dict, list, tuple)):
            raise InvalidInputError("the data has no labels [N]; hint: give (images, labels)")
        if len(y.shape) == 2:
            y = tf.argmax(y, axis=1, output_type=tf.int32) if y.shape[1] not in (1, None) else tf.reshape(y, [-1])
        if len(y.shape) != 1:
            raise InvalidInputError(
                f"labels have shape {tuple(y.shape)}; hint: give integers [N] or [N, 1], or one-hot labels [N, K]"
            )
        return tf.cast(y, tf.int32)

    def _views(self, images, labels, sample_weight):
        """The views of a batch, under attack where the method says so; random numbers are those of a run's phase."""
        phase, done = self.trainer.phase, tf.cast(self.optimizer.iterations, tf.int32)
        seed = step_seed(self._seed, done // self._steps_per_epoch, done % self._steps_per_epoch)
        replicas, rows = self.distribute_strategy.num_replicas_in_sync, None
        if replicas > 1:  # the draws of this replica's part of the batch
            count = tf.shape(images)[0]
            rows = Rows(tf.distribute.get_replica_context().replica_id_in_sync_group * count, count, replicas * count)
        views, attack_seed = make_views(phase.views, phase.augmentation, images, seed, rows=rows)
        batch = self.trainer.step_input(views, labels, attack_seed)
        if sample_weight is None:
            return batch
        weights = tf.reshape(tf.cast(sample_weight, tf.float32), [-1])
        return batch._replace(weights=tf.tile(weights, [len(phase.views)]))

    def _logits(self, images) -> tf.Tensor:
        return tf.cast(self.network(images, training=False)["logits"], tf.float32)

    def _check_images(self, x) -> None:
        """Compare the first images with `input_range`.

        Raises:
            InvalidInputError: If they are outside.
        """
        first = _first_images(x)
        if first is None or not first.size:
            return
        if span := span_outside(first, self.input_range):
            raise InvalidInputError(
                f"images span [{span[0]:g}, {span[1]:g}] and input_range is {self.input_range}; hint: give the "
                "input_range that the model reads, and put other normalization inside the model"
            )


class _Averages(keras.callbacks.Callback):
    """Shows averaged weights after each epoch, to validation and to the callbacks that follow."""

    def on_epoch_begin(self, epoch, logs=None):
        self._show(False)

    def on_test_begin(self, logs=None):
        self._show(True)

    def on_epoch_end(self, epoch, logs=None):
        self._show(True)

    def _show(self, shown: bool) -> None:
        average, stored = self.model.trainer.average, self.model.average_shown
        average.shown = bool(tf.convert_to_tensor(stored))  # as a restored backup says
        average.show(shown)
        stored.assign(int(shown))


def range_that_is_read(model: keras.Model, given: str | None) -> str:
    """The range of images that a model reads: the given one, or that of its first layers, or `0..1`.

    Raises:
        InvalidInputError: If there is no such range.
    """
    if given is not None:
        check_input_range(given)
        return given
    declared = range_of_layers(model)
    return "0..1" if declared is None else declared.name


def single_phase(method: Method) -> Phase:
    """The phase of a method of one phase whose batches need nothing but images and labels.

    Raises:
        InvalidInputError: If the method has several phases, or needs more.
    """
    phases = method.phases()
    hint = "hint: use keras_rcl.train, which runs whole recipes"
    if len(phases) > 1 or phases[0].refresh:
        names = ", ".join(phase.name for phase in phases)
        raise InvalidInputError(f"method {method.name} has several phases ({names}), and fit runs one; {hint}")
    (phase,) = phases
    views = [view for view in phase.views if isinstance(view, Adversarial)]
    if phase.warm_views or any(not view.crafted or view.attack.proxy for view in views):
        raise InvalidInputError(f"method {method.name} reads stored adversarial images, and fit has none; {hint}")
    if not {"encoder", "classifier"} <= set(phase.trains):
        raise InvalidInputError(f"method {method.name} trains {' and '.join(phase.trains)} alone; {hint}")
    return phase


def evaluation_attack(phase: Phase) -> Attack:
    """PGD-10 with the norm and the radius of a phase, or at 8/255 if it has neither an attack nor bounds."""
    attacks = [view.attack for view in phase.views if isinstance(view, Adversarial)]
    if phase.worst_case:
        return PGD(epsilon=phase.worst_case.radius)
    norm = attacks[-1].norm if attacks else None
    if norm is None or norm not in get_args(Norm):
        return PGD()
    return PGD(epsilon=attacks[-1].epsilon, norm=norm)


def steps_per_epoch(given: dict[str, Any]) -> int | None:
    """The number of steps in an epoch of `fit`, by its arguments; None if it is not known."""
    x: Any = given.get("x")
    if given.get("steps_per_epoch"):
        return int(given["steps_per_epoch"])
    if isinstance(x, tf.data.Dataset):
        count = int(x.cardinality())
        return count if count > 0 else None
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches
    if not hasattr(x, "shape"):
        return None
    count = len(x)
    if given.get("validation_split") and given.get("validation_data") is None:
        count = math.floor(count * (1.0 - given["validation_split"]))
    return -(-count // (given.get("batch_size") or 32))


def _checked(attack: Attack) -> Attack:
    if not attack.measures_training or attack.targeted:
        raise InvalidInputError(
            f"{attack.label} does not attack the model's own logits in a ball, away from the label; hint: choose one "
            "that does, such as PGD"
        )
    return attack


def _check_embedding(model: keras.Model, phase: Phase, own: OwnModel) -> None:
    reads = {view.attack.target_output for view in phase.views if isinstance(view, Adversarial)}
    if (is_contrastive(phase) or phase.detach_classifier or reads - {"logits"}) and not own.has_embedding:
        raise InvalidInputError(
            f"{phase.name} reads an embedding and model {model.name} has no Dense layer before its logits; hint: give "
            "embedding, the name of a layer with output [N, E], of a functional or Sequential model"
        )


def _needs_epochs(phase: Phase) -> bool:
    numbers: list[Any] = [term.weight for term in phase.terms]
    numbers += [view.growth for view in phase.views if isinstance(view, Adversarial)]
    if phase.worst_case:
        numbers.append(phase.worst_case.epsilon)
    return phase.awp.warmup_epochs > 0 or any(isinstance(number, Ramp) for number in numbers)


def _first_images(x) -> np.ndarray | None:
    """Some of the images that `fit` is given, if they can be read more than once."""
    if isinstance(x, tf.data.Dataset):
        for element in x.take(1):
            return np.asarray(element[0] if isinstance(element, tuple) else element)
    if isinstance(x, keras.utils.PyDataset):
        return np.asarray(x[0][0])
    return np.asarray(x[:256]) if hasattr(x, "shape") and len(x.shape) == 4 else None
