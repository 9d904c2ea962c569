"""The objectives' equations, one loop for each sum sign."""

import math

import numpy as np


def _dot(first, second) -> float:
    total = 0.0
    for a, b in zip(first, second, strict=True):
        total += float(a) * float(b)
    return total


def supcon(labels, projection, temperature: float) -> np.ndarray:
    """Wang eq. 1, Cusin eq. 1, CLAF eq. 2: the summand of each anchor [M]; 0 for an anchor without positives."""
    num_anchors = len(labels)
    values = np.zeros(num_anchors)
    for i in range(num_anchors):
        others = [a for a in range(num_anchors) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if not positives:
            continue
        scores = {a: _dot(projection[i], projection[a]) / temperature for a in others}
        top = max(scores.values())
        log_denominator = top + math.log(math.fsum(math.exp(scores[a] - top) for a in others))
        total = 0.0
        for p in positives:
            total += scores[p] - log_denominator
        values[i] = -total / len(positives)
    return values


def supcon_mean(labels, projection, temperature: float) -> float:
    """The mean over the anchors that have positives, 0 where none has."""
    values = supcon(labels, projection, temperature)
    total, count = 0.0, 0
    for i in range(len(labels)):
        if any(labels[p] == labels[i] for p in range(len(labels)) if p != i):
            total += values[i]
            count += 1
    return total / count if count else 0.0


def supcon_mean_of_all(labels, projection, temperature: float) -> float:
    """Wang eq. 1 as printed: 1/N times the sum over all N anchors; an anchor without positives adds 0."""
    total = 0.0
    for value in supcon(labels, projection, temperature):
        total += value
    return total / len(labels)


def contrast_of_pairs(projection, positives, others, temperature: float) -> np.ndarray:
    """SupCon over chosen pairs: `positives[i]` and `others[i]` are the numbers of the rows of anchor i."""
    values = np.zeros(len(projection))
    for i in range(len(projection)):
        total = 0.0
        for p in positives[i]:
            among = 0.0
            for a in [*positives[i], *others[i]]:
                among += math.exp(_dot(projection[i], projection[a]) / temperature)
            total += math.log(among) - _dot(projection[i], projection[p]) / temperature
        values[i] = total / len(positives[i]) if positives[i] else 0.0
    return values


def prototype_contrastive(labels, projection, temperature: float) -> np.ndarray:
    """Cross-entropy over the cosines to the mean direction of each class; its own class without the anchor."""
    projection = np.float64(projection)
    values = np.zeros(len(labels))
    for i in range(len(labels)):
        scores = {}
        for k in set(labels):
            total = np.zeros(projection.shape[1])
            for j in range(len(labels)):
                if labels[j] == k and j != i:
                    total += projection[j]
            if k != labels[i] or np.any(total):
                scores[k] = _dot(projection[i], total / math.sqrt(_dot(total, total))) / temperature
        if labels[i] in scores:
            values[i] = math.log(math.fsum(math.exp(score) for score in scores.values())) - scores[labels[i]]
    return values


def margin(labels, projection, positive_margin: float, negative_margin: float) -> np.ndarray:
    """Wang eq. 4: the summand of each anchor [M]; a mean over an empty set is 0."""
    num_anchors = len(labels)
    values = np.zeros(num_anchors)
    for i in range(num_anchors):
        too_far, too_near = [], []
        for j in range(num_anchors):
            if j == i:
                continue
            similarity = _dot(projection[i], projection[j])
            if labels[j] == labels[i]:
                too_far.append(max(0.0, positive_margin - similarity))
            else:
                too_near.append(max(0.0, similarity - negative_margin))
        values[i] = sum(too_far) / max(len(too_far), 1) + sum(too_near) / max(len(too_near), 1)
    return values


def euclidean_supcon(labels, embedding, share_of_negatives: float) -> np.ndarray:
    """Landsman et al., section 2: distances to the positives less a share of those to the negatives, per anchor [M]."""
    embedding = np.float64(embedding)
    values = np.zeros(len(labels))
    for i in range(len(labels)):
        for j in range(len(labels)):
            if j == i:
                continue
            total = 0.0
            for a, b in zip(embedding[i], embedding[j], strict=True):
                total += (a - b) ** 2
            distance = math.sqrt(total)
            values[i] += distance if labels[j] == labels[i] else -share_of_negatives * distance
    return values


def softmax(row) -> list[float]:
    """exp(l_k) / sum_j exp(l_j)."""
    top = max(row)
    total = math.fsum(math.exp(value - top) for value in row)
    return [math.exp(value - top) / total for value in row]


def cross_entropy(labels, logits) -> np.ndarray:
    """-log softmax(logits)[label] of each image [N]."""
    return np.array([-math.log(softmax(row)[label]) for label, row in zip(labels, np.float64(logits), strict=True)])


def smoothed_cross_entropy(labels, logits, smoothing: float) -> np.ndarray:
    """Cross-entropy of the targets (1 - s) one_hot(label) + s / K of each image [N]."""
    values = []
    for label, row in zip(labels, np.float64(logits), strict=True):
        shares = softmax(row)
        targets = [smoothing / len(row) + (1 - smoothing) * (k == label) for k in range(len(row))]
        values.append(-math.fsum(target * math.log(share) for target, share in zip(targets, shares, strict=True)))
    return np.array(values)


def cross_entropy_with_margin(labels, logits, margin: float) -> np.ndarray:
    """-log(exp(z_y - m) / (exp(z_y - m) + sum_{k != y} exp(z_k))) of each image [N] (Wang et al. 2018)."""
    values = []
    for label, row in zip(labels, np.float64(logits), strict=True):
        others = math.fsum(math.exp(value) for k, value in enumerate(row) if k != label)
        own = math.exp(row[label] - margin)
        values.append(-math.log(own / (own + others)))
    return np.array(values)


def kl(clean_logits, adversarial_logits) -> np.ndarray:
    """TRADES: KL(p(clean) || p(adversarial)) of each image [N]."""
    values = []
    for clean, adversarial in zip(np.float64(clean_logits), np.float64(adversarial_logits), strict=True):
        total = 0.0
        for p, q in zip(softmax(clean), softmax(adversarial), strict=True):
            total += p * (math.log(p) - math.log(q))
        values.append(total)
    return np.array(values)


def boosted_cross_entropy(labels, logits) -> np.ndarray:
    """MART: -log p_y - log(1 - max_{k != y} p_k) of each image [N]."""
    values = []
    for label, row in zip(labels, np.float64(logits), strict=True):
        shares = softmax(row)
        likeliest = max((share, k) for k, share in enumerate(shares) if k != label)[1]
        others = math.fsum(share for k, share in enumerate(shares) if k != likeliest)
        values.append(-math.log(shares[label]) - math.log(others))
    return np.array(values)


def misclassified_kl(labels, clean_logits, adversarial_logits) -> np.ndarray:
    """MART: KL(p(clean) || p(adversarial)) * (1 - p_y(clean)) of each image [N]."""
    values = kl(clean_logits, adversarial_logits)
    for i, (label, row) in enumerate(zip(labels, np.float64(clean_logits), strict=True)):
        values[i] *= 1 - softmax(row)[label]
    return values
