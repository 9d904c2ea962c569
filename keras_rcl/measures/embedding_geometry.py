"""Measures of a space of embeddings, of a limited number of points, in NumPy and float64.

There are N points z_i of unit length in D dimensions, with labels. A positive pair is two different points with the
same label, a negative pair two points with different labels. A measure is None if there is no pair to measure.
"""

import numpy as np

POINTS = 256
"""How many images are measured at most: the cost of all pairs grows with its square."""

MEASURES = (
    "alignment",
    "uniformity",
    "positive_margin_violations",
    "negative_margin_violations",
    "silhouette",
    "clean_to_adversarial_distance",
)


def alignment(labels: np.ndarray, points: np.ndarray, *, alpha: float = 2.0) -> float | None:
    """The mean over positive pairs of ||z_i - z_j||^alpha; 0 if each class is one point.

    Args:
        labels: Integers [N].
        points: [N, D], of unit length.
        alpha: Positive.

    References:
        Wang and Isola 2020, "Understanding contrastive representation learning through alignment and uniformity on the
        hypersphere", section 4.1; here positives have the same label, as in SupCon.
    """
    return _alignment(_pairs(labels)[0], _squared_distances(_cosines(points)), alpha)


def uniformity(points: np.ndarray, *, t: float = 2.0) -> float | None:
    """The logarithm of the mean over all pairs of exp(-t ||z_i - z_j||^2).

    The lower it is, the more the points are spread; it is 0 if all points are equal.

    Args:
        points: [N, D], of unit length.
        t: Positive.

    References:
        Wang and Isola 2020, section 4.1.2.
    """
    distances = _squared_distances(_cosines(points))
    return _uniformity(distances[np.triu_indices(len(distances), k=1)], t)


def margin_violations(
    labels: np.ndarray, points: np.ndarray, *, positive_margin: float = 0.5, negative_margin: float = 0.1
) -> tuple[float | None, float | None]:
    """The share of positive pairs with z_i . z_j < m_p, and that of negative pairs with z_i . z_j > m_n.

    On these pairs the margin contrastive loss has a gradient (Wang 2024, eq. 4, with its margins).

    Args:
        labels: Integers [N].
        points: [N, D], of unit length.
        positive_margin: m_p.
        negative_margin: m_n.
    """
    return _margin_violations(*_pairs(labels), _cosines(points), positive_margin, negative_margin)


def silhouette(labels: np.ndarray, points: np.ndarray) -> float | None:
    """The mean over points of (b_i - a_i) / max(a_i, b_i), in [-1, 1].

    a_i is the mean Euclidean distance to the other points with the same label, and b_i the smallest mean distance to
    the points of another label. A point that is the only one with its label has the value 0.

    Args:
        labels: Integers [N].
        points: [N, D].

    References:
        Rousseeuw 1987, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis".
    """
    return _silhouette(np.asarray(labels), _squared_distances(_cosines(points)))


def clean_to_adversarial_distance(clean: np.ndarray, adversarial: np.ndarray) -> float:
    """The mean distance ||z(x_i) - z(x_i')||_2 by which an attack moves a point; 2 is the other side of the sphere.

    Args:
        clean: [N, D], of the images; brought to unit length here.
        adversarial: [N, D], of the same images under attack; brought to unit length here.
    """
    return float(np.linalg.norm(_unit(adversarial) - _unit(clean), axis=1).mean())


def geometry(labels: np.ndarray, clean: np.ndarray, adversarial: np.ndarray | None = None) -> dict[str, float | None]:
    """Compute all measures of one space.

    Args:
        labels: Integers [N].
        clean: [N, D]; brought to unit length here.
        adversarial: [N, D], of the same images under attack; brought to unit length here. None: without an attack.

    Returns:
        The measures by name, those of `MEASURES`; all of them None if a point is not finite.
    """
    points = _unit(clean)
    if not np.isfinite(points).all():
        return dict.fromkeys(MEASURES)
    positive, negative = _pairs(labels)
    cosines = _cosines(points)
    distances = _squared_distances(cosines)
    return dict(
        zip(
            MEASURES,
            (
                _alignment(positive, distances),
                _uniformity(distances[positive | negative]),
                *_margin_violations(positive, negative, cosines),
                _silhouette(np.asarray(labels), distances),
                None if adversarial is None else clean_to_adversarial_distance(clean, adversarial),
            ),
            strict=True,
        )
    )


def _alignment(positive: np.ndarray, distances: np.ndarray, alpha: float = 2.0) -> float | None:
    return _mean(distances[positive] ** (alpha / 2))


def _uniformity(distances: np.ndarray, t: float = 2.0) -> float | None:
    """Of the squared distances of all pairs, each once."""
    mean = _mean(np.exp(-t * distances))
    return None if mean is None else float(np.log(mean))


def _margin_violations(
    positive: np.ndarray,
    negative: np.ndarray,
    cosines: np.ndarray,
    positive_margin: float = 0.5,
    negative_margin: float = 0.1,
) -> tuple[float | None, float | None]:
    return _mean(cosines[positive] < positive_margin), _mean(cosines[negative] > negative_margin)


def _silhouette(labels: np.ndarray, distances: np.ndarray) -> float | None:
    classes, own = np.unique(labels, return_inverse=True)
    if not 2 <= len(classes) < len(labels):
        return None
    distances = np.sqrt(distances)
    np.fill_diagonal(distances, 0.0)  # in spite of rounding
    members = np.eye(len(classes))[own]
    sizes, points = members.sum(axis=0), np.arange(len(labels))
    sums = distances @ members  # over the points of each class
    within = sums[points, own] / np.maximum(sizes[own] - 1, 1)
    means = sums / sizes
    means[points, own] = np.inf
    nearest = means.min(axis=1)
    larger = np.maximum(within, nearest)
    counts = (sizes[own] > 1) & (larger > 0)
    return float(np.divide(nearest - within, larger, out=np.zeros_like(larger), where=counts).mean())


def _unit(points: np.ndarray) -> np.ndarray:
    """Each row at unit length, in float64; a row of zeros stays as it is."""
    points = np.asarray(points, np.float64)
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(lengths > 0, lengths, 1.0)


def _pairs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positive and the negative pairs, each once above the diagonal: bool [N, N]."""
    labels = np.asarray(labels)
    same, above = labels[:, None] == labels[None, :], np.triu(np.ones((len(labels), len(labels)), bool), k=1)
    return same & above, ~same & above


def _cosines(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, np.float64)
    return points @ points.T


def _squared_distances(cosines: np.ndarray) -> np.ndarray:
    """||z_i - z_j||^2 = |z_i|^2 + |z_j|^2 - 2 z_i . z_j, at least 0 in spite of rounding."""
    squares = np.diag(cosines)
    distances = squares[:, None] + squares[None, :]
    distances -= 2 * cosines
    return np.maximum(distances, 0.0, out=distances)


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if values.size else None
