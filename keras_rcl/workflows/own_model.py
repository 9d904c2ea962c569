"""A user's own model and data, and `craft`, `audit` and `verify` on them."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.attacks import NUMBERS, check_classes, check_images, craft_round, sharing
from keras_rcl.attacks import craft as craft_on_pixels
from keras_rcl.data.arrays import read_arrays, to_pixels
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation import audit as auditing
from keras_rcl.evaluation.certification import ATTACKS, Certification, Certifier
from keras_rcl.evaluation.checks import Subject
from keras_rcl.evaluation.input_range import INPUT_RANGES, InputRange
from keras_rcl.model_io.classifier import Classifier, load_classifier
from keras_rcl.model_io.in_memory import ModelInMemory
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.vocabulary.attacks import Attack, as_attack
from keras_rcl.vocabulary.claim import AuditBudget, Claim, as_claim
from keras_rcl.vocabulary.labels import class_labels
from keras_rcl.vocabulary.threat import Norm, ThreatModel

Model = Any
"""A Keras model, a callable, or the path of a SavedModel or `.keras` file."""


class ModelAndData(NamedTuple):
    """A model and the data that it is tested on.

    Attributes:
        classifier: The model as a function of images in [0, 1], read in the range that it was trained in.
        images: float32 [N, H, W, C] in [0, 1].
        labels: int32 [N].
        class_names: K names.
        input_range: The range of the images that the model reads, and why.
        notes: What was assumed, one line each.
    """

    classifier: Classifier
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    input_range: InputRange
    notes: tuple[str, ...]


def read_classifier(
    model: Model, image_shape: Sequence[int], *, input_range: str | None = None, output: str | None = None
) -> Classifier:
    """Return a model in memory or on disk, or one that was read, as a `Classifier` of images of a shape.

    Raises:
        InvalidInputError: If it does not classify such images.
    """
    if not isinstance(model, (str, Path, Classifier)):
        return load_classifier(ModelInMemory(model, image_shape), input_range=input_range, output=output)
    if not isinstance(model, Classifier):
        model = load_classifier(model, input_range=input_range, output=output)
    classifier, wanted = model, model.image_shape
    if any(want is not None and want != have for want, have in zip(wanted, image_shape, strict=True)):
        raise InvalidInputError(
            f"{classifier.path} takes images of shape {wanted}, but these have {tuple(image_shape)}; hint: resize the "
            "images, or give those that the model was trained on"
        )
    return classifier


def read_model_and_data(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    input_range: str | None = None,
    output: str | None = None,
    class_names: Sequence[str] = (),
) -> ModelAndData:
    """Read a model with images and labels, in whatever form a user has them; see `keras_rcl.evaluate`.

    Raises:
        InvalidInputError: If model, images or labels cannot be used, do not fit each other, or the range that the model
            reads is not clear.
    """
    if isinstance(model, (str, Path)):
        model = load_classifier(model, input_range=input_range, output=output)
    given = read_arrays(x, y, image_shape=_declared_shape(model) if isinstance(x, (str, Path)) else None)
    images, unit = to_pixels(given.images)
    classifier = read_classifier(model, images.shape[1:], input_range=input_range, output=output)
    if given.labels is None:
        raise InvalidInputError("there are no labels; hint: give y, or a data set of images and labels")
    named = bool(classifier.contract.get("class_names"))
    names = tuple(class_names) or (classifier.class_names if named else given.class_names) or classifier.class_names
    labels = class_labels(given.labels, classifier.num_classes, count=len(images), class_names=names)
    classifier, found = classifier.as_trained(images, labels, (unit, "the range that the images are given in"))
    scaled = "" if unit == "0..1" else f"images were given in {unit}; epsilon is in units of [0, 1]"
    return ModelAndData(
        classifier=classifier,
        images=images,
        labels=labels,
        class_names=names if len(names) == classifier.num_classes else classifier.class_names,
        input_range=found,
        notes=tuple(filter(None, (classifier.note, found.text, scaled))),
    )


def _declared_shape(model: Any) -> tuple[int | None, ...] | None:
    """The shape of the images that a model declares, if it does."""
    if isinstance(model, Classifier):
        return model.image_shape
    inputs = getattr(model, "inputs", None)
    shape = tuple(inputs[0].shape[1:]) if inputs else ()
    return shape if len(shape) == 3 else None


# --- craft ------------------------------------------------------------------------------------------------------------

LONG = 200
"""The number of passes from which an attack on a plain callable is compiled, which takes a second."""

_KEPT = "_keras_rcl_crafting"
"""The attribute of a Keras model that holds its classifiers and compiled attacks, so that these end with the model."""


def craft(
    attack: Attack | str, model: Model, x, y, *, seed: Any = 0, support: Any = None, input_range: str | None = None
) -> tf.Tensor:
    """Craft adversarial examples of images.

    Attacks on a Keras model are compiled at the first call and kept with the model. Within a `tf.function`, images must
    be float32 in [0, 1], and the model is called on them as they are.

    Args:
        attack: The attack, such as `PGD(epsilon="8/255", num_steps=20)`, or its text, such as `pgd-20`.
        model: A Keras model, the path of a SavedModel or `.keras` file, or any callable from images [N, H, W, C] in
            [0, 1] to logits [N, K], in inference mode. Its weights do not change. For an attack whose `target_output`
            is `embedding` or `projection` it is a callable that gives that output, [N, D].
        x: Images [N, H, W, C]: uint8, or floats in 0..1; for a Keras model or a path also in 0..255 or -1..1.
        y: [N], the true classes, as integers; also [N, 1] or one-hot. For a targeted attack the classes to reach.
        seed: An int, or two ints [2]. Random numbers of an image depend on the seed and its own pixels alone.
        support: Labels [M] and projections [M, D] that the SupCon attack contrasts with.
        input_range: The range of the images that a Keras model reads: `0..1`, `0..255` or `-1..1`. If it is not given,
            that of its first layers; if these do not tell, that of `x`.

    Returns:
        float32 images [N, H, W, C] in the range and order of x, within the ball: `epsilon` is in units of [0, 1],
        whatever the range.

    Raises:
        InvalidInputError: If the images are of another kind, a label is outside the classes, or no gradient reaches the
            pixels.

    Example:
        A linear classifier of one pixel: class 1 where the pixel is above 0.5. FGSM moves it down by epsilon.

        >>> import tensorflow as tf
        >>> import keras_rcl
        >>> def logits_fn(images):
        ...     pixel = tf.reshape(images, [-1, 1])
        ...     return tf.concat([0.5 - pixel, pixel - 0.5], axis=1)
        >>> x = tf.constant([[[[0.625]]]])
        >>> keras_rcl.craft(keras_rcl.FGSM(epsilon=0.25), logits_fn, x, [1]).numpy().ravel().tolist()
        [0.375]
    """
    attack = as_attack(attack)
    symbolic = tf.is_tensor(x) and not hasattr(x, "numpy")
    ours = isinstance(model, (str, Path, keras.Model))
    if symbolic or not ours or attack.target_output != "logits" or attack.proxy is not None:
        function = (lambda images: model(images, training=False)) if isinstance(model, keras.Model) else model
        if symbolic or support is not None or attack.target_output != "logits" or attack.cost < LONG:
            return craft_on_pixels(attack, function, x, y, seed=seed, support=support)
        return _craft_compiled(attack, function, {}, x, y, seed)
    given = read_arrays(x, y)
    images, unit = to_pixels(given.images)
    if not len(images):
        return tf.convert_to_tensor(given.images)
    kept = model.__dict__.setdefault(_KEPT, {}) if isinstance(model, keras.Model) else {}
    key = (images.shape[1:], input_range)
    if key not in kept:
        kept[key] = read_classifier(model, images.shape[1:], input_range=input_range)
    classifier = kept[key]
    if classifier.declared is None:
        classifier = classifier.read_as(unit)
    scale, offset = INPUT_RANGES[unit]
    compiled = kept.setdefault((*key, classifier.input_range, "compiled"), {})
    adversarial = _craft_compiled(
        attack, classifier.logits, compiled, images, given.labels, seed, num_classes=classifier.num_classes
    )
    return adversarial if unit == "0..1" else scale * adversarial + offset


def _craft_compiled(
    attack: Attack, logits_fn: Callable, compiled: dict, x, y, seed, *, num_classes: int | None = None
) -> tf.Tensor:
    """Run all rounds of an attack, each on the images that are still robust; each member is traced once."""
    x = np.asarray(check_images(tf.convert_to_tensor(x)), np.float32)
    attack.check_images(x.shape[1:])
    if not len(x):
        return tf.constant(x)
    num_classes = num_classes or int(logits_fn(x[:1]).shape[-1])
    labels = class_labels(y, count=len(x))
    check_classes(num_classes, labels)
    seeds = np.array([0, seed] if np.ndim(seed) == 0 else seed, np.int64)
    best, loss, left = x.copy(), np.full(len(x), -np.inf), np.arange(len(x))

    def step_of(member: Attack) -> Callable:
        shared, numbers = sharing(member)
        if shared not in compiled:
            signature = [
                tf.TensorSpec([None, *x.shape[1:]], tf.float32),
                tf.TensorSpec([None], tf.int32),
                tf.TensorSpec([2], tf.int64),
                tf.TensorSpec([], tf.int32),
                NUMBERS if numbers else (),
            ]

            def step(images, labels, seeds, round, numbers):
                found = craft_round(
                    member, logits_fn, images, labels, seed=seeds, round=round, numbers=numbers or None
                ).images
                return found, logits_fn(found)

            compiled[shared] = tf.function(step, signature, autograph=False)
        return functools.partial(compiled[shared], numbers=numbers or ())

    for member in (one.for_classes(num_classes) for one in attack.for_classes(num_classes).members):
        for number in range(member.num_rounds):
            if not len(left):
                break
            found, logits = step_of(member)(x[left], labels[left], seeds, np.int32(number))
            rank, fooled = _rank(logits.numpy(), labels[left], member.targeted)
            better = (rank > loss[left]) | fooled
            best[left[better]], loss[left[better]] = found.numpy()[better], rank[better]
            left = left[~fooled]
    return tf.constant(best)


def _rank(logits: np.ndarray, labels: np.ndarray, targeted: bool) -> tuple[np.ndarray, np.ndarray]:
    """The logit margin of each image, larger for a better attack, and whether the attack has reached its goal."""
    rows = np.arange(len(labels))
    own = logits[rows, labels]
    others = logits.copy()
    others[rows, labels] = -np.inf
    margin = np.where(np.isfinite(logits).all(axis=1), others.max(axis=1) - own, -np.inf)
    return (-margin, margin < 0) if targeted else (margin, logits.argmax(axis=1) != labels)


# --- audit and verify -------------------------------------------------------------------------------------------------


# Each of the keyword arguments is an independent choice with a default.
def audit(
    model: Model | Subject,
    x: Any,
    y: Any = None,
    claim: Claim | None = None,
    *,
    budget: AuditBudget = AuditBudget(),  # noqa: B008  a frozen value
    input_range: str | None = None,
    batch_size: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
    **others: Any,
) -> auditing.Audit:
    """Audit a claim about one's own model: whether it stands, falls, or is not shown.

    Args:
        model: As for `keras_rcl.evaluate`; or a `Subject`, which reads images in [0, 1].
        x: As for `keras_rcl.evaluate`; for a `Subject` float32 images [N, H, W, C] in [0, 1].
        y: As for `keras_rcl.evaluate`.
        claim: The claimed robust accuracy, with norm and epsilon.
        budget: How much to spend.
        input_range: As for `keras_rcl.evaluate`.
        batch_size: Images attacked at once.
        seed: The seed of all random draws.
        progress: Where progress is shown.
        **others: `evidence`, what a result record says of these images, and `journal`, where batches are stored.

    Returns:
        The verdict, with one finding per check.

    Raises:
        InvalidInputError: If model, images, labels or claim cannot be used.

    Example:
        >>> import keras_rcl
        >>> claim = keras_rcl.Claim(robust_accuracy=0.6, epsilon="8/255")  # doctest: +SKIP
        >>> result = keras_rcl.audit(model, x_test, y_test, claim)  # doctest: +SKIP
        >>> print(result.verdict, result.reason)  # doctest: +SKIP
    """
    claim = as_claim(claim)
    subject, images, labels = model, x, y
    if not isinstance(subject, Subject):
        read = read_model_and_data(model, x, y, input_range=input_range)
        images, labels = read.images, read.labels
        subject = Subject(
            logits=read.classifier.logits,
            embedding=read.classifier.outputs("embedding"),
            probabilities=read.classifier.gives_probabilities,
            doubts=read.input_range.doubts,
        )
    return auditing.audit(
        subject, images, labels, claim, budget=budget, batch_size=batch_size, seed=seed, progress=progress, **others
    )


# Each of the keyword arguments is an independent choice with a default.
def verify(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    epsilon: Any = "2/255",
    norm: Norm = "linf",
    method: str = "branch-and-bound",
    timeout: float = 180.0,
    attacks: Sequence[Attack] = ATTACKS,
    input_range: str | None = None,
    progress: Progress | None = None,
    **others: Any,
) -> Certification:
    """Prove for which images no perturbation within a ball changes the class of one's own Keras model.

    Args:
        model: A functional or sequential Keras model, or the path of a `.keras` file or of an export.
        x: As for `keras_rcl.evaluate`.
        y: As for `keras_rcl.evaluate`.
        epsilon: The radius in units of [0, 1], such as "2/255", or a list of radii.
        norm: The norm of the ball, `linf`, `l2` or `l1`.
        method: The most expensive method that is tried, see `Certifier`.
        timeout: Seconds of branch and bound per image.
        attacks: Run first, see `Certifier`.
        input_range: As for `keras_rcl.evaluate`.
        progress: Where progress is shown.
        **others: `batch_size`, `count`, `seed`, `float64` and `sound` of `Certifier`.

    Returns:
        The outcome of each image at each radius; `verified_accuracy` is the share that is proved robust.

    Raises:
        InvalidInputError: If model, images or labels cannot be used, or a layer has no bounds.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import keras_rcl
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> model.layers[-1].set_weights([np.zeros((16, 2)), np.array([1.0, 0.0])])  # always class 0
        >>> images, labels = np.full((2, 4, 4, 1), 0.5, np.float32), np.array([0, 1])
        >>> keras_rcl.verify(model, images, labels, epsilon="8/255", method="ibp", attacks=()).verified_accuracy
        0.5
    """
    read = read_model_and_data(model, x, y, input_range=input_range)
    network = read.classifier.pixel_network(read.images.shape[1:], linear=True)
    radii = [read_epsilon(radius, norm) for radius in (epsilon if isinstance(epsilon, (list, tuple)) else [epsilon])]
    usable = [attack for attack in attacks if attack.min_classes <= read.classifier.num_classes]
    certifier = Certifier(network, radii, norm=norm, method=method, timeout=timeout, attacks=usable, **others)
    return certifier(read.images, read.labels, progress=progress or Silent())


def read_epsilon(epsilon: Any, norm: Norm = "linf") -> float:
    """A radius in units of [0, 1].

    Raises:
        InvalidInputError: If it is none.
    """
    try:
        return ThreatModel(norm=norm, epsilon=epsilon).epsilon
    except InvalidInputError as error:
        raise InvalidInputError(f"epsilon {epsilon!r}: {error}") from None
