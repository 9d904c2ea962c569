"""The composition of a search for hyper-parameters: trials are trainings, measured on the validation part alone."""

import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from pydantic import TypeAdapter

from keras_rcl import config
from keras_rcl.config import Experiment
from keras_rcl.data import sources
from keras_rcl.data.adversarial_store import with_stored
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.record import command_line
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.runtime.process_pool import in_processes
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.atomic import atomic_path
from keras_rcl.storage.snapshots import SnapshotStore
from keras_rcl.training.monitor import DEAD
from keras_rcl.training.run_context import RunContext
from keras_rcl.training.tensorboard import TensorBoardWriter, flatten
from keras_rcl.vocabulary.attacks import Attack
from keras_rcl.vocabulary.search import Range
from keras_rcl.workflows.fit import fingerprint_of, hash_data, networks, output_of, train
from keras_rcl.workflows.inputs import pixels
from keras_rcl.workflows.trial_table import BEST, Study, lock_folder

UNITS = 1000
"""How finely the bar shows a trial."""


class Job(NamedTuple):
    """One trial, as a process needs it: its number, the experiment as plain values, the attack likewise, the folder."""

    number: int
    experiment: dict[str, Any]
    attack: dict[str, Any]
    objective: str
    folder: str
    save_every: float


def tune(
    experiment: Experiment,
    vary: Callable[[Sequence[str]], Experiment],
    space: Mapping[str, Range],
    *,
    objective: str = "robust_accuracy",
    attack: Attack | None = None,
    trials: int = 20,
    workers: int = 1,
    output_dir: Path | None = None,
    overwrite: bool = False,
    save_every: float = 60.0,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Path]:
    """Search for hyper-parameters, by Optuna's TPE; the first trial is of the experiment as it is.

    What is maximised is measured on the validation part; the test part is taken away before anything is trained. The
    same call, made again after it was broken off at any instant, goes on from there, trainings included; with more
    `trials` it goes on from the end. With one worker it ends in the table that it would have ended in.

    Args:
        experiment: what to start from.
        vary: settings as `--set` takes them -> the experiment with these.
        space: settings, such as `method.temperature`, and where they may lie.
        objective: one of `OBJECTIVES`.
        attack: of the robust accuracy; the experiment's `validation_attack` where not given.
        trials: how many in all.
        workers: processes that train at once.
        output_dir: the folder; `tuned/<data set>-<variant>` where not given. Receives `study.json`, `best.yaml` and
            `trials/<number>/` with each training's metrics and TensorBoard.
        overwrite: replace the folder.
        save_every: seconds of training between two states.
        progress: where progress is shown.

    Returns:
        The fingerprint and the table of trials, and the folder.

    Raises:
        InvalidInputError: if a setting or an end of its range is none, there is nothing to validate on, or the folder
            is taken.
        KeyboardInterrupt: with the word that the same command resumes.
    """
    progress, attack = progress or Silent(), attack or experiment.evaluation.validation_attack
    _check_attack(attack)
    if not space:
        raise InvalidInputError(
            f"{experiment.method.name} has nothing to search by default; give --search SETTING=RANGE"
        )
    for setting, values in space.items():
        for end in values.ends:
            _varied(vary, setting, values, end)
    data = _without_test(experiment)
    search = {
        "search": {setting: str(values) for setting, values in space.items()},
        "objective": objective,
        "attack": TypeAdapter(Attack).dump_python(attack, mode="json"),
    }
    training = fingerprint_of(experiment, hash_data(data))
    fingerprint = dataclasses.replace(training, settings={**training.settings, **search})
    del data
    if workers > 1:
        _loaded.cache_clear()
    folder = output_dir or Path("tuned") / f"{experiment.dataset.name}-{experiment.method.name}"
    with Study(folder, fingerprint, space, experiment, overwrite) as study:
        if done := len(study.ended()):
            progress.say(f"resuming {folder}: {done} trials done")

        def jobs() -> Iterator[Job]:
            for number in study.numbers(trials):
                varied, reason = _experiment(vary, study.settings(number))
                if varied is None:
                    study.end(number, {"state": "failed", "reason": reason})
                    continue
                made = TypeAdapter(Attack).dump_python(attack, mode="json")
                place = str(folder / "trials" / f"{number:04}")
                yield Job(number, config.to_dict(varied), made, objective, place, save_every)

        shares: dict[int, float] = {}
        progress.start("trials", trials * UNITS)

        def report(number: int, share: float | None, outcome: dict[str, Any] | None) -> None:
            if outcome is not None:
                study.end(number, outcome)
                for left in ("training", "checkpoints"):
                    shutil.rmtree(folder / "trials" / f"{number:04}" / left, ignore_errors=True)
                shares.pop(number, None)
                progress.say(_line(study.table[number], study.best()))
                progress.start("trials", trials * UNITS)
            elif share is not None:
                shares[number] = share
            best = study.best()
            note = f"best {objective} {best['objective']:.2%}" if best else ""
            progress.update(round(UNITS * (len(study.ended()) + sum(shares.values()))), note)

        try:
            if workers == 1:
                for job in jobs():
                    report(job.number, None, run_trial(job, functools.partial(_tell, report, job.number)))
            else:
                in_processes(jobs(), report, workers, function=f"{__name__}:run_trial", failed=_failed)
        except KeyboardInterrupt as stop:
            raise type(stop)("the same command resumes") from None
        progress.finish()
        best = study.best()
        if best:
            command = " ".join(command_line().split())
            header = f"# Trial {best['number']} of `{command}`: {objective} {best['objective']:.4f}\n"
            text = header + config.to_yaml(dataclasses.replace(vary(_as_settings(best["settings"])), compare=()))
            with atomic_path(folder / BEST) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return study.told(), folder


def _tell(report: Callable, number: int, share: float) -> None:
    report(number, share, None)


def _failed(reason: str) -> dict[str, Any]:
    return {"state": "failed", "reason": reason}


def _line(trial: Mapping[str, Any], best: Mapping[str, Any] | None) -> str:
    """What is said of a trial that has ended."""
    what = trial.get("reason") or f"{trial['objective']:.2%}" + (" (best)" if best is trial else "")
    return f"trial {trial['number']}: {what}  {', '.join(_as_settings(trial['settings']))}"


def _as_settings(values: Mapping[str, str]) -> list[str]:
    return [f"{setting}={value}" for setting, value in values.items()]


def _varied(vary: Callable, setting: str, values: Range, end: str) -> Experiment:
    try:
        return vary([f"{setting}={end}"])
    except InvalidInputError as error:
        raise InvalidInputError(f"--search {setting}={values}: at {end}: {error}") from None


def _experiment(vary: Callable, settings: Mapping[str, str]) -> tuple[Experiment | None, str]:
    """The experiment with these settings, or why there is none: some go each alone and not together."""
    try:
        return vary(_as_settings(settings)), ""
    except InvalidInputError as error:
        return None, str(error)


def _check_attack(attack: Attack) -> None:
    if attack.target_output != "logits" or attack.proxy or attack.training_only:
        raise InvalidInputError(
            f"--attack {attack.label} does not look at the network's own logits; choose pgd or autoattack"
        )


@functools.lru_cache(maxsize=1)
def _loaded(dataset) -> sources.ImageData:
    return sources.load(dataset)


def _without_test(experiment: Experiment) -> sources.ImageData:
    """The experiment's data without its test part: nothing here can look at it."""
    if not experiment.dataset.validation_fraction:
        raise InvalidInputError(
            "dataset.validation_fraction is 0, and trials are compared on validation images; set it, such as "
            "--set dataset.validation_fraction=0.2"
        )
    data = _loaded(experiment.dataset)
    nothing = sources.Split(data.test.images[:0], data.test.labels[:0], data.test.indices[:0])
    data = dataclasses.replace(data, test=nothing)
    if not len(data.validation.labels):
        raise InvalidInputError(
            f"{data.name} has no validation images to compare trials on; raise dataset.validation_fraction"
        )
    return with_stored(data, config.training_attacks(experiment.method.phases()))


def run_trial(job: Job, tell: Callable[[float], None]) -> dict[str, Any]:
    """Train, and measure on the validation part; go on where a process before was killed.

    Args:
        job: what to do.
        tell: takes the share of the training that is done.

    Returns:
        Its state, `done` or `failed`; what it reached, or the reason.
    """
    folder = Path(job.folder)
    experiment = config.parse(job.experiment, f"trial {job.number}")
    attack = TypeAdapter(Attack).validate_python(job.attack)
    folder.mkdir(parents=True, exist_ok=True)
    keras.backend.clear_session()
    with lock_folder(folder, wait=True):
        states = SnapshotStore(folder, lambda line: None)
        resumed = states.rewind()
        try:
            data = _without_test(experiment)
            pair = networks(experiment, data)
            with TensorBoardWriter(folder) as writer:
                context = RunContext(
                    folder,
                    writer,
                    snapshots=states,
                    resumed=resumed,
                    save_every=job.save_every,
                    progress=_Share(tell),
                )
                chosen = train(experiment, data, pair, context)
                outcome = _measured(experiment, data, pair[1], attack, job.objective)
                outcome |= {"epoch": chosen.get("epoch"), "seconds": round(states.seconds, 1)}
                reached = {name: outcome[name] for name in ("clean_accuracy", "robust_accuracy")}
                writer.hparams(flatten(config.to_dict(experiment)), {f"validation {k}": v for k, v in reached.items()})
            if reason := _dead(folder, job.objective):
                outcome |= {"state": "failed", "reason": reason}
        except (InvalidInputError, tf.errors.OpError) as error:
            outcome = {"state": "failed", "reason": " ".join(str(error).split())[:600]}
    return outcome


def _measured(experiment, data, network: keras.Model, attack: Attack, objective: str) -> dict[str, Any]:
    """Both accuracies on the validation part, and the objective."""
    evaluation = experiment.evaluation
    held_out = data.validation.limited(evaluation.validation_limit)
    size = min(evaluation.batch_size, len(held_out.labels))
    evaluator = Evaluator(
        output_of(network, "logits"), (attack,), batch_size=size, seed=experiment.seed, jit=experiment.jit
    )
    survival = evaluator(pixels(held_out.images), held_out.labels)
    clean, robust = survival.clean_accuracy, survival.rows()[0]["robust_accuracy"]
    return {
        "state": "done",
        "objective": objective_value(objective, clean, robust),
        "clean_accuracy": clean,
        "robust_accuracy": robust,
        "images": len(held_out.labels),
    }


def objective_value(objective: str, clean: float, robust: float) -> float:
    """One of the accuracies, (clean + robust) / 2, or 2 clean robust / (clean + robust), which is 0 where both are."""
    if objective == "mean":
        return (clean + robust) / 2
    if objective == "harmonic_mean":
        return 2 * clean * robust / (clean + robust) if clean + robust else 0.0
    return {"clean_accuracy": clean, "robust_accuracy": robust}[objective]


def _dead(folder: Path, objective: str) -> str | None:
    """Why a finished training is not to be believed: an attack that met mostly zero gradients in a phase's last epoch.

    The training's own, by which it is then no adversarial training; or the monitored one, by which a robust accuracy
    is high because the gradient is gone.
    """
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # of a method without epochs
        return None
    ends = list({line["phase"]: line for line in map(json.loads, lines)}.items())
    for phase, line in ends:
        monitored = phase == ends[-1][0] and objective != "clean_accuracy"
        for name in ("zero_gradients", "monitor_zero_gradients")[: 1 + monitored]:
            if (share := line.get(name) or 0.0) > DEAD:
                return f"dead attack: {share:.0%} of the pixel gradients at the end of {phase} are zero ({name})"
    return None


class _Share(Silent):
    """Tells the share of all planned work that is done."""

    def __init__(self, tell: Callable[[float], None]):
        self._tell, self._told = tell, 0.0
        self._planned, self._completed, self._total, self._work = 0.0, 0.0, 1, 0.0

    def plan(self, total_work: float) -> None:
        self._planned = total_work

    def start(self, label: str, total: int, work: float = 0.0) -> None:
        self._total, self._work = max(total, 1), work

    def update(self, done: int, note: str = "") -> None:
        if time.monotonic() - self._told > 0.2:
            self._told = time.monotonic()
            share = (self._completed + self._work * done / self._total) / self._planned if self._planned else 0.0
            self._tell(min(share, 1.0))

    def finish(self, note: str = "") -> None:
        self._completed += self._work
