"""A second set of BatchNorm variables, for the views that are not adversarial."""

from collections.abc import Callable, Sequence

import keras
from keras import ops

from keras_rcl.networks.two_headed import batch_norms


class CleanBatchNorm:
    """BatchNorm statistics, gamma and beta for the views that are not adversarial.

    The variables of the network itself are those of adversarial views: attacks see them, and they are exported. A pass
    of the other views reads the second set in their place (`keras.StatelessScope`), so that no layer has two sets.

    Args:
        network: Its BatchNorm layers get a second set of variables.

    Attributes:
        variables: Of the second set; gamma and beta are trained.

    References:
        Xie et al. 2020, "Adversarial examples improve image recognition", which keeps the clean set; Jiang et al. 2020,
        "Robust pre-training by adversarial contrastive learning", which keeps the adversarial set.
    """

    def __init__(self, network: keras.Model):
        self._own = [variable for layer in batch_norms(network) for variable in layer.variables]
        self.variables = [
            keras.Variable(
                ops.copy(own.value),
                trainable=own.name in ("gamma", "beta"),
                aggregation="mean",
                name=f"clean_{own.name}",
            )
            for own in self._own
        ]

    def begin(self) -> None:
        """Start with copies of the variables of the network."""
        for own, other in zip(self._own, self.variables, strict=True):
            other.assign(own.value)

    def __call__(self, call: Callable, x, kinds: Sequence[str]) -> dict:
        """Run a training pass over stacked views.

        Args:
            call: Maps images to named outputs, each [rows, ...], in training mode.
            x: [V * N, H, W, C].
            kinds: The kind of each of the V views.

        Returns:
            Named outputs in the order of the views.
        """
        views = ops.split(x, len(kinds), axis=0)
        adversarial = [view for view, kind in zip(views, kinds, strict=True) if kind == "adversarial"]
        others = [view for view, kind in zip(views, kinds, strict=True) if kind != "adversarial"]
        own = call(ops.concatenate(adversarial, axis=0))
        mapping = [(variable, other.value) for variable, other in zip(self._own, self.variables, strict=True)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            clean = call(ops.concatenate(others, axis=0))
        for variable, other in zip(self._own, self.variables, strict=True):
            if not other.trainable:
                other.assign(scope.get_current_value(variable))

        def in_order(name: str):
            rows = {
                True: iter(ops.split(own[name], len(adversarial), axis=0)),
                False: iter(ops.split(clean[name], len(others), axis=0)),
            }
            return ops.concatenate([next(rows[kind == "adversarial"]) for kind in kinds], axis=0)

        return {name: in_order(name) for name in own}
