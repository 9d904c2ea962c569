"""BatchNorm of their own for the views that are not adversarial."""

from collections.abc import Callable, Sequence

import keras
from keras import ops

from keras_rcl.networks.two_headed import parts


class CleanBatchNorm:
    """Views that are not adversarial pass by their own BatchNorm statistics, gamma and beta, all others as ever.

    The network's own BatchNorm is that of adversarial views: it is what an attack sees and what is handed on. A pass of
    this branch reads the other variables in its place (`keras.StatelessScope`), so that no layer has two.

    Args:
        network: whose BatchNorm layers have a second set of variables here.

    Attributes:
        variables: of that set; gamma and beta are trained.

    Source: Xie et al. 2020, "Adversarial examples improve image recognition", where the clean branch is kept and the
    adversarial one is auxiliary; with the adversarial one kept, Jiang et al. 2020, "Robust pre-training by adversarial
    contrastive learning".
    """

    def __init__(self, network: keras.Model):
        layers = [layer for part in parts(network).values() for layer in part.layers]
        norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
        self._own = [variable for layer in norms for variable in layer.variables]
        self.variables = [
            keras.Variable(ops.copy(own.value), trainable=own.name in ("gamma", "beta"), name=f"clean_{own.name}")
            for own in self._own
        ]

    def begin(self) -> None:
        """Start from the network's own."""
        for own, other in zip(self._own, self.variables, strict=True):
            other.assign(own.value)

    def __call__(self, call: Callable, x, kinds: Sequence[str]) -> dict:
        """The outputs of a training pass over stacked views of these kinds, in their order.

        Args:
            call: images -> outputs, each [rows, ...], in training mode.
            x: [V * N, H, W, C].
            kinds: of the V views.
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
