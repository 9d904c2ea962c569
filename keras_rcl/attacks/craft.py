"""`craft`: adversarial examples for training and for evaluation."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_rcl.attacks.auto_pgd import auto_pgd
from keras_rcl.attacks.carlini_wagner import carlini_wagner
from keras_rcl.attacks.corruptions import corrupted
from keras_rcl.attacks.fab import fab
from keras_rcl.attacks.gradient_ascent import (
    Crafted,
    Numbers,
    Round,
    embedding_attack,
    gradient_attack,
    joint_attack,
    numbers_of,
    supcon_attack,
)
from keras_rcl.attacks.hop_skip_jump import hop_skip_jump
from keras_rcl.attacks.nearest import ddn, deepfool, fmn, within
from keras_rcl.attacks.noise import noise
from keras_rcl.attacks.norms import choose, project
from keras_rcl.attacks.rays import rays
from keras_rcl.attacks.smoothed import noise_draw, smoothed
from keras_rcl.attacks.spatial import spatial
from keras_rcl.attacks.square import square
from keras_rcl.attacks.surrogates import SURROGATES, fools, surrogate_of
from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime.gradients import operation_without_gradient, without_tapes
from keras_rcl.vocabulary.attacks import BIM, FGSM, MIFGSM, PGD, Attack, Embedding, SmoothedAttack, Transfer
from keras_rcl.vocabulary.labels import class_labels
from keras_rcl.vocabulary.pixels import check_pixel_range
from keras_rcl.vocabulary.registry import find


def craft(attack: Attack, logits_fn: Callable, x, labels, *, seed=0, support=None) -> tf.Tensor:
    """Craft adversarial examples of x.

    Args:
        attack: the hyper-parameters, such as `PGD(epsilon="8/255", num_steps=20)`.
        logits_fn: any callable, images [N, H, W, C] -> logits [N, K], in inference mode. Its weights do not change.
            For an attack whose `target_output` is `embedding` or `projection` it gives that output, [N, D], or a tuple
            if the attack reads several. For an attack with a `proxy`, it is that model's.
        x: float32 images in [0, 1], [N, H, W, C].
        labels: [N], the true classes, as integers; also [N, 1], one-hot rows [N, K] or whole floats. For a targeted
            attack the classes to reach.
        seed: an int, or two ints [2]. Each example's random numbers depend on this seed and on its own pixels alone,
            so that neither its neighbours nor its place in the batch matter.
        support: labels [M] and projections [M, D] that the SupCon attack contrasts with; those of x if None.

    Returns:
        Images [N, H, W, C] within the ball around x and within [0, 1], in the order of x, cut off from any tape.

    Raises:
        InvalidInputError: if x is not a batch of images in [0, 1], a label is outside the classes, no gradient reaches
            the pixels, or an attack that does not read logits has to choose among restarts.

    Example:
        A linear classifier of one pixel: class 1 where the pixel is above 0.5. FGSM moves it down by epsilon.

        >>> import tensorflow as tf
        >>> from keras_rcl.vocabulary.attacks import FGSM
        >>> def logits_fn(images):
        ...     pixel = tf.reshape(images, [-1, 1])
        ...     return tf.concat([0.5 - pixel, pixel - 0.5], axis=1)
        >>> x = tf.constant([[[[0.625]]]])
        >>> craft(FGSM(epsilon=0.25), logits_fn, x, [1]).numpy().ravel().tolist()
        [0.375]
    """
    return craft_and_count(attack, logits_fn, x, labels, seed=seed, support=support).images


def craft_and_count(
    attack: Attack, logits_fn: Callable, x, labels, *, seed=0, support=None, start=None, numbers=None
) -> Crafted:
    """`craft`, together with each example's share of zero gradients, averaged over rounds.

    Of several rounds and members, each example keeps the image that fools the classifier, and among equals the one of
    the highest loss.

    Args:
        attack: as of `craft`, like the arguments that are not described here.
        logits_fn: see `attack`.
        x: see `attack`.
        labels: see `attack`.
        seed: see `attack`.
        support: see `attack`.
        start: images [N, H, W, C] of ball and box where BIM, or PGD of one restart, starts instead of its own start.
        numbers: as of `craft_round`, for an attack of one round.

    Returns:
        The images [N, H, W, C], and their shares of zero gradients [N].

    Raises:
        InvalidInputError: as of `craft`.
    """
    if is_one_round(attack):
        return craft_round(attack, logits_fn, x, labels, seed=seed, support=support, start=start, numbers=numbers)
    if attack.target_output != "logits":
        raise InvalidInputError(
            f"{attack.label} reads the {attack.target_output}, which does not tell which restart fools; use one restart"
        )
    x, labels = _as_batch(x, labels)
    if x.shape[0] == 0:
        return Crafted(x, tf.zeros([0]))
    num_classes = int(logits_fn(x[:1]).shape[-1])
    check_classes(num_classes, labels)
    members = [member.for_classes(num_classes) for member in attack.for_classes(num_classes).members]
    loss = getattr(attack, "loss", "")
    surrogate = surrogate_of(loss if loss in SURROGATES else "logit_margin", labels, attack.targeted)

    def attempt(member, number, best, best_rank, zeros):
        crafted = craft_round(member, logits_fn, x, labels, seed=seed, round=number)
        logits = tf.cast(logits_fn(crafted.images), tf.float32)
        other = fools(logits, labels)
        fooled = ~other if attack.targeted else other
        rank = tf.stack([tf.cast(fooled, tf.float32), surrogate(logits)], axis=1)
        better = (rank[:, 0] > best_rank[:, 0]) | ((rank[:, 0] == best_rank[:, 0]) & (rank[:, 1] > best_rank[:, 1]))
        best = choose(better, crafted.images, best)
        return number + 1, best, tf.where(better[:, None], rank, best_rank), zeros + crafted.zero_gradients

    best, rank, zeros = x, tf.fill([tf.shape(x)[0], 2], -np.inf), tf.zeros_like(x[:, 0, 0, 0])
    shapes = (tf.TensorShape([]), x.shape, tf.TensorShape([x.shape[0], 2]), x.shape[:1])
    for member in members:
        _, best, rank, zeros = tf.while_loop(
            lambda number, *_, member=member: number < member.num_rounds,
            functools.partial(attempt, member),
            (0, best, rank, zeros),
            maximum_iterations=member.num_rounds,
            shape_invariants=shapes,
        )
    return Crafted(tf.stop_gradient(best), zeros / sum(member.num_rounds for member in members))


def is_one_round(attack: Attack) -> bool:
    """Whether `craft_round` is all of an attack: one restart of one member, toward one class."""
    return attack.num_rounds == 1 and attack.members == (attack,) and attack.min_classes == 2


# Ten parameters: what one round may be given, each with a default.
def craft_round(
    attack: Attack, logits_fn: Callable, x, labels, *, seed=0, round=0, support=None, start=None, numbers=None, width=0
) -> Crafted:
    """One round of one attack that is not an ensemble: one restart, toward one target class if it has several.

    Args:
        attack: as of `craft_and_count`, like the arguments that are not described here.
        logits_fn: see `attack`.
        x: see `attack`.
        labels: see `attack`.
        seed: see `attack`.
        round: int scalar below `attack.num_rounds`; a tensor lets all rounds share one graph. Where `mixes_rounds`, it
            may be one per image, [N].
        support: see `attack`.
        start: see `attack`.
        numbers: what replaces the numbers of an attack that `sharing` names; tensors let attacks share one graph.
        width: how many images the model may be given at once, if an attack can use more than N; 0 for N.

    Returns:
        As of `craft_and_count`.

    Raises:
        InvalidInputError: as of `craft`.
    """
    x, labels = _as_batch(x, labels)
    attack.check_images(x.shape[1:])
    if x.shape[0] == 0:
        return Crafted(x, tf.zeros([0]))

    count = tf.shape(x)[0] if x.shape[0] is None else x.shape[0]
    split = _splits(attack, x.shape[0], support)

    def attacked(x, labels, round, start=None):
        given = Round(None, round, start, support, numbers, width // 2 if split else width)
        return _craft_round(attack, logits_fn, x, labels, seed, given)

    given = (x, labels, tf.broadcast_to(round, [count]), *(() if start is None else (start,)))
    if not split:
        return attacked(*given)
    # Of an odd number both halves hold the middle image, so that neither is empty: oneDNN's fused convolutions fail on
    # an empty batch.
    parts = slice((count + 1) // 2), slice(count // 2, None)
    halves = [[values[part] for values in given] for part in parts]
    traced = tf.function(attacked, autograph=False).get_concrete_function(*halves[0])  # once for both
    first, second = (without_tapes(traced, *half) for half in halves)
    apart = zip(first, second, strict=True)
    return Crafted(*(tf.concat([values[: count // 2], others], axis=0) for values, others in apart))


SMALLEST_HALF = 16
"""The smallest half of a batch for which an attack in two halves is faster."""


def _splits(attack: Attack, count: int | None, support) -> bool:
    """Whether a batch is attacked in two halves side by side, which keeps a CPU's cores busy between operations.

    It is not if images of the batch are contrasted with each other; nor in eager mode, where one half would wait for
    the other; nor on a GPU, which one batch fills. A batch of unknown size (`count` None) is assumed to be large.
    """
    small = count is not None and count < 2 * SMALLEST_HALF
    if _contrasts(attack, support) or tf.executing_eagerly() or small:
        return False
    return not tf.config.list_logical_devices("GPU")


def _contrasts(attack: Attack, support) -> bool:
    """Whether images of a batch are contrasted with each other."""
    return isinstance(attack.target_output, tuple) or (attack.name == "supcon" and support is None)


def mixes_rounds(attack: Attack, support=None) -> bool:
    """Whether the images of one batch can be in different rounds of an attack: arguments as of `craft_round`.

    A registered attack is given one number for all of them.
    """
    inner = attack.attack if isinstance(attack, Transfer) else attack
    return inner.name in RUNNERS and not _contrasts(attack, support)


def _craft_round(attack: Attack, logits_fn: Callable, x, labels, seed, round: Round) -> Crafted:
    """`craft_round` of a batch as one; the seeds of `round` are made here."""
    restart = tf.cast(round.number // (attack.num_rounds // attack.num_restarts), tf.int64)
    # 2^32 apart, so that the restarts of one seed are not those of the next.
    seeds = example_seeds(x, seed) + tf.stack([tf.zeros_like(restart), restart], axis=-1) * 2**32

    def logits_of(images):
        # A SavedModel forgets the size of the batch, forwards and backwards; a reshape's gradient knows it again.
        outputs = logits_fn(tf.reshape(images, tf.shape(images)))
        if attack.target_output == "logits":
            check_classes(outputs.shape[-1], labels)
        return tf.nest.map_structure(
            lambda rows: tf.ensure_shape(tf.cast(rows, tf.float32), [images.shape[0], None]), outputs
        )

    try:
        return runner_of(attack)(logits_of, x, labels, attack, round._replace(seeds=seeds))
    except LookupError as error:
        if (operation := operation_without_gradient(error)) is None:
            raise
        raise InvalidInputError(
            f"{attack.label} needs gradients, and the model's operation {operation} has none; hint: use square or rays"
        ) from None


def _transfer(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: Transfer, round: Round) -> Crafted:
    """One round of the attack that is run on another model; `logits_fn` is that model's."""
    return runner_of(attack.attack)(logits_fn, x, labels, attack.attack, round)


def _smoothed(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: SmoothedAttack, round: Round) -> Crafted:
    """One round of the attack that is run on the smoothed classifier; all of its steps see the same noise."""
    noise = attack.sigma * tf.stack([noise_draw(x, round.seeds, number) for number in range(attack.num_draws)])
    return runner_of(attack.attack)(smoothed(logits_fn, noise), x, labels, attack.attack, round)


def sharing(attack: Attack) -> tuple[Attack, Numbers | None]:
    """An attack that stands for all that `craft_round` makes the same graph of, given their numbers.

    Args:
        attack: any attack that is not an ensemble.

    Returns:
        The attack that stands for them, with the default numbers, and the numbers of `attack`. For an attack whose
        numbers are part of its graph, the attack itself and None.
    """
    if isinstance(attack, Transfer):
        inner, numbers = sharing(attack.attack)
        return dataclasses.replace(attack, attack=inner), numbers  # type: ignore[arg-type]
    if attack.minimal:
        return attack.with_epsilon(1.0), Numbers(attack.epsilon)
    if attack.norm == "linf" and attack.name in ("apgd", "fab", "square"):
        return attack.with_epsilon(8 / 255), Numbers(attack.epsilon)
    # For l2, TensorFlow multiplies constants in another order than inputs, which changes the last bit.
    if not isinstance(attack, FGSM | BIM | MIFGSM | PGD | Embedding) or attack.norm == "l2":
        return attack, None
    if attack.name not in RUNNERS:  # a registered attack that is made of one of these
        return attack, None
    kind = PGD if isinstance(attack, FGSM | BIM) else type(attack)
    of_all = {field.name for field in dataclasses.fields(kind)} - {"name", "num_restarts", *Numbers._fields}
    return kind(**{name: getattr(attack, name) for name in of_all}), numbers_of(attack)


RUNNERS: dict[str, Callable[..., Crafted]] = {
    "fgsm": gradient_attack,
    "bim": gradient_attack,
    "mifgsm": gradient_attack,
    "pgd": gradient_attack,
    "embedding": embedding_attack,
    "supcon": supcon_attack,
    "joint": joint_attack,
    "apgd": auto_pgd,
    "fab": fab,
    "cw": carlini_wagner,
    "deepfool": within(deepfool),
    "ddn": within(ddn),
    "fmn": within(fmn),
    "square": square,
    "rays": rays,
    "hopskipjump": hop_skip_jump,
    "noise": noise,
    "spatial": spatial,
    "corruptions": corrupted,
    "transfer": _transfer,
    "smoothed": _smoothed,
}
"""Attack name -> its function `(logits_fn, x, labels, attack, round) -> Crafted`."""


def runner_of(attack: Attack) -> Callable[..., Crafted]:
    """The function of an attack, of those that are built in or registered.

    Raises:
        InvalidInputError: if there is none.
    """
    if attack.name in RUNNERS:
        return RUNNERS[attack.name]
    entry = find("attack", attack.name)
    if entry is None or entry.run is None:
        raise InvalidInputError(f"no attack is registered as {attack.name!r}; hint: call keras_rcl.register_attack")
    run = entry.run

    def registered(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack, round: Round) -> Crafted:
        found = run(logits_fn, x, labels, attack, round._replace(number=tf.reshape(round.number, [-1])[0]))
        images, zeros = found if isinstance(found, Crafted) else (found, tf.zeros_like(x[:, 0, 0, 0]))
        if attack.protocol == "pixel":
            images = project(tf.cast(images, x.dtype), x, attack.epsilon, attack.norm)
        return Crafted(tf.stop_gradient(images), zeros)

    return registered


def _as_batch(x, labels) -> tuple[tf.Tensor, tf.Tensor]:
    x = check_images(tf.convert_to_tensor(x))
    if tf.is_tensor(labels) and not hasattr(labels, "numpy"):  # within a graph, where values are not known
        if labels.shape.rank == 2:
            labels = labels[:, 0] if labels.shape[1] == 1 else tf.argmax(labels, axis=1)
        return tf.cast(x, tf.float32), tf.cast(labels, tf.int32)
    return tf.cast(x, tf.float32), tf.constant(class_labels(labels, count=x.shape[0]))


def check_classes(num_classes: int | None, labels) -> None:
    """Check that a classifier has at least two outputs, and that labels are among its classes, where they are known.

    Args:
        num_classes: K, the width of the logits.
        labels: [N], integers.

    Raises:
        InvalidInputError: if K is 1, or a label is outside the K classes.
    """
    if num_classes == 1:
        raise InvalidInputError(
            "the model gives 1 number per image, and a classifier gives one per class; hint: of the logit z of class "
            "1 make two, `lambda images: keras.ops.pad(model(images), ((0, 0), (1, 0)))`, which are [0, z], or call "
            "keras_rcl.evaluate"
        )
    if num_classes is not None and not (tf.is_tensor(labels) and not hasattr(labels, "numpy")):
        class_labels(labels, num_classes)


def check_images(x):
    """Check that x is a batch of float images in [0, 1]; the range is checked in eager mode alone.

    Args:
        x: images [N, H, W, C], a tensor or an array.

    Returns:
        The images; what is outside [0, 1] by rounding is clipped.

    Raises:
        InvalidInputError: if the rank, dtype or range is another one.
    """
    if len(x.shape) != 4:
        raise InvalidInputError(f"images have shape {tuple(x.shape)}; give a batch [N, H, W, C]")
    dtype = tf.as_dtype(x.dtype)
    if not dtype.is_floating:
        raise InvalidInputError(
            f"images are {dtype.name}; attacks run on float pixels in [0, 1]; hint: divide 0-255 by 255; if the model "
            "reads 0-255 itself, call keras_rcl.evaluate, or attack `lambda images: model(255 * images)`"
        )
    if not tf.executing_eagerly() or x.shape[0] == 0:
        return x
    low, high = float(tf.reduce_min(x)), float(tf.reduce_max(x))
    check_pixel_range(low, high, dtype.name)
    if low >= 0 and high <= 1:
        return x
    return tf.clip_by_value(x, 0, 1) if tf.is_tensor(x) else np.clip(x, 0, 1)


def example_seeds(x: tf.Tensor, seed) -> tf.Tensor:
    """[N, 2] stateless seeds, a function of the seed and of each image's own bits: independent of batch and order."""
    base = tf.cast(tf.reshape(tf.stack([0, seed]) if np.ndim(seed) == 0 else seed, [2]), tf.int64)
    bits = tf.cast(tf.reshape(tf.bitcast(x, tf.int32), [tf.shape(x)[0], -1]), tf.int64)
    # A fixed random linear form over the integers modulo 2^64: exact, so the same in whatever order it is summed.
    form = np.random.default_rng(0).integers(1, 2**62, size=int(np.prod(x.shape[1:])), dtype=np.int64)
    digest = tf.reduce_sum(bits * form, axis=1)
    return tf.stack([digest + base[0], tf.zeros_like(digest) + base[1]], axis=1)
