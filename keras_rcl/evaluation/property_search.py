"""Whether conditions on a network's inputs and outputs can be satisfied: by attacks, and by branch and bound."""

import dataclasses
import functools
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import tensorflow as tf

from keras_rcl.bounds.beta_crown import Outcome, on_clock_of_graphs, searched
from keras_rcl.bounds.input_sets import outward
from keras_rcl.bounds.input_splitting import InputSplitting
from keras_rcl.bounds.interval import forward
from keras_rcl.bounds.properties import Condition, with_worst_constraint
from keras_rcl.bounds.region_splitting import RegionSplitting
from keras_rcl.folding.fold import Step, weights_of, with_weights

Answer = Literal["sat", "unsat", "timeout"]
"""The answer to a property: an input satisfies one of its conditions, none does, or time ran out."""

MAX_SPLIT_INPUTS = 20
"""Up to this number of inputs that vary, boxes of inputs are split; with more inputs, ReLUs are."""

ATTACK_ROUNDS, ATTACK_STEPS, ATTACK_POINTS = 10, 50, 256
"""Number of rounds of the attack, its steps per round, and the largest number of points per round."""

ATTACK_SHARE = 0.1
"""After this share of the time in attacks, no further round begins."""

MAX_REFINED, FIRST_SHARE = 2000, 0.1
"""Up to this number of ReLUs and values of curves, a search that did not end within this share of the time begins again
in regions."""

Check = Callable[[np.ndarray], np.ndarray | None]
Attacked = Callable[[], np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Found:
    """The answer to a property.

    Attributes:
        answer: `sat`, `unsat` or `timeout`.
        witness: what `check` returned of an input that satisfies a condition; None unless the answer is `sat`.
        decided_by: `attack`, `input-splitting`, `branch-and-bound`, or nothing.
        domains: number of domains that were bounded.
        seconds: run time.
    """

    answer: Answer
    witness: np.ndarray | None
    decided_by: str
    domains: int
    seconds: float


def structure_of(steps: Sequence[Step]) -> tuple:
    """A key that is equal for networks that differ in their weights alone."""

    def described(step: Step) -> tuple:
        weights = weights_of(step)
        others = {name: value for name, value in vars(step.operation).items() if name not in weights}
        return (
            type(step.operation).__name__,
            step.inputs,
            step.shape,
            tuple((name, value.shape) for name, value in weights.items()),
            tuple((name, v.tobytes() if isinstance(v, np.ndarray) else v) for name, v in others.items()),
        )

    return tuple(map(described, steps))


def _assign(variables: Sequence[Step], steps: Sequence[Step]) -> None:
    """Give the variables of steps the weights of others of the same structure."""
    for mine, other in zip(variables, steps, strict=True):
        for name, value in weights_of(other).items():
            variable = weights_of(mine)[name]
            variable.assign(value.astype(variable.dtype.name))


class PropertyVerifier:
    """Decides properties of networks of one structure; what was traced is used for all of them.

    Args:
        steps: a folded network, float64, whose last step is a vector.
        float64: compute the bounds of branch and bound in float64. Those of input splitting always are.
        seed: of the attack.
    """

    def __init__(self, steps: Sequence[Step], *, float64: bool = False, seed: int = 0):
        self._branch_dtype, self._seed = "float64" if float64 else "float32", seed
        self._steps = {dtype: with_weights(steps, functools.partial(tf.Variable, dtype=dtype)) for dtype in DTYPES}
        self._float64 = list(steps)
        points = tf.TensorSpec([None, *steps[0].shape], "float32")
        functions, until = tf.TensorSpec([None, None, steps[-1].shape[0] + 1], "float32"), tf.TensorSpec([], "float64")
        self._ascend = tf.function(self._ascended, autograph=False, input_signature=[points] * 3 + [functions, until])

    def load(self, steps: Sequence[Step]) -> None:
        """Take the weights of another network of the same structure."""
        self._float64 = list(steps)
        for variables in self._steps.values():
            _assign(variables, steps)

    @functools.cached_property
    def _splitting(self) -> InputSplitting:
        return InputSplitting(self._steps["float64"])

    @functools.cached_property
    def _branching(self) -> RegionSplitting:
        return RegionSplitting(self._steps[self._branch_dtype], dtype=self._branch_dtype)

    def __call__(self, conditions: Sequence[Condition], *, seconds: float, check: Check) -> Found:
        """Decide whether one of the conditions can be satisfied.

        Args:
            conditions: over the inputs and outputs of the steps.
            seconds: time limit, tracing included; the step that is computed when it is reached is completed.
            check: an input at which a condition seems to be satisfied -> a confirmed one, or None.
        """
        started = time.monotonic()
        deadline, domains = started + seconds, 0

        def found(answer: Answer, by: str = "", witness=None) -> Found:
            return Found(answer, witness, by, domains, time.monotonic() - started)

        if not conditions:
            return found("unsat", "bounds")
        if (witness := self._attack(conditions, range(1), deadline, deadline, check)) is not None:
            return found("sat", "attack", witness)

        @functools.cache
        def attack() -> np.ndarray | None:
            """The other rounds, which cost more than the first bounds do; they run once."""
            until = time.monotonic() + ATTACK_SHARE * seconds
            return self._attack(conditions, range(1, ATTACK_ROUNDS), until, deadline, check)

        answers, by = [], ""
        for group in _by_box(conditions):
            if not all(len(condition.offsets) for condition in group):
                if (witness := attack()) is not None:
                    return found("sat", "attack", witness)
                answers.append(None)  # every point of the box satisfies it, and the check confirms none
                continue
            by, outcome = self._decide(group, deadline, check, attack)
            domains += outcome.domains
            answers.append(outcome.safe)
            if outcome.safe is False:
                return found("sat", by, outcome.counterexample)
        return found("unsat", by) if all(answers) else found("timeout")

    def _decide(self, group: Sequence[Condition], deadline: float, check: Check, attack: Attacked):
        """The method and the outcome of conditions of one box; what few inputs vary are attacked before."""
        box = group[0].lower, group[0].upper
        if np.count_nonzero(box[0] < box[1]) <= MAX_SPLIT_INPUTS:
            if (witness := attack()) is not None:
                return "attack", Outcome(False, -np.inf, witness, 0)
            return "input-splitting", self._splitting.decide(group, deadline=deadline, check=check)
        if all(len(condition.offsets) == 1 for condition in group):
            rows, offsets = (np.concatenate([getattr(c, name) for c in group]) for name in ("rows", "offsets"))
            return _branched(self._branching, (*box, rows, offsets), deadline, check, attack)
        steps = with_weights(with_worst_constraint(self._float64, group), self._of_branch_dtype)
        branching = RegionSplitting(steps, dtype=self._branch_dtype)
        return _branched(branching, (*box, np.eye(len(group))), deadline, check, attack)

    def _of_branch_dtype(self, weight) -> np.ndarray:
        return np.asarray(weight, self._branch_dtype)

    def _attack(
        self, conditions: Sequence[Condition], rounds: range, until: float, deadline: float, check: Check
    ) -> np.ndarray | None:
        """A confirmed input that satisfies a condition, or None; from the centers in round 0, then random points.

        After `until` no round begins; at the deadline the one that is under way stops.
        """
        rng, most = np.random.default_rng(self._seed), max(1, *(len(c.offsets) for c in conditions))
        boxes = [outward(c.lower, c.upper, "float32") for c in conditions]
        low, high = (np.stack([box[side] for box in boxes]) for side in (0, 1))
        functions = np.stack([_padded(condition, most) for condition in conditions])
        stop = on_clock_of_graphs(deadline)
        for round_number in rounds:
            if time.monotonic() > until:
                return None
            copies = 1 if round_number == 0 else max(1, ATTACK_POINTS // len(conditions))
            chosen = np.tile(np.arange(len(conditions)), copies)
            for start in range(0, len(chosen), ATTACK_POINTS):
                some = chosen[start : start + ATTACK_POINTS]
                share = rng.random((len(some), *low.shape[1:]), np.float32) if round_number else np.float32(0.5)
                points = low[some] + share * (high[some] - low[some])
                points, values = self._ascend(points, low[some], high[some], functions[some], stop)
                for index in np.flatnonzero(values.numpy() <= 0):
                    if (witness := check(points[index].numpy())) is not None:
                        return witness
        return None

    def _ascended(self, points, low, high, functions, stop):
        """Points [P, *shape] at which the largest constraint is lower, and its values [P]; functions [P, M, K + 1]."""

        def largest(points):
            outputs = forward(self._steps["float32"], points)
            return tf.reduce_max(tf.einsum("pk,pmk->pm", outputs, functions[:, :, :-1]) + functions[:, :, -1], axis=1)

        def move(step, points, best, least):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(points)
                values = largest(points)
            gradient, lower = tape.gradient(values, points), values < least
            best = tf.where(tf.reshape(lower, [-1] + [1] * (len(points.shape) - 1)), points, best)
            size = (high - low) * 0.25 * 0.9 ** tf.cast(step, points.dtype)
            moved = tf.clip_by_value(points - size * tf.sign(gradient), low, high)
            return step + 1, moved, best, tf.where(lower, values, least)

        infinite = tf.fill(tf.shape(points)[:1], np.float32(np.inf))
        _, _, best, least = tf.while_loop(
            lambda step, _, __, least: (step <= ATTACK_STEPS) & tf.reduce_all(least > 0) & (tf.timestamp() < stop),
            move,
            (0, points, points, infinite),
        )
        return best, least


DTYPES = ("float32", "float64")


def _branched(
    branching: RegionSplitting, question: tuple, deadline: float, check: Check, attack: Attacked
) -> tuple[str, Outcome]:
    """Branch and bound from CROWN's bounds; then, for a network that is small enough, again from refined bounds.

    What the first bounds leave open is attacked before the search continues.
    """
    search = branching.search(*question, deadline=deadline, check=check)
    outcome = next(search)
    if outcome.safe is None and (witness := attack()) is not None:
        return "attack", Outcome(False, outcome.lower, witness, outcome.domains)
    refines, now = branching.num_activations <= MAX_REFINED, time.monotonic()
    first = now + FIRST_SHARE * (deadline - now) if refines else deadline
    outcome = searched(itertools.chain([outcome], search), first)
    if outcome.safe is None and refines and time.monotonic() <= deadline:
        again = branching.decide_in_regions(*question, deadline=deadline, check=check)
        outcome = dataclasses.replace(again, domains=outcome.domains + again.domains)
    return "branch-and-bound", outcome


def _by_box(conditions: Sequence[Condition]) -> list[list[Condition]]:
    """The conditions in groups of one box each."""
    groups = defaultdict(list)
    for condition in conditions:
        groups[condition.lower.tobytes() + condition.upper.tobytes()].append(condition)
    return list(groups.values())


def _padded(condition: Condition, count: int) -> np.ndarray:
    """The constraints as float32 [count, K + 1], the first repeated; those of no constraint are -1 everywhere."""
    functions = np.column_stack([condition.rows, condition.offsets])
    if not len(functions):
        functions = np.append(np.zeros((1, condition.rows.shape[1])), [[-1.0]], axis=1)
    index = np.minimum(np.arange(count), len(functions) - 1)
    return functions[index].astype(np.float32)
