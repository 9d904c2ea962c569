"""What is asked about a network: whether an input of a box exists whose outputs satisfy linear constraints."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_rcl.folding.fold import Add, Dense, Reshape, Step, StepBuilder


@dataclass(frozen=True, eq=False)
class Condition:
    """A box of inputs x and linear constraints of the outputs y: satisfied where lower <= x <= upper and all hold.

        rows[i] y + offsets[i] <= 0;  < 0 where strict[i]

    Attributes:
        lower: float64, the shape of an input.
        upper: the same.
        rows: float64 [M, K].
        offsets: float64 [M].
        strict: bool [M].
    """

    lower: np.ndarray
    upper: np.ndarray
    rows: np.ndarray
    offsets: np.ndarray
    strict: np.ndarray

    def contains(self, inputs: np.ndarray) -> bool:
        """Whether an input lies in the box."""
        return bool(np.all(self.lower <= inputs) and np.all(inputs <= self.upper))

    def holds(self, outputs: np.ndarray, tolerance: float = 0.0) -> bool:
        """Whether outputs [K] satisfy the constraints, up to a tolerance."""
        values = self.rows @ outputs + self.offsets
        return bool(np.all(np.where(self.strict & (tolerance == 0), values < 0, values <= tolerance)))


def with_worst_constraint(steps: Sequence[Step], conditions: Sequence[Condition]) -> list[Step]:
    """A network that computes for each condition the largest value of its constraints, [J].

    A condition is satisfied nowhere in its box if that is positive everywhere. The maximum of two values is computed
    by a ReLU, a + max(b - a, 0), so that branch and bound over ReLUs decides it as well.
    """
    builder, largest = StepBuilder("float64"), max(len(condition.offsets) for condition in conditions)
    builder.steps = list(steps)
    last = len(steps) - 1
    if len(steps[last].shape) != 1:
        last = builder.add(Reshape(), [last], (int(np.prod(steps[last].shape)),), "property")
    padded = [np.minimum(np.arange(largest), len(condition.offsets) - 1) for condition in conditions]
    rows = np.stack([c.rows[index] for c, index in zip(conditions, padded, strict=True)], axis=1)  # [M, J, K]
    offsets = np.stack([c.offsets[index] for c, index in zip(conditions, padded, strict=True)], axis=1)
    count = len(conditions)

    def dense(x: int, kernel: np.ndarray, bias: np.ndarray) -> int:
        return builder.add(Dense(kernel, bias), [x], kernel.shape[1:], "property")

    # `now` are the values that are left, a linear map of step `last`.
    kernel, bias = rows.reshape(largest * count, -1).T, offsets.ravel()
    while largest > 1:
        pairs = largest // 2
        first, second, rest = np.split(np.arange(largest * count), [pairs * count, 2 * pairs * count])
        kept = np.concatenate([first, rest])
        minus = kernel[:, second] - kernel[:, first], bias[second] - bias[first]
        above = builder.relu(dense(last, *minus), "property")
        raised = dense(above, np.eye(len(first), len(kept)), np.zeros(len(kept)))
        plain = dense(last, kernel[:, kept], bias[kept])
        last = builder.add(Add(), [plain, raised], (len(kept),), "property")
        largest, kernel, bias = largest - pairs, np.eye(len(kept)), np.zeros(len(kept))
    if count != len(kernel) or not np.array_equal(kernel, np.eye(count)):
        dense(last, kernel, bias)
    return builder.steps
