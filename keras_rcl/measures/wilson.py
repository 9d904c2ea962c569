"""The interval of a share of images."""

import math

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


def wilson_interval(share: float, total: int, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a share.

    Formula:

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Args:
        share: The measured share p, in [0, 1].
        total: The number n of images.
        z: The quantile of the normal distribution; that of a 95 % interval by default.

    Returns:
        The lower and the upper limit; (0, 1) for no images.

    Example:
        >>> [round(limit, 4) for limit in wilson_interval(0.9, 200)]
        [0.8506, 0.9343]

    References:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not total:
        return 0.0, 1.0
    centre = share + z * z / (2 * total)
    reach = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)
