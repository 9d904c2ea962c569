"""beta-CROWN: decides whether a linear function of the outputs can reach 0 within a box or ball, by splitting ReLUs.

For a class, the function is the label's logit minus its own. A domain is the part of the box or ball where some ReLUs'
inputs z have given signs s. Its bound is CROWN's with what follows from the signs: such a ReLU is linear, and for any
beta >= 0

    min { f(x) : s_k z_k(x) >= 0 for all k }  >=  min_x  f(x) - sum_k beta_k s_k z_k(x),

where beta is maximised together with the slopes. A domain whose bound is not positive is split at the most promising
ReLU: a few are tried of those at which the lines are furthest from the ReLU.

Sources: Wang et al. 2021, "Beta-CROWN: efficient bound propagation with per-neuron split constraints"; De Palma et al.
2021, "Improved branch and bound for neural network verification via Lagrangian decomposition" (filtered smart
branching); Bunel et al. 2020, "Branch and bound for piecewise linear neural network verification".
"""

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.bounds.alpha_crown import ascend
from keras_rcl.bounds.crown import (
    NOT_LINEAR,
    LinearForms,
    crown_intervals,
    first_slopes,
    lower_bounds,
    relax,
    worst_inputs,
)
from keras_rcl.bounds.input_sets import Ball, Interval, outward
from keras_rcl.bounds.interval import forward, interval_bounds, past_scaling
from keras_rcl.bounds.rounding import UNIT, Rounded, error_of_input, rounded_steps
from keras_rcl.folding.fold import ReLU, SShaped, Step, fold
from keras_rcl.vocabulary.threat import Norm

CANDIDATES = 3
"""Number of ReLUs that are tried for a split."""

_NEXT_TO_NOTHING = 1e-6
"""The least gap of an undecided ReLU, so that every one is split in the end."""

DESCENTS, DESCENT_STEPS = 4, 10
"""Number of domains whose worst images are improved by gradient descent, and the number of its steps."""


@dataclass(frozen=True)
class Outcome:
    """The result of branch and bound.

    Attributes:
        safe: True if no function reaches 0, False if one does, None if time ran out.
        lower: a lower bound of all functions in question.
        counterexample: an image at which one does [H, W, C] if `safe` is False, otherwise None.
        domains: number of domains that were bounded.
        seconds: run time, without tracing.
    """

    safe: bool | None
    lower: float
    counterexample: np.ndarray | None
    domains: int
    seconds: float = 0.0


@dataclass(order=True)
class _Domain:
    """A part of the box and a function; arrays are of the ReLUs [U] that the box leaves undecided.

    Behind their slopes are the tangents of all curves.
    """

    lower: float
    order: int
    function: int = field(compare=False)
    signs: np.ndarray = field(compare=False)
    slopes: np.ndarray = field(compare=False)
    multipliers: np.ndarray = field(compare=False)


class BranchAndBound:
    """beta-CROWN with branch and bound: verifies one image at a time; traced once.

    Args:
        network: functional, images [N, H, W, C] in [0, 1] -> logits [N, K] or a dict with `logits`; or a folded network
            of any input with weights of the dtype, whose last step is a vector.
        norm: of the balls; `linf` for boxes.
        dtype: of the bounds.
        sound: widen every bound by a proven bound of its rounding error, see `keras_rcl.bounds.rounding`; for a Keras
            network and `linf`.
        batch_size: number of domains that are split at once.
        iterations: steps of the ascent of slopes and multipliers per domain.
        root_iterations: the same for the whole ball.
        learning_rate: of the ascent.

    Raises:
        InvalidInputError: if a layer has no bounds.

    References:
        Wang et al. 2021; De Palma et al. 2021; Bunel et al. 2020 (see the module).
    """

    def __init__(
        self,
        network: keras.Model | Sequence[Step],
        *,
        norm: Norm = "linf",
        dtype: str = "float32",
        sound: bool = False,
        batch_size: int = 32,
        iterations: int = 20,
        root_iterations: int = 40,
        learning_rate: float = 0.1,
    ):
        self._norm, self._dtype, self._sound, self._batch_size = norm, dtype, sound, batch_size
        self._iterations, self._root_iterations, self._learning_rate = iterations, root_iterations, learning_rate
        if isinstance(network, keras.Model):
            self._steps = rounded_steps(network, dtype) if sound else fold(network, dtype=dtype)
            self._outputs = partial(_logits, network)
        else:
            self._steps = list(network)
            self._outputs = partial(forward, self._steps)
        self._relus = [number for number, step in enumerate(self._steps) if isinstance(step.operation, ReLU)]
        self._shapes = [self._steps[number].shape for number in self._relus]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        self._curves = [number for number, step in enumerate(self._steps) if isinstance(step.operation, SShaped)]
        self._tangents = [(*self._steps[number].shape, 2) for number in self._curves]
        readers = [step for step in self._steps if isinstance(step.operation, NOT_LINEAR)]
        self._read = sorted({step.inputs[0] for step in readers})
        if sound:  # the rounding error of every step is needed
            self._read = list(range(len(self._steps)))
        image, total, classes = self._steps[0].shape, sum(self._sizes), self._steps[-1].shape[0]

        def spec(*shape, of=dtype):
            return tf.TensorSpec(shape, of)

        ball = [] if norm == "linf" else [spec(1, *image), spec(*image)]
        input_set = [spec(1, *image), spec(1, *image), *ball, *([spec(1, *image)] if sound else [])]
        ends = 3 if sound else 2
        input_bounds = [input_set, *([spec(1, *self._steps[number].shape)] * ends for number in self._read)]
        slopes = total + sum(map(math.prod, self._tangents))
        self._widths = {"signs": total, "slopes": slopes, "multipliers": total}
        state = [spec(None, width) for width in self._widths.values()]
        functions, until = spec(None, classes + 1), spec(of="float64")
        self._root = tf.function(self._root_bounds, autograph=False, input_signature=[input_set, functions, until])
        self._split = tf.function(
            self._split_bounds, autograph=False, input_signature=[input_bounds, functions, *state, until]
        )
        self._descend = tf.function(
            self._descended,
            autograph=False,
            input_signature=[spec(None, *image), functions, input_set],
        )

    def __call__(
        self,
        image: np.ndarray,
        label: int,
        epsilon: float,
        *,
        wrong: Sequence[int],
        seconds: float,
        check: Callable[[np.ndarray], np.ndarray | None],
    ) -> Outcome:
        """Decide whether one of the given classes overtakes the label within epsilon of an image.

        Args:
            image: [H, W, C] in [0, 1].
            label: its class.
            epsilon: radius in pixels.
            wrong: the classes in question.
            seconds: time limit.
            check: a candidate counter-example [H, W, C] -> a confirmed one, or None.

        Returns:
            The outcome; `safe` is None if the time limit was reached.
        """
        epsilon = np.asarray(epsilon + (4 * UNIT[self._dtype] if self._sound else 0), self._dtype)
        center = np.asarray(image, self._dtype)
        low, high = np.maximum(center - epsilon, 0), np.minimum(center + epsilon, 1)
        ball = [] if self._norm == "linf" else [center[None], np.full_like(center, epsilon)]
        unit = np.eye(self._steps[-1].shape[0], dtype=self._dtype)
        functions = (unit[label] - unit)[np.asarray(wrong)]
        self.trace()
        return self.decide(low, high, functions, ball=ball, deadline=time.monotonic() + seconds, check=check)

    @property
    def num_activations(self) -> int:
        """The number of ReLUs and of values of curves."""
        return sum(math.prod(self._steps[number].shape) for number in (*self._relus, *self._curves))

    def trace(self) -> None:
        """Trace now, so that tracing does not count in an image's time."""
        for function in (self._root, self._descend, *([self._split] if self._relus else [])):
            function.get_concrete_function()

    # One argument per part of the question.
    def decide(
        self,
        low: np.ndarray,
        high: np.ndarray,
        functions: np.ndarray,
        offsets: np.ndarray | None = None,
        *,
        deadline: float,
        check: Callable[[np.ndarray], np.ndarray | None],
        ball: Sequence[np.ndarray] = (),
    ) -> Outcome:
        """Decide whether one of some linear functions of the outputs reaches 0 in a box or ball of inputs.

        Args:
            low: the box, of the shape of an input.
            high: the same.
            functions: [F, K], each a function <a, outputs> + offset.
            offsets: [F]; 0 if not given.
            deadline: when to stop, on the clock `time.monotonic`; bounds stop after the step that they are in.
            check: an input at which a function seems to be below 0 -> a confirmed one, or None.
            ball: if the norm is not `linf`, `middle` and `reach` of the `Ball` that the box is around.

        Returns:
            The outcome; `safe` is None if the deadline was reached, or no ReLU is left to be split. Curves are not.
        """
        started = time.monotonic()
        search = self.search(low, high, functions, offsets, deadline=deadline, check=check, ball=ball)
        return replace(searched(search, deadline), seconds=time.monotonic() - started)

    def search(
        self,
        low: np.ndarray,
        high: np.ndarray,
        functions: np.ndarray,
        offsets: np.ndarray | None = None,
        *,
        deadline: float,
        check: Callable[[np.ndarray], np.ndarray | None],
        ball: Sequence[np.ndarray] = (),
    ) -> Iterator[Outcome]:
        """Yield the outcome so far after the bounds of the whole box and after every step; see `decide`."""
        box, functions = self._question(low, high, functions, offsets)
        until = on_clock_of_graphs(deadline)
        yield from self._search(self._root([*box, *ball], functions, until), functions, check, until)

    def _question(self, low, high, functions, offsets) -> tuple[list[np.ndarray], np.ndarray]:
        """The arrays of the box, and functions with their offsets [F, K + 1]."""
        offsets = np.zeros(len(functions)) if offsets is None else offsets
        box = [values[None] for values in outward(low, high, self._dtype)]
        if self._sound:
            box.append(np.asarray(error_of_input(Interval(*box), self._dtype, low.size)))
        return box, np.concatenate([functions, offsets[:, None]], axis=1).astype(self._dtype)

    def _search(self, root: Sequence, functions: np.ndarray, check: Callable, until: np.float64) -> Iterator[Outcome]:
        """The outcome of branch and bound so far, after every step from what `_root_bounds` found; the last decides."""
        *state, worst, input_bounds = root
        which = np.arange(len(functions))
        low, high = (
            np.concatenate([np.zeros(0), *(np.ravel(end[side]) for end in self._relu_input_bounds(input_bounds))])
            for side in (0, 1)
        )
        undecided = np.flatnonzero((low < 0) & (high > 0) | np.any(np.asarray(state[1]) != 0, axis=0))
        order, domains, proved_min, heap = itertools.count(), 0, math.inf, []

        kept = dict.fromkeys(self._widths, undecided)
        kept["slopes"] = np.concatenate([undecided, np.arange(len(low), self._widths["slopes"])])

        def spread(rows: list, of: str):
            """B times [U] -> [B, T]."""
            full = np.zeros((len(rows), self._widths[of]), self._dtype)
            full[:, kept[of]] = rows
            return full

        parents = [-math.inf] * len(which)
        while True:
            bounds, *state = (np.asarray(values) for values in state)
            domains += len(bounds)
            rows_of = (values[:, kept[of]] for of, values in zip(kept, state, strict=True))
            for parent, bound, j, *rows in zip(parents, bounds, which, *rows_of, strict=True):
                lower = max(parent, float(bound))
                if lower > 0:
                    proved_min = min(proved_min, lower)
                else:
                    heapq.heappush(heap, _Domain(lower, next(order), j, *rows))
            found = self._counterexample(np.asarray(worst), functions[which], input_bounds[0], check)
            lower = min(proved_min, heap[0].lower) if heap else proved_min
            if found is not None or not heap:
                yield Outcome(found is None, lower, found, domains)
                return
            yield Outcome(None, lower, None, domains)
            if not len(undecided):
                return
            batch = [heapq.heappop(heap) for _ in range(min(self._batch_size, len(heap)))]
            parents, which = (np.repeat([getattr(d, of) for d in batch], 2) for of in ("lower", "function"))
            rows = (spread([getattr(d, of) for d in batch], of) for of in kept)
            *state, worst, active = self._split(input_bounds, functions[which[::2]], *rows, until)
            active = np.asarray(active)
            parents, which, worst = parents[active], which[active], np.asarray(worst)[active]
            state = [np.asarray(values)[active] for values in state]

    def _counterexample(self, images, functions, box, check) -> np.ndarray | None:
        """A confirmed counter-example at or near the worst images [B, H, W, C] of some domains, or None."""
        adversarial, margins = (np.asarray(values) for values in self._descend(images, functions, box))
        for index in np.flatnonzero(margins < 0):
            if (true := check(adversarial[index])) is not None:
                return true
        return None

    # In the graph. Signs, slopes and multipliers of domains are [B, T], of all ReLUs side by side; functions are
    # [B, K + 1], their offsets last.

    def _input_set(self, arrays: Sequence) -> Interval:
        """The box of two arrays [1, *shape], or the ball of four, as `decide` has them."""
        return Ball(*arrays, self._norm) if len(arrays) == 4 else Interval(*arrays[:2])

    def _root_bounds(self, inputs, functions, until=math.inf):
        """For all inputs of a set: bounds [B], signs, slopes, multipliers, worst images, and input bounds."""
        box = Rounded(*inputs) if self._sound else self._input_set(inputs)
        rest, scaled = past_scaling(self._steps, box)
        scaling = len(self._steps) - len(rest)
        leading = interval_bounds(self._steps[: scaling + 1], box)[:scaling] if self._sound else [box] * scaling
        intervals = leading + crown_intervals(rest, scaled, lower_bounds, partial(before, until))
        read = [intervals[number] for number in self._read]
        input_bounds = [inputs, *([x.lower, x.upper, *([x.error] if self._sound else [])] for x in read)]
        signs = tf.zeros((1, self._widths["signs"]), self._dtype)
        return *self._ascended_root(input_bounds, functions, signs, until), input_bounds

    def _ascended_root(self, input_bounds, functions, signs, until):
        """The result of an ascent that begins with CROWN's slopes, and its signs: as `_root_bounds`."""
        slopes = [
            first_slopes(self._steps[number].operation, self._input_set(self._bounds_read_by(number, input_bounds)))
            for number in (*self._relus, *self._curves)
        ]
        slopes = tf.concat([tf.zeros((1, 0), self._dtype), *(tf.reshape(of, (1, -1)) for of in slopes)], axis=1)
        slopes, signs = (tf.repeat(values, tf.shape(functions)[0], axis=0) for values in (slopes, signs))
        bounds, slopes, multipliers, worst = self._ascended(
            input_bounds, functions, signs, slopes, tf.zeros_like(signs), self._root_iterations, until
        )
        return bounds, signs, slopes, multipliers, worst

    def _split_bounds(self, input_bounds, functions, signs, slopes, multipliers, until=math.inf):
        """Of both halves of each domain, one after the other: as `_root_bounds`, and which of them count [2 B].

        A domain in which all ReLUs are decided stays as it is, and is ascended further.
        """
        arriving = {}
        self._lower(input_bounds, functions, signs, slopes, multipliers, arriving)
        gaps = self._gaps(input_bounds, signs, arriving)
        largest, tried = tf.math.top_k(gaps, k=min(CANDIDATES, gaps.shape[1]))
        count = tried.shape[1]

        def halves(tried):
            """[B, C] -> signs [B, C, 2, T] with z of each tried ReLU set to either side."""
            at = tf.one_hot(tried, gaps.shape[1], dtype=signs.dtype)
            return signs[:, None, None, :] + tf.stack([at, -at], axis=2)

        def flat(values):
            return tf.reshape(values, (-1, values.shape[-1]))

        several = [tf.repeat(values, 2 * count, axis=0) for values in (functions, slopes, multipliers)]
        promised = self._lower(input_bounds, several[0], flat(halves(tried)), *several[1:])
        promised = tf.reduce_sum(tf.minimum(tf.reshape(promised, (-1, count, 2)), 0.0), axis=2)
        promised = tf.where(largest > 0, promised, tf.constant(-np.inf, promised.dtype))
        chosen = tf.gather(tried, tf.argmax(promised, axis=1), axis=1, batch_dims=1)
        splits = largest[:, :1] > 0
        signs = tf.where(splits[:, :, None], halves(chosen[:, None])[:, 0], signs[:, None, :])
        functions, slopes, multipliers = (tf.repeat(values, 2, axis=0) for values in (functions, slopes, multipliers))
        signs = flat(signs)
        bounds, slopes, multipliers, worst = self._ascended(
            input_bounds, functions, signs, slopes, multipliers, self._iterations, until
        )
        active = tf.reshape(tf.concat([tf.ones_like(splits), splits], axis=1), (-1,))
        return bounds, signs, slopes, multipliers, worst, active

    def _ascended(self, input_bounds, functions, signs, slopes, multipliers, iterations: int, until=math.inf):
        """Bounds [B], slopes and multipliers after the ascent, and the images that attain the last bounds."""
        arriving = {}

        def bound(variables):
            return self._lower(input_bounds, functions, signs, *variables)

        best = bound([slopes, multipliers])
        best, (slopes, multipliers) = ascend(
            bound,
            best,
            [slopes, multipliers],
            [1.0, np.inf],
            iterations=iterations,
            learning_rate=self._learning_rate,
            decay=0.98,
            in_time=partial(before, until),
        )
        last = self._lower(input_bounds, functions, signs, slopes, multipliers, arriving, rounded=self._sound)
        best = last if self._sound else tf.maximum(best, last)  # the ascent is that of rounded bounds
        return best, slopes, multipliers, worst_inputs(arriving[0], self._input_set(input_bounds[0]))

    # One argument per array of the domains.
    def _lower(
        self, input_bounds, functions, signs, slopes, multipliers, arriving: dict | None = None, rounded: bool = False
    ):
        """[B], the bound of each domain's function; if `rounded`, one that holds in real arithmetic."""
        sets = (Rounded(*arrays) if rounded else self._input_set(arrays) for arrays in input_bounds)
        intervals = dict(zip([0, *self._read], sets, strict=True))
        # A ReLU finds its interval by its input's number, and two ReLUs may read one step: each takes its half in turn.
        for number, sign in zip(self._relus, self._split_by_relu(signs), strict=True):
            read = self._steps[number].inputs[0]
            intervals[read] = halved(intervals[read], sign)
        slopes, tangents = slopes[:, : self._widths["signs"]], slopes[:, self._widths["signs"] :]
        apart = (self._split_by_relu(values) for values in (slopes, -signs * multipliers))
        slopes, multipliers = (dict(zip(self._relus, values, strict=True)) for values in apart)
        slopes |= dict(zip(self._curves, _split(tangents, self._tangents), strict=True))
        rows, offsets = LinearForms(functions[:, :-1]), functions[:, -1]
        return lower_bounds(self._steps, rows, intervals, slopes, multipliers, arriving) + offsets

    def _gaps(self, input_bounds, signs, arriving: dict):
        """[B, T], how much the line above each ReLU can cost; nearly 0 where no line is used, 0 where it is decided."""
        gaps = []
        for number, sign, end in zip(
            self._relus, self._split_by_relu(signs), self._relu_input_bounds(input_bounds), strict=True
        ):
            cost = _NEXT_TO_NOTHING - tf.minimum(arriving[number].coefficients, 0.0)
            gap = cost * relax(halved(self._input_set(end), sign)).intercept
            gaps.append(tf.reshape(gap, (-1, math.prod(gap.shape[1:]))))
        return tf.concat(gaps, axis=1)

    def _descended(self, images, functions, inputs):
        """The worst of some images [B, H, W, C], moved down their function of the logits: images, margins."""
        inputs = self._input_set(inputs)

        def margins(images, functions):
            outputs = tf.cast(self._outputs(images), self._dtype)
            return tf.reduce_sum(outputs * functions[:, :-1], axis=1) + functions[:, -1]

        first, worst = tf.math.top_k(-margins(images, functions), k=tf.minimum(DESCENTS, tf.shape(images)[0]))
        images, functions = tf.gather(images, worst), tf.gather(functions, worst)
        best, reached = images, -first
        for step in range(DESCENT_STEPS):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                values = margins(images, functions)
            images = _moved_down(images, tape.gradient(values, images), inputs, step)
            values = margins(images, functions)
            lower = values < reached
            best = tf.where(tf.reshape(lower, [-1] + [1] * (len(images.shape) - 1)), images, best)
            reached = tf.where(lower, values, reached)
        return best, reached

    def _relu_input_bounds(self, input_bounds) -> list:
        """The bounds of each ReLU's input."""
        return [self._bounds_read_by(number, input_bounds) for number in self._relus]

    def _bounds_read_by(self, number: int, input_bounds) -> Sequence:
        """The bounds of what a step reads."""
        return input_bounds[1 + self._read.index(self._steps[number].inputs[0])]

    def _split_by_relu(self, values) -> list:
        """[B, T] -> [B, *shape] of each ReLU."""
        return _split(values, self._shapes)


def _split(values, shapes: Sequence[tuple]) -> list:
    """Values side by side [B, T] -> [B, *shape] each."""
    pieces = tf.split(values, [math.prod(shape) for shape in shapes], axis=1) if shapes else []
    return [tf.reshape(piece, (-1, *shape)) for piece, shape in zip(pieces, shapes, strict=True)]


def searched(search: Iterator[Outcome], deadline: float) -> Outcome:
    """The outcome of a search when it ends, or after the step in which the time is over."""
    for outcome in search:
        if outcome.safe is not None or time.monotonic() > deadline:
            break
    return outcome


def on_clock_of_graphs(deadline: float) -> np.float64:
    """A time on the clock `time.monotonic` as one on that of `tf.timestamp`."""
    return np.float64(time.time() + deadline - time.monotonic())


def before(until):
    """Whether the clock of `tf.timestamp` has not reached a time; read whenever the graph gets here."""
    return tf.timestamp() < until


def _moved_down(images, gradients, inputs: Interval, step: int):
    """Images after a step down their gradients: of signs within a box, and of Frank and Wolfe within a ball."""
    if isinstance(inputs, Ball):
        return images + 2 / (step + 2) * (worst_inputs(LinearForms(gradients), inputs) - images)
    size = 2 * inputs.radius / 2 ** (1 + step / 2)
    return tf.clip_by_value(images - size * tf.sign(gradients), inputs.lower, inputs.upper)


def _logits(network: keras.Model, images):
    """A Keras network's logits, in its own dtype."""
    outputs = network(tf.cast(images, "float32"), training=False)
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def halved(x: Interval, signs) -> Interval:
    """The half of an interval on the side of 0 that the sign gives; the whole interval where the sign is 0."""
    lower = tf.where(signs > 0, tf.maximum(x.lower, 0.0), x.lower)
    return replace(x, lower=lower, upper=tf.where(signs < 0, tf.minimum(x.upper, 0.0), x.upper))
