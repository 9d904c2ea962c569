"""Branch and bound in regions of the box, in each of which the inputs of all ReLUs are bounded again.

beta-CROWN keeps the bounds that hold in the whole box. In a deep network they are so loose that no single sign of a
ReLU changes much. A region is the part of the box where some ReLUs have given signs. There, alpha-CROWN bounds the
inputs of all later ReLUs again, which costs as much as hundreds of domains. So a region is searched by beta-CROWN
first, for a fifth of the time that its bounds took, and is divided if that does not decide it. Where no ReLU is left
that divides it, the search continues. In networks that are not deep, the bounds of the whole box are good enough, and
regions cost more than they bring: so the whole box is searched beside its regions, in a third of the time.

The ReLU that divides a region is the one that makes bounds looser than any other. In CROWN's bound of a row a, a ReLU
costs max(-a, 0) u (-l) / (u - l), the height of its upper line at 0. Its share of the costs of all ReLUs is taken for
the functions in question and, per layer, for the inputs of its widest undecided ReLUs; these shares are added up.

Sources: Henriksen and Lomuscio 2020, "Efficient neural network verification via adaptive refinement and adversarial
search" (bounds are computed again after every split; splits by their effect on later bounds); Xu et al. 2021 and Wang
et al. 2021 (see `alpha_crown` and `beta_crown`).
"""

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from keras_rcl.bounds.alpha_crown import optimized_lower_bounds
from keras_rcl.bounds.beta_crown import BranchAndBound, Outcome, before, halved, on_clock_of_graphs, searched
from keras_rcl.bounds.crown import crown_intervals, lower_bounds, relax, unit_rows
from keras_rcl.bounds.input_sets import Interval
from keras_rcl.bounds.interval import past_scaling
from keras_rcl.folding.fold import Step

BOX_STEPS, REGION_STEPS = 20, 5
"""Number of slopes that are tried for each bound of a ReLU's input, in the whole box and in a region."""

REGION_SHARE, WHOLE_SHARE = 0.2, 0.5
"""For how long a region is searched, in times of what its bounds took; and the whole box, in times of a division."""

WIDEST = 64
"""Number of a layer's ReLUs whose input bounds are asked what makes them loose."""


@dataclass(order=True)
class _Region:
    """A part of the box: signs of ReLUs [1, T], the functions that are undecided in it, and what was found there."""

    lower: float
    order: int
    signs: np.ndarray = field(compare=False)
    functions: np.ndarray = field(compare=False)
    root: Sequence[Any] = field(compare=False)
    search: Iterator[Outcome] = field(compare=False)
    seconds: float = field(compare=False)


class RegionSplitting(BranchAndBound):
    """`BranchAndBound` for a box that is divided into regions; for networks of up to some thousand ReLUs.

    Args:
        network: a folded network of any input with weights of the dtype, whose last step is a vector.
        dtype: of the bounds.
        batch_size: number of domains that are split at once while a region is searched.
        iterations: steps of the ascent of slopes and multipliers per domain.
        root_iterations: the same for a region.

    Raises:
        InvalidInputError: if a layer has no bounds.

    References:
        Henriksen and Lomuscio 2020 (see the module).
    """

    def __init__(
        self,
        network: Sequence[Step],
        *,
        dtype: str = "float32",
        batch_size: int = 32,
        iterations: int = 20,
        root_iterations: int = 40,
    ):
        ascents = dict(iterations=iterations, root_iterations=root_iterations)
        super().__init__(network, dtype=dtype, batch_size=batch_size, **ascents)
        image, classes = self._steps[0].shape, self._steps[-1].shape[0]
        bounds = [
            [tf.TensorSpec((1, *shape), dtype)] * 2 for shape in (image, *(self._steps[n].shape for n in self._read))
        ]
        functions, signs = tf.TensorSpec((None, classes + 1), dtype), tf.TensorSpec((1, self._widths["signs"]), dtype)
        number, until = tf.TensorSpec((), "int32"), tf.TensorSpec((), "float64")
        self._bound_region = tf.function(
            self._region_bounds, autograph=False, input_signature=[bounds, functions, signs, number, number, until]
        )
        self._shares = tf.function(
            self._cost_shares,
            autograph=False,
            input_signature=[
                bounds,
                functions,
                *(tf.TensorSpec((None, width), dtype) for width in self._widths.values()),
            ],
        )

    # One argument per part of the question.
    def decide_in_regions(
        self,
        low: np.ndarray,
        high: np.ndarray,
        functions: np.ndarray,
        offsets: np.ndarray | None = None,
        *,
        deadline: float,
        check: Callable[[np.ndarray], np.ndarray | None],
    ) -> Outcome:
        """Decide as `decide` does; see the module for how.

        Args:
            low: the box, of the shape of an input.
            high: the same.
            functions: [F, K], each a function <a, outputs> + offset.
            offsets: [F]; 0 if not given.
            deadline: when to stop, on the clock `time.monotonic`; bounds stop after the step that they are in.
            check: an input at which a function seems to be below 0 -> a confirmed one, or None.

        Returns:
            The outcome; `safe` is None if the deadline was reached, or no ReLU is left that divides a region.
        """
        started, order, proved_min, heap = time.monotonic(), itertools.count(), math.inf, []
        whole, domains = None, {"whole": 0, "regions": 0}
        until = on_clock_of_graphs(deadline)
        box, functions = self._question(low, high, functions, offsets)
        input_bounds = self._root(box, functions, until)[-1]

        def bound(which, signs, input_bounds, since: int, steps: int) -> None:
            """Bound a region, and put it on the heap with the functions that may reach 0 in it."""
            nonlocal proved_min
            begun = time.monotonic()
            root = self._bound_region(input_bounds, functions[which], signs, since, steps, until)
            bounds = np.asarray(root[0])
            left = bounds <= 0
            proved_min = min([proved_min, *bounds[~left]])
            if left.any():
                root = [*(np.asarray(values)[left] for values in root[:-1]), root[-1]]
                search = self._search(root, functions[which[left]], check, until)
                found = [which[left], root, search, time.monotonic() - begun]
                heapq.heappush(heap, _Region(float(bounds.min()), next(order), signs, *found))

        def decided(search: Iterator[Outcome], end: float) -> Outcome | None:
            """Search for some time; the outcome if it is decided."""
            outcome = searched(search, min(end, deadline))
            if search is whole:
                domains["whole"] = outcome.domains
            else:
                domains["regions"] += outcome.domains
            return None if outcome.safe is None else outcome

        def outcome(safe: bool | None, lower: float, counterexample=None) -> Outcome:
            return Outcome(safe, lower, counterexample, sum(domains.values()), time.monotonic() - started)

        bound(np.arange(len(functions)), np.zeros((1, self._widths["signs"]), self._dtype), input_bounds, -1, BOX_STEPS)
        whole = heap[0].search if heap else None
        while heap:
            begun, region = time.monotonic(), heapq.heappop(heap)
            *state, _, input_bounds = region.root
            shares = np.asarray(self._shares(input_bounds, functions[region.functions], *state[1:]))
            divides = shares.max(initial=0) > 0
            found = decided(region.search, begun + REGION_SHARE * region.seconds if divides else deadline)
            if found is not None and (region.search is whole or not found.safe):
                return outcome(found.safe, min(proved_min, found.lower), found.counterexample)
            if found is not None:
                proved_min = min(proved_min, found.lower)
                continue
            if time.monotonic() > deadline or not divides:
                return outcome(None, min(proved_min, region.lower))
            relu = int(shares.argmax())
            for sign in (1, -1):
                signs = region.signs.copy()
                signs[0, relu] = sign
                bound(region.functions, signs, input_bounds, self._step_of(relu), REGION_STEPS)
            now = time.monotonic()
            if (found := decided(whole, now + WHOLE_SHARE * (now - begun))) is not None:
                return outcome(found.safe, found.lower, found.counterexample)
        return outcome(True, proved_min)

    def _step_of(self, relu: int) -> int:
        """The step that has a ReLU, of all side by side."""
        return self._relus[int(np.searchsorted(np.cumsum(self._sizes), relu, side="right"))]

    # In the graph; see `BranchAndBound`.

    def _region_bounds(self, input_bounds, functions, signs, since, iterations, until):
        """As `_root_bounds`, of a region; those of ReLUs after a step are computed, from those of the region around."""
        box, *known = (Interval(*ends) for ends in input_bounds)
        rest, scaled = past_scaling(self._steps, box)
        scaling = len(self._steps) - len(rest)
        halves = dict(zip(self._read, known, strict=True))
        for number, sign in zip(self._relus, self._split_by_relu(signs), strict=True):
            read = self._steps[number].inputs[0]
            halves[read] = halved(halves[read], sign)

        def narrowed(number: int, interval: Interval) -> Interval:
            return interval.intersect(halves[number + scaling]) if number + scaling in halves else interval

        in_time = partial(before, until)
        bound = partial(optimized_lower_bounds, iterations=iterations, in_time=in_time)
        found = [box] * scaling + crown_intervals(rest, scaled, bound, in_time, narrowed, since - scaling)
        input_bounds = [input_bounds[0], *([found[number].lower, found[number].upper] for number in self._read)]
        return *self._ascended_root(input_bounds, functions, signs, until), input_bounds

    def _cost_shares(self, input_bounds, functions, signs, slopes, multipliers):
        """[T], how much each ReLU loosens bounds; 0 for those that are decided."""
        box, *read = (Interval(*ends) for ends in input_bounds)
        intervals = dict(zip([0, *self._read], (box, *read), strict=True))
        arriving = {}
        self._lower(input_bounds, functions, signs, slopes, multipliers, arriving)
        rows = [self._costs(intervals, arriving)]
        for number in self._read:
            lower, upper = (tf.reshape(end, (-1,)) for end in (intervals[number].lower, intervals[number].upper))
            crosses = (lower < 0) & (upper > 0)
            widths = tf.where(crosses, upper - lower, tf.zeros_like(upper))
            most, which = tf.math.top_k(widths, k=min(WIDEST, widths.shape[0]))
            index = tf.unravel_index(which, (1, *self._steps[number].shape))
            for sign in (1.0, -1.0):
                arriving = {}
                unit = unit_rows(tf.transpose(index), self._steps[number].shape, tf.constant([[sign]], self._dtype))
                lower_bounds(self._steps[: number + 1], unit, intervals, arriving=arriving)
                costs = self._costs(intervals, arriving)
                rows.append(tf.where(most[:, None] > 0, costs, tf.zeros_like(costs)))
        shares = [tf.math.divide_no_nan(costs, tf.reduce_sum(costs, axis=1, keepdims=True)) for costs in rows]
        return tf.add_n([tf.reduce_mean(of, axis=0) for of in shares])

    def _costs(self, intervals: dict, arriving: dict):
        """[R, T], what each ReLU costs a row's bound; 0 for those after the row."""
        rows = tf.shape(next(iter(arriving.values())).coefficients)[0]
        costs = [tf.zeros((rows, 0), self._dtype)]
        for number, size in zip(self._relus, self._sizes, strict=True):
            if number not in arriving:
                costs.append(tf.zeros((rows, size), self._dtype))
                continue
            negative = -tf.minimum(arriving[number].densify(self._steps[number].shape).coefficients, 0.0)
            costs.append(tf.reshape(negative * relax(intervals[self._steps[number].inputs[0]]).intercept, (-1, size)))
        return tf.concat(costs, axis=1)
