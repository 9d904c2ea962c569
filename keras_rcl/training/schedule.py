"""The order of a training's epochs, and the position of a training in it."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from keras_rcl.training.phase_runner import PhaseRunner


class PhaseWithRefreshes(NamedTuple):
    """A phase and the phases that run before each of its epochs, compiled."""

    runner: PhaseRunner
    refreshes: tuple[PhaseRunner, ...] = ()


class ScheduledEpoch(NamedTuple):
    """One epoch of a phase or of one of its refreshes.

    Attributes:
        number: The number of the phase, from 1.
        epoch: The number of the epoch within the phase, from 1.
        runner: Runs the epoch.
        begins: The runners that begin just before this epoch.
        label: The position in words.
    """

    number: int
    epoch: int
    runner: PhaseRunner
    begins: tuple[PhaseRunner, ...]
    label: str


def schedule(phases: Sequence[PhaseWithRefreshes]) -> Iterator[ScheduledEpoch]:
    """All epochs of a training in order. A phase without epochs is left out."""
    for number, (runner, refreshes) in enumerate(phases, start=1):
        begins: tuple[PhaseRunner, ...] = (runner,)
        for epoch in range(1, runner.phase.epochs + 1):
            label = f"{number}/{len(phases)} {runner.phase.name}  epoch {epoch}/{runner.phase.epochs}"
            for inner in refreshes:
                begins += (inner,)
                for inner_epoch in range(1, inner.phase.epochs + 1):
                    inner_label = f"{label}  {inner.phase.name} {inner_epoch}/{inner.phase.epochs}"
                    yield ScheduledEpoch(number, epoch, inner, begins, inner_label)
                    begins = ()
            yield ScheduledEpoch(number, epoch, runner, begins, label)
            begins = ()


@dataclasses.dataclass
class TrainingPosition:
    """How far a training is, and what it remembers besides variables; JSON values.

    Attributes:
        done: How many scheduled epochs are done.
        step: How many steps of the next scheduled epoch are done.
        recorded: How many lines of metrics were written.
        best: The validation metrics of the best epoch so far.
        best_monitored: The highest accuracy under the monitored attack in the current phase.
        warned: The names of the warnings that were given in the current phase.
    """

    done: int = 0
    step: int = 0
    recorded: int = 0
    best: dict[str, float] = dataclasses.field(default_factory=dict)
    best_monitored: float = 0.0
    warned: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The position as it is stored in a snapshot, where `done` is called `leg`."""
        stored = dataclasses.asdict(self)
        return {"leg": stored.pop("done"), **stored}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "TrainingPosition":
        """The position that `to_json` stored."""
        return cls(done=stored["leg"], **{name: value for name, value in stored.items() if name != "leg"})
