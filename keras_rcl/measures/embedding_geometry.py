"""What a space of embeddings looks like: measures of a bounded number of points, in NumPy and float64.

N points z_i of unit length in D dimensions, with labels. A positive pair is two different points of one label, a
negative pair two of different labels. A measure without a pair to look at is None.
"""

import numpy as np

POINTS = 256
"""How many images are looked at: the cost of all pairs grows with the square of it."""

MEASURES = (
    "alignment",
    "uniformity",
    "positive_margin_violations",
    "negative_margin_violations",
    "silhouette",
    "clean_to_adversarial_distance",
)


def alignment(labels: np.ndarray, points: np.ndarray, *, alpha: float = 2.0) -> float | None:
    """Mean over positive pairs of ||z_i - z_j||^alpha: 0 where each class is one point.

    Args:
        labels: integers [N].
        points: [N, D], of unit length.
        alpha: positive.

    Source: Wang and Isola 2020, section 4.1; positives are those of the labels, as SupCon has them.
    """
    positive, _ = _pairs(labels)
    return _mean(_squared_distances(points)[positive] ** (alpha / 2))


def uniformity(points: np.ndarray, *, t: float = 2.0) -> float | None:
    """log of the mean over pairs of two different points of exp(-t ||z_i - z_j||^2): the lower, the more spread.

    Args:
        points: [N, D], of unit length.
        t: positive.

    Source: Wang and Isola 2020, section 4.1.2. All points in one place have 0.
    """
    pairs = np.triu_indices(len(points), k=1)
    mean = _mean(np.exp(-t * _squared_distances(points)[pairs]))
    return None if mean is None else float(np.log(mean))


def margin_violations(
    labels: np.ndarray, points: np.ndarray, *, positive_margin: float = 0.5, negative_margin: float = 0.1
) -> tuple[float | None, float | None]:
    """Shares of positive pairs with z_i . z_j < m_p, and of negative pairs with z_i . z_j > m_n.

    These are the pairs on which the margin contrastive loss has a gradient (Wang eq. 4, with its margins).

    Args:
        labels: integers [N].
        points: [N, D], of unit length.
        positive_margin: m_p.
        negative_margin: m_n.
    """
    positive, negative = _pairs(labels)
    cosines = _cosines(points)
    return _mean(cosines[positive] < positive_margin), _mean(cosines[negative] > negative_margin)


def silhouette(labels: np.ndarray, points: np.ndarray) -> float | None:
    """Mean over points of (b_i - a_i) / max(a_i, b_i), in [-1, 1] (Rousseeuw 1987).

    a_i: the mean Euclidean distance to the other points of its label; b_i: the least, over other labels, of the mean
    distance to their points. A point that is alone with its label has 0.

    Args:
        labels: integers [N].
        points: [N, D].
    """
    from sklearn.metrics import silhouette_score

    if not 2 <= len(np.unique(labels)) < len(labels):
        return None
    return float(silhouette_score(np.asarray(points, np.float64), labels))


def clean_to_adversarial_distance(clean: np.ndarray, adversarial: np.ndarray) -> float:
    """Mean of ||z(x_i) - z(x_i')||_2: how far an attack moves an image's point; 2 is the other side of the sphere.

    Args:
        clean: [N, D], of the images; brought to unit length here.
        adversarial: [N, D], of the same images under attack; likewise.
    """
    return float(np.linalg.norm(_unit(adversarial) - _unit(clean), axis=1).mean())


def geometry(labels: np.ndarray, clean: np.ndarray, adversarial: np.ndarray | None = None) -> dict[str, float | None]:
    """All measures of one space, by name; all None where a point is not finite.

    Args:
        labels: integers [N].
        clean: [N, D]; brought to unit length here.
        adversarial: [N, D] of the same images under attack, likewise; none where there is no attack.
    """
    points = _unit(clean)
    if not np.isfinite(points).all():
        return dict.fromkeys(MEASURES)
    return dict(
        zip(
            MEASURES,
            (
                alignment(labels, points),
                uniformity(points),
                *margin_violations(labels, points),
                silhouette(labels, points),
                None if adversarial is None else clean_to_adversarial_distance(clean, adversarial),
            ),
            strict=True,
        )
    )


def _unit(points: np.ndarray) -> np.ndarray:
    """Each row at unit length, in float64; one of zeros stays."""
    points = np.asarray(points, np.float64)
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(lengths > 0, lengths, 1.0)


def _pairs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool [N, N]: the positive and the negative pairs, each once, above the diagonal."""
    labels = np.asarray(labels)
    same, above = labels[:, None] == labels[None, :], np.triu(np.ones((len(labels), len(labels)), bool), k=1)
    return same & above, ~same & above


def _cosines(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, np.float64)
    return points @ points.T


def _squared_distances(points: np.ndarray) -> np.ndarray:
    """||z_i - z_j||^2 = |z_i|^2 + |z_j|^2 - 2 z_i . z_j, cut at 0, which rounding may fall below."""
    cosines = _cosines(points)
    squares = np.diag(cosines)
    return np.maximum(squares[:, None] + squares[None, :] - 2 * cosines, 0.0)


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if values.size else None
