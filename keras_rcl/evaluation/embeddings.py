"""The geometry of a classifier's embeddings on images and under attack, for a record."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_rcl.attacks import craft_and_count
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.robustness import Evaluator
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
    evaluator: Evaluator | None = None,
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
        evaluator: of attacks that read the same logits, whose graphs are used where they are those of PGD-10.

    Returns:
        The number of images, the attack (None where the model has no gradient), and the measures of each space; None
        if the model exposes neither space.
    """
    exposed = {space: call for space in SPACES if (call := outputs(space)) is not None}
    if not exposed:
        return None
    attack, moved = None, {}
    batch, classes = tf.TensorSpec([None, *images.shape[1:]], tf.float32), tf.TensorSpec([None], tf.int32)
    embed = tf.function(lambda x: {space: call(x) for space, call in exposed.items()}, [batch], autograph=False)
    if (ball := next((attack.threat_model for attack in attacks if attack.threat_model), None)) is not None:
        attack = PGD(norm=ball.norm, epsilon=ball.epsilon, protocol=ball.protocol, num_steps=10)
        crafted = evaluator and evaluator.with_attacks([attack], seed).one_round(0)
        if crafted is None:
            logits = outputs("logits")

            @tf.function(input_signature=[batch, classes, tf.TensorSpec([], tf.int64)], autograph=False)
            def crafted(x, y, seed):
                return craft_and_count(attack, logits, x, y, seed=seed)

        try:
            attacked = _in_batches(lambda x, y: crafted(x, y, seed)._asdict(), images, np.asarray(labels, np.int32))
            moved = _in_batches(embed, attacked["images"])
        except InvalidInputError:  # of a model without a gradient, which was attacked without one
            attack = None
    found: dict[str, Any] = {"images": len(images), "attack": attack and describe(attack)}
    for space, embedded in _in_batches(embed, images).items():
        measured = geometry(labels, embedded, moved.get(space))
        found[space] = {name: value if value is None else round(value, 6) for name, value in measured.items()}
    return found


def _in_batches(call: Callable, *arrays: np.ndarray) -> dict[str, np.ndarray]:
    """`call` on `BATCH` rows at a time."""
    starts = range(0, len(arrays[0]), BATCH)
    found = [call(*(array[start : start + BATCH] for array in arrays)) for start in starts]
    return {name: np.concatenate([rows[name].numpy() for rows in found]) for name in found[0]}
