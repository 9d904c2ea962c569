"""The geometry in a record: of the spaces that a model tells, and of an attack that can be made on it."""

import numpy as np
import tensorflow as tf

from keras_rcl.evaluation.embeddings import BATCH, embedding_geometry
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.vocabulary.attacks import FGSM, PGD, Square

LABELS = np.arange(12) % 3
IMAGES = np.random.default_rng(0).uniform(0.2, 0.8, (12, 2, 2, 1)).astype(np.float32)
WEIGHTS = tf.constant(np.random.default_rng(1).normal(size=(4, 3)), tf.float32)


def embedding(x):
    return tf.reshape(tf.cast(x, tf.float32), [-1, 4]) @ WEIGHTS


def test_the_distance_is_that_of_pgd_at_the_first_attacks_radius():
    outputs = {"logits": embedding, "embedding": embedding, "projection": None}.get
    near = embedding_geometry(outputs, IMAGES, LABELS, [FGSM(epsilon=1 / 255), FGSM(epsilon=0.5)])
    far = embedding_geometry(outputs, IMAGES, LABELS, [FGSM(epsilon=16 / 255)])
    assert near["attack"] == "PGD-10 linf 1/255" and near["images"] == 12 and "projection" not in near
    distances = [found["embedding"].pop("clean_to_adversarial_distance") for found in (near, far)]
    assert 0 < distances[0] < distances[1]
    assert near["embedding"] == far["embedding"]


def test_an_evaluator_of_the_same_logits_shares_its_graph_of_pgd():
    traced = []

    def logits(x):
        traced.append(x.shape)
        return embedding(x)

    evaluator = Evaluator(logits, [PGD(epsilon=0.1, num_steps=3)])
    evaluator.one_round(0)(IMAGES, LABELS.astype(np.int32), 0)
    before, outputs, attacks = len(traced), {"logits": logits, "embedding": embedding}.get, [FGSM(epsilon=0.2)]
    shared = embedding_geometry(outputs, IMAGES, LABELS, attacks, seed=7, evaluator=evaluator)
    assert len(traced) == before
    assert shared == embedding_geometry(outputs, IMAGES, LABELS, attacks, seed=7)
    assert shared["embedding"]["clean_to_adversarial_distance"] > 0


def test_a_model_without_a_gradient_has_no_distance():
    def rounded(x):
        return tf.round(embedding(x))

    found = embedding_geometry({"logits": rounded, "embedding": embedding}.get, IMAGES, LABELS, [Square()])
    other = embedding_geometry({"logits": embedding, "embedding": embedding}.get, IMAGES, LABELS)
    assert other["attack"] is None and other["embedding"]["clean_to_adversarial_distance"] is None
    assert found["embedding"]["uniformity"] == other["embedding"]["uniformity"]


def test_batches_of_two_sizes_share_a_graph():
    images, labels, traced = np.tile(IMAGES, (6, 1, 1, 1)), np.tile(LABELS, 6), []

    def counted(x):
        traced.append(x.shape)
        return embedding(x)

    found = embedding_geometry({"logits": embedding, "embedding": counted}.get, images, labels, [FGSM()])
    assert found["images"] == 72 > BATCH and len(traced) == 1


def test_a_model_that_tells_no_embedding_has_none():
    assert embedding_geometry({"logits": embedding}.get, IMAGES, LABELS, [FGSM()]) is None
