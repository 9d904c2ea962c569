"""The geometry of a classifier's embeddings on images and under attack, for a record."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_rcl.attacks import craft
from keras_rcl.errors import InvalidInputError
from keras_rcl.measures.embedding_geometry import geometry
from keras_rcl.vocabulary.attacks import PGD, Attack, describe

SPACES = ("embedding", "projection")
BATCH = 64


def embedding_geometry(
    outputs: Callable[[str], Callable | None],
    images: np.ndarray,
    labels: np.ndarray,
    attacks: Sequence[Attack] = (),
    *,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Return `measures.embedding_geometry.geometry` of each space that a classifier exposes.

    The distance to adversarial images is under PGD-10 in the ball of the first attack, whatever the attacks are, so
    that it costs little and compares across records. All images are attacked, also those that are misclassified before.

    Args:
        outputs: `logits`, `embedding` or `projection` -> function of images, or None.
        images: float32 [N, H, W, C] in [0, 1].
        labels: [N].
        attacks: of the evaluation.
        seed: of the attack.

    Returns:
        The number of images, the attack (None where the model has no gradient), and the measures of each space; None
        if the model exposes neither space.
    """
    exposed = {space: call for space in SPACES if (call := outputs(space)) is not None}
    if not exposed:
        return None
    attack, adversarial = None, None
    if attacks:
        ball = attacks[0].threat_model
        attack = PGD(norm=ball.norm, epsilon=ball.epsilon, protocol=ball.protocol, num_steps=10)
        logits = outputs("logits")
        crafted = tf.function(lambda x, y: craft(attack, logits, x, y, seed=seed), autograph=False)
        try:
            adversarial = _in_batches(crafted, images, np.asarray(labels, np.int32))
        except InvalidInputError:  # of a model without a gradient, which was attacked without one
            attack = None
    found: dict[str, Any] = {"images": len(images), "attack": attack and describe(attack)}
    for space, call in exposed.items():
        run = tf.function(call, autograph=False)
        moved = None if adversarial is None else _in_batches(run, adversarial)
        measured = geometry(labels, _in_batches(run, images), moved)
        found[space] = {name: value if value is None else round(value, 6) for name, value in measured.items()}
    return found


def _in_batches(call: Callable, *arrays: np.ndarray) -> np.ndarray:
    """`call` on `BATCH` rows at a time."""
    starts = range(0, len(arrays[0]), BATCH)
    return np.concatenate([call(*(array[start : start + BATCH] for array in arrays)).numpy() for start in starts])
