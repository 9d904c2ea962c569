"""What the next trial of a study is: drawn by Optuna, or one of the best trials of another study with another seed."""

import itertools
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from keras_rcl.errors import InvalidInputError
from keras_rcl.storage.atomic import atomic_path
from keras_rcl.vocabulary.search import Choice, Range

HISTORY, IMPORTANCE = "history.png", "importance.png"
"""The pictures of a search: the objective of each trial, and the importance of each setting."""

Table = Mapping[int, Mapping[str, Any]]
"""The trials of a study, by number."""


class Proposals(Protocol):
    """Where the trials of a study come from.

    Attributes:
        question: What the proposals depend on; part of the fingerprint of the study.
    """

    question: Mapping[str, Any]

    def restore(self, table: Table) -> None:
        """Take the trials of an earlier command. Raises ValueError, KeyError or TypeError if they are not ours."""
        ...

    def propose(self, number: int) -> dict[str, Any]:
        """Return the `settings` of a new trial, and `repeats`, the number of the trial that it repeats, if any."""
        ...

    def ended(self, trial: Mapping[str, Any]) -> None:
        """Take the outcome of a trial."""
        ...

    def best(self, table: Table) -> Mapping[str, Any] | None:
        """Return `number`, `objective` and `settings` of the best trial; None if none was measured.

        `seeds` is their number if the objective is a mean over seeds.
        """
        ...

    def draw(self, folder: Path, objective: str) -> None:
        """Write the pictures of the study."""
        ...


class Sampled:
    """Settings drawn by Optuna's TPE sampler.

    Args:
        space: The range of each setting.
        first: Values of settings that the first trial has; the others are drawn.
        seed: Of the sampler.
        exhaustive: Draw nothing after the first trial: propose the combinations of values in order, each once.

    Raises:
        InvalidInputError: If Optuna is not installed.
    """

    def __init__(self, space: Mapping[str, Range], first: Mapping[str, Any], seed: int, exhaustive: bool = False):
        self._space, self._first, self._seed, self._exhaustive = space, first, seed, exhaustive
        self._optuna = _optuna()
        self._distributions = {setting: self._distribution(values) for setting, values in space.items()}
        self.question: Mapping[str, Any] = {"search": {setting: str(values) for setting, values in space.items()}}

    def restore(self, table: Table) -> None:
        optuna = self._optuna
        self._study = optuna.create_study(direction="maximize")
        state_of = optuna.trial.TrialState
        known = {"done": state_of.COMPLETE, "failed": state_of.FAIL, "running": state_of.RUNNING}
        known["pruned"] = state_of.PRUNED
        for _, trial in sorted(table.items()):
            state = known[trial["state"]]
            self._study.add_trial(
                optuna.trial.create_trial(
                    params={setting: self._value(setting, text) for setting, text in trial["settings"].items()},
                    distributions=self._distributions,
                    state=state,
                    value=trial["objective"] if state is state_of.COMPLETE else None,
                    intermediate_values=_reports(trial) if state is state_of.PRUNED else None,
                )
            )

    def propose(self, number: int) -> dict[str, Any]:
        # One sampler per trial, so that a resumed search draws the same settings as an uninterrupted one.
        entropy = np.random.SeedSequence((self._seed, number)).generate_state(1)
        self._study.sampler = self._optuna.samplers.TPESampler(seed=int(entropy[0]))
        if number == 0 and self._first:
            self._study.enqueue_trial(self._first)
        elif self._exhaustive and (untried := self._untried()):
            self._study.enqueue_trial(untried)
        asked = self._study.ask(self._distributions)
        return {"settings": {name: self._space[name].text(value) for name, value in asked.params.items()}}

    def ended(self, trial: Mapping[str, Any]) -> None:
        number, state = trial["number"], self._optuna.trial.TrialState
        if trial["state"] == "done" and math.isfinite(trial["objective"]):
            self._study.tell(number, trial["objective"])
        elif trial["state"] == "pruned":
            stopped = self._optuna.trial.Trial(self._study, number)
            for step, value in _reports(trial).items():
                stopped.report(value, step)
            self._study.tell(number, state=state.PRUNED)
        else:
            self._study.tell(number, state=state.FAIL)

    def best(self, table: Table) -> Mapping[str, Any] | None:
        """The trial with the highest objective, the first of several."""
        return next(iter(best_first(table)), None)

    def draw(self, folder: Path, objective: str) -> None:
        """The importance needs at least two objectives that differ."""
        from matplotlib import pyplot as plt
        from optuna.visualization import matplotlib as plots

        done = {trial.value for trial in self._study.get_trials(states=[self._optuna.trial.TrialState.COMPLETE])}
        drawn = {HISTORY: plots.plot_optimization_history} if done else {}
        if len(done) > 1:
            drawn[IMPORTANCE] = plots.plot_param_importances
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            for name, plot in drawn.items():
                figure = plot(self._study, target_name=objective).figure
                with atomic_path(folder / name) as temporary:
                    figure.savefig(temporary, dpi=150, format="png", bbox_inches="tight")
                plt.close(figure)

    def _untried(self) -> dict[str, Any] | None:
        """The first combination of values that no trial has; None if each was tried."""
        tried = [trial.params for trial in self._study.get_trials(deepcopy=False)]
        every = itertools.product(*(values.all_values or () for values in self._space.values()))
        found = (dict(zip(self._space, values, strict=True)) for values in every)
        return next((settings for settings in found if settings not in tried), None)

    def _distribution(self, values: Range):
        of = self._optuna.distributions
        if isinstance(values, Choice):
            return of.CategoricalDistribution(values.values)
        if values.name == "int":
            return of.IntDistribution(int(values.low), int(values.high))
        return of.FloatDistribution(values.low, values.high, log=values.name == "log")

    def _value(self, setting: str, text: str):
        values = self._space[setting]
        return text if isinstance(values, Choice) else int(text) if values.name == "int" else float(text)


class Repeated:
    """The best trials of another study, each with several seeds: first all with the first seed.

    Args:
        trials: The trials to repeat, with `number` and `settings`.
        seed: The first seed.
    """

    def __init__(self, trials: Sequence[Mapping[str, Any]], seed: int):
        self._trials, self._seed = [{name: trial[name] for name in ("number", "settings")} for trial in trials], seed
        self.question: Mapping[str, Any] = {"repeat": self._trials}

    def restore(self, table: Table) -> None:
        for number, trial in table.items():
            if trial["settings"] != self.propose(number)["settings"]:
                raise ValueError(f"trial {number} has other settings than the trial that it repeats")

    def propose(self, number: int) -> dict[str, Any]:
        seed, place = divmod(number, len(self._trials))
        repeated = self._trials[place]
        return {
            "repeats": repeated["number"],
            "settings": {**repeated["settings"], "seed": str(self._seed + seed)},
        }

    def ended(self, trial: Mapping[str, Any]) -> None:
        pass

    def best(self, table: Table) -> Mapping[str, Any] | None:
        """The repeated trial with the highest mean objective, of those with the most seeds; `number` is its own."""
        found = []
        for trial in self._trials:
            values = [made["objective"] for made in _done(table) if made["repeats"] == trial["number"]]
            if values:
                found.append((len(values), statistics.fmean(values), trial))
        if not found:
            return None
        seeds, mean, trial = max(found, key=lambda one: one[:2])
        return {**trial, "objective": mean, "seeds": seeds}

    def draw(self, folder: Path, objective: str) -> None:
        """Nothing: a few values per trial are read in the table."""


def best_first(table: Table) -> list[Mapping[str, Any]]:
    """The trials that were measured, the highest objective first."""
    return sorted(_done(table), key=lambda trial: -trial["objective"])


def _done(table: Table) -> list[Mapping[str, Any]]:
    return [trial for _, trial in sorted(table.items()) if trial["state"] == "done"]


def _reports(trial: Mapping[str, Any]) -> dict[int, float]:
    """What Optuna learns of a trial that was stopped early: its objectives by the thousandths of the last phase."""
    return {round(1000 * share): value for share, value in trial["curve"]}


def _optuna():
    """Import Optuna, without its log."""
    try:
        import optuna
    except ImportError:
        raise InvalidInputError("tune needs Optuna, which is not installed: pip install 'keras_rcl[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
