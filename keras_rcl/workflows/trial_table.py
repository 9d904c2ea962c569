"""A search for hyper-parameters on disk: its fingerprint, the table of its trials, and the next trial to run."""

import contextlib
import dataclasses
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from keras_rcl import config
from keras_rcl.config import Experiment
from keras_rcl.errors import InvalidInputError
from keras_rcl.storage import kinds
from keras_rcl.storage.atomic import atomic_path, check_writable, sweep, write_json
from keras_rcl.storage.fingerprint import Fingerprint
from keras_rcl.storage.lock import Lock
from keras_rcl.vocabulary.attacks import Attack, describe
from keras_rcl.vocabulary.search import Choice, Range

FORMAT = 1
STUDY, BEST = "study.json", "best.yaml"
"""What the folder holds: the fingerprint with the table of trials, and the experiment of the best of them."""
HISTORY, IMPORTANCE = "history.png", "importance.png"
"""The pictures: the objective of each trial, and the importance of each setting."""


def lock_folder(folder: Path, *, wait: bool = False) -> Lock:
    """Lock the folder of a study or of a trial, see `Lock`."""
    return Lock(folder / ".lock", subject=folder, option="--output-dir", wait=wait)


class Study:
    """The table of trials on disk, written again whenever a trial begins or ends, and the sampler that continues it.

    As a context it holds the lock of the folder.

    Args:
        folder: Of the study.
        fingerprint: What the table depends on.
        space: The range of each setting.
        first: Values of settings that the first trial has; the others are drawn.
        overwrite: Replace another study.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Fingerprint,
        space: Mapping[str, Range],
        first: Mapping[str, Any],
        overwrite: bool,
    ):
        self.folder, self.fingerprint, self.space = Path(folder), fingerprint, space
        self._first, self._overwrite = first, overwrite
        self._optuna = _optuna()
        self._distributions = {setting: self._distribution(values) for setting, values in space.items()}
        self.table: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> "Study":
        if self.folder.exists() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
            if not (self.folder / STUDY).is_file():
                raise InvalidInputError(
                    f"{self.folder} has no {STUDY}, so it is not ours to write; choose another --output-dir"
                )
        check_writable(self.folder)
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock_folder(self.folder))
            sweep(self.folder)
            self._read()
            try:
                self._study = self._rebuilt()
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidInputError(
                    f"{self.folder / STUDY} is not a study: {error}; remove {self.folder}"
                ) from None
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def _read(self) -> None:
        """Read the table, if there is one that is not to be replaced."""
        path = self.folder / STUDY
        if not path.is_file():
            return
        found = kinds.STUDY.read(path)
        stored = Fingerprint.from_json(self._completed(found["question"]))
        table: dict[int, dict[str, Any]] = {trial["number"]: dict(trial) for trial in found["trials"]}
        if stored == self.fingerprint:
            self.table = table
            return
        if not self._overwrite:
            self.fingerprint.check_equal(stored, f"{self.folder} holds a study", "--output-dir")
        for inner in ("trials", BEST, STUDY, HISTORY, IMPORTANCE):
            target = self.folder / inner
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)

    def _completed(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """A stored fingerprint with the defaults of the settings that this version added."""
        names = (field.name for field in dataclasses.fields(Experiment))
        stored = {name: question[name] for name in names if name in question}
        try:
            full = config.to_dict(config.parse(stored, str(self.folder / STUDY)))
        except InvalidInputError:  # settings that this version does not know differ in any case
            return dict(question)
        return {**question, **{name: full[name] for name in stored}}

    def _rebuilt(self):
        """Optuna's study with the trials of the table."""
        optuna = self._optuna
        study = optuna.create_study(direction="maximize")
        state_of = optuna.trial.TrialState
        known = {"done": state_of.COMPLETE, "failed": state_of.FAIL, "running": state_of.RUNNING}
        known["pruned"] = state_of.PRUNED
        for _, trial in sorted(self.table.items()):
            state = known[trial["state"]]
            study.add_trial(
                optuna.trial.create_trial(
                    params={setting: self._value(setting, text) for setting, text in trial["settings"].items()},
                    distributions=self._distributions,
                    state=state,
                    value=trial["objective"] if state is state_of.COMPLETE else None,
                    intermediate_values=_reports(trial) if state is state_of.PRUNED else None,
                )
            )
        return study

    def _distribution(self, values: Range):
        of = self._optuna.distributions
        if isinstance(values, Choice):
            return of.CategoricalDistribution(values.values)
        if values.name == "int":
            return of.IntDistribution(int(values.low), int(values.high))
        return of.FloatDistribution(values.low, values.high, log=values.name == "log")

    def _value(self, setting: str, text: str):
        values = self.space[setting]
        return text if isinstance(values, Choice) else int(text) if values.name == "int" else float(text)

    def numbers(self, count: int) -> Iterator[int]:
        """The numbers of the trials to run, up to `count` trials in all: first those that were interrupted."""
        yield from [number for number, trial in sorted(self.table.items()) if trial["state"] == "running"]
        while len(self.table) < count:
            number = len(self.table)
            # One sampler per trial, so that a resumed search draws the same settings as an uninterrupted one.
            entropy = np.random.SeedSequence((self.fingerprint.seed or 0, number)).generate_state(1)
            self._study.sampler = self._optuna.samplers.TPESampler(seed=int(entropy[0]))
            if number == 0 and self._first:
                self._study.enqueue_trial(self._first)
            asked = self._study.ask(self._distributions)
            settings = {name: self.space[name].text(value) for name, value in asked.params.items()}
            self.table[number] = {"number": number, "settings": settings, "state": "running"}
            self._write()
            yield number

    def settings(self, number: int) -> dict[str, str]:
        return self.table[number]["settings"]

    def end(self, number: int, outcome: Mapping[str, Any]) -> None:
        """Store the outcome of a trial."""
        trial = self.table[number] = {**self.table[number], **outcome}
        state = self._optuna.trial.TrialState
        if trial["state"] == "done" and math.isfinite(trial["objective"]):
            self._study.tell(number, trial["objective"])
        elif trial["state"] == "pruned":
            stopped = self._optuna.trial.Trial(self._study, number)
            for step, value in _reports(trial).items():
                stopped.report(value, step)
            self._study.tell(number, state=state.PRUNED)
        else:
            self._study.tell(number, state=state.FAIL)
        self._write()

    def ended(self) -> list[dict[str, Any]]:
        return [trial for trial in self.table.values() if trial["state"] != "running"]

    def best(self) -> dict[str, Any] | None:
        """The trial with the highest objective, the first of several; None if none was measured."""
        done = [trial for _, trial in sorted(self.table.items()) if trial["state"] == "done"]
        return max(done, key=lambda trial: trial["objective"], default=None)

    def draw(self) -> None:
        """Write the pictures of the search: the objective of each trial, and the importance of each setting.

        The importance needs at least two objectives that differ.
        """
        from matplotlib import pyplot as plt
        from optuna.visualization import matplotlib as plots

        objective = self.fingerprint.settings["objective"]
        done = [trial["objective"] for trial in self.table.values() if trial["state"] == "done"]
        drawn = {HISTORY: plots.plot_optimization_history} if done else {}
        if len(set(done)) > 1:
            drawn[IMPORTANCE] = plots.plot_param_importances
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            for name, plot in drawn.items():
                figure = plot(self._study, target_name=objective).figure
                with atomic_path(self.folder / name) as temporary:
                    figure.savefig(temporary, dpi=150, format="png", bbox_inches="tight")
                plt.close(figure)

    def to_json(self) -> dict[str, Any]:
        """The study as it is stored."""
        best = self.best()
        trials = [trial for _, trial in sorted(self.table.items())]
        return {
            "format": FORMAT,
            "question": self.fingerprint.to_json(),
            "objective": self.fingerprint.settings["objective"],
            "attack": describe(TypeAdapter(Attack).validate_python(self.fingerprint.settings["attack"])),
            "best": best and best["number"],
            "trials": trials,
        }

    def _write(self) -> None:
        write_json(self.folder / STUDY, self.to_json())


def _reports(trial: Mapping[str, Any]) -> dict[int, float]:
    """What Optuna learns of a trial that was stopped early: its objectives by the thousandths of the last phase."""
    return {round(1000 * share): value for share, value in trial["curve"]}


def _optuna():
    """Import Optuna, without its log.

    Raises:
        InvalidInputError: If Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise InvalidInputError("tune needs Optuna, which is not installed: pip install 'keras_rcl[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
