"""The `tune` command: a search for hyper-parameters whose trials are trainings, measured on the validation split."""

import dataclasses
import functools
import shutil
import statistics
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
from keras_rcl.model_io.own_encoder import load_own_encoder
from keras_rcl.runtime.process_pool import in_processes
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.runtime.signals import raised_signals
from keras_rcl.storage.atomic import CannotWrite, atomic_path, disk_error, refusal
from keras_rcl.storage.fingerprint import Fingerprint
from keras_rcl.storage.kinds import METRICS
from keras_rcl.storage.snapshots import SnapshotStore
from keras_rcl.training.monitor import DEAD
from keras_rcl.training.run_context import RunContext
from keras_rcl.training.tensorboard import TensorBoardWriter, flatten
from keras_rcl.vocabulary.attacks import Attack
from keras_rcl.vocabulary.dataset import Dataset
from keras_rcl.vocabulary.phase import Phase
from keras_rcl.vocabulary.search import Choice, Range, count_combinations
from keras_rcl.workflows.fit import fingerprint_of, hash_data, networks, output_of, train
from keras_rcl.workflows.inputs import pixels
from keras_rcl.workflows.proposals import Proposals, Repeated, Sampled, best_first
from keras_rcl.workflows.trial_table import BEST, Study, lock_folder, read_study

STOPPED = "stopped"
"""The state of a trial that could not be written; it is not stored, so that the same command runs the trial again."""
UNITS = 1000
"""Steps of the progress bar per trial."""


class Job(NamedTuple):
    """One trial, as a process receives it.

    Attributes:
        number: Of the trial.
        experiment: The experiment as plain values.
        attack: The attack as plain values.
        objective: One of `OBJECTIVES`.
        folder: The folder of the trial.
        save_every: Seconds of training between two snapshots.
        curves: The validation curves that the trial is compared with, each a list of pairs of the share of the last
            phase and the objective; see `Pruning`. Empty: the trial is not stopped early.
    """

    number: int
    experiment: dict[str, Any]
    attack: dict[str, Any]
    objective: str
    folder: str
    save_every: float
    curves: Sequence[Sequence[Sequence[float]]] = ()


@dataclasses.dataclass(frozen=True)
class TuneOptions:
    """What is maximised, how many trials run, and where they are stored.

    Attributes:
        objective: One of `OBJECTIVES`.
        attack: Measures the robust accuracy. None: the experiment's `validation_attack`.
        trials: The total number of trials.
        processes: The number of trials that run at once.
        output_dir: Receives `study.json`, `best.yaml` and `trials/<number>/` with each training's metrics and
            TensorBoard. None: `tuned/<data set>-<variant>`, with `-repeated` at its end for `repeat`.
        overwrite: Replace the folder of another search.
        save_every: Seconds of training between two snapshots.
        prune: Stop trials early that are below the median of the others; see `Pruning`.
    """

    objective: str = "robust_accuracy"
    attack: Attack | None = None
    trials: int = 20
    processes: int = 1
    output_dir: str | Path | None = None
    overwrite: bool = False
    save_every: float = 60.0
    prune: bool = False


@dataclasses.dataclass(frozen=True)
class Repeats:
    """Which trials are trained again.

    Attributes:
        source: The folder of the search.
        best: The number of trials, of those with the highest objectives.
        seeds: The number of seeds of each, from that of the experiment on.
    """

    source: Path
    best: int = 3
    seeds: int = 3


def tune(
    experiment: Experiment,
    vary: Callable[[Sequence[str]], Experiment],
    space: Mapping[str, Range],
    options: TuneOptions = TuneOptions(),
    *,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Path]:
    """Search for hyper-parameters with Optuna's TPE sampler; the first trial is the experiment as it is.

    If `trials` suffice for all combinations of values, as of a few choices, each is tried once.

    The objective is measured on the validation split; the test split is removed before anything is trained. The same
    call, made again after an interruption at any instant, resumes the search, trainings included; with more `trials`
    it continues a completed one. With one process it ends in the same table as an uninterrupted search.

    Args:
        experiment: Where the search starts.
        vary: Returns the experiment with further settings, given as for `--set`.
        space: The range of each setting, such as `method.temperature`.
        options: See `TuneOptions`.
        progress: Shows progress. None: nothing is shown.

    Returns:
        The fingerprint with the table of trials, and the folder.

    Raises:
        InvalidInputError: If a setting or an end of its range is invalid, there is no validation image, or the folder
            is in use.
        KeyboardInterrupt: With a message that the same command resumes.
    """
    if not space:
        raise InvalidInputError(f"{experiment.method.name} has no default search space; give --search SETTING=RANGE")
    progress, combinations, remark = progress or Silent(), count_combinations(space), ""
    exhaustive = combinations <= options.trials
    if exhaustive:
        remark = f"the ranges have {combinations} combinations of values: each is one trial"
        options = dataclasses.replace(options, trials=int(combinations))
    search = _Search(experiment, vary, options, progress, remark=remark)
    own = _own_values(experiment, vary, space)
    return search(Sampled(space, own, experiment.seed, exhaustive))


def repeat(
    experiment: Experiment,
    vary: Callable[[Sequence[str]], Experiment],
    repeats: Repeats,
    options: TuneOptions = TuneOptions(),
    *,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Path]:
    """Train the best trials of a search again, each with several seeds, and compare their means.

    The best of many trials is partly the luckiest. Its own number in the search is too high; the mean over other seeds
    tells it from the next ones, at a larger budget if `experiment` has one.

    Args:
        experiment: What the settings of the trials are applied to.
        vary: As for `tune`.
        repeats: Which trials, and with how many seeds. A later call with more seeds continues.
        options: As for `tune`; `trials` and `prune` are not read.
        progress: Shows progress. None: nothing is shown.

    Returns:
        The fingerprint with the table of trials, and the folder.

    Raises:
        InvalidInputError: As for `tune`, or if the folder holds no search of this variant.
        KeyboardInterrupt: With a message that the same command resumes.
    """
    method, source = experiment.method.name, repeats.source
    studied = read_study(source)
    if (name := studied["question"]["method"]["name"]) != method:
        raise InvalidInputError(f"{source} is a search of {name}, and --variant is {method}; choose one of both")
    trials = best_first({trial["number"]: trial for trial in studied["trials"]})[: repeats.best]
    if "search" not in studied["question"] or not trials:
        raise InvalidInputError(f"{source} has no trial of a search to repeat; give the folder of a search")
    options = dataclasses.replace(options, trials=len(trials) * repeats.seeds, prune=False)
    search = _Search(experiment, vary, options, progress or Silent(), suffix="-repeated")
    return search(Repeated(trials, experiment.seed))


class _Search:
    """One call of `tune` or `repeat`: its arguments, and the progress of the trials that run.

    Attributes:
        attack: Measures the robust accuracy.
        folder: Receives the results; `suffix` ends the name of the default one.
        remark: What is said once the folder is found to be usable.
    """

    def __init__(
        self,
        experiment: Experiment,
        vary: Callable[[Sequence[str]], Experiment],
        options: TuneOptions,
        progress: Progress,
        suffix: str = "",
        remark: str = "",
    ):
        self.experiment, self.vary, self.options = experiment, vary, options
        self.progress, self.remark = progress, remark
        self.attack = options.attack or experiment.evaluation.validation_attack
        _check_attack(self.attack)
        default = Path("tuned") / f"{experiment.dataset.name}-{experiment.method.name}{suffix}"
        self.folder = Path(options.output_dir or default)
        self._shares: dict[int, float] = {}

    def __call__(self, proposals: Proposals) -> tuple[dict[str, Any], Path]:
        """Run the trials that are missing; returns the study and its folder."""
        fingerprint = self.fingerprint(proposals)
        if self.options.processes > 1:
            _loaded.cache_clear()
        with Study(self.folder, fingerprint, proposals, self.options.overwrite) as study:
            if self.remark:
                self.progress.say(self.remark)
            if done := len(study.ended()):
                self.progress.say(f"resuming {self.folder}: {done} trials done")
            try:
                self.run(study)
            except KeyboardInterrupt as stop:
                raise type(stop)("the same command resumes") from None
            self.progress.finish()
            if best := study.best():
                self.write_best(best)
                study.draw()
            return study.to_json(), self.folder

    def fingerprint(self, proposals: Proposals) -> Fingerprint:
        """What the table of trials depends on."""
        training = fingerprint_of(self.experiment, hash_data(_without_test(self.experiment)))
        search = {
            **proposals.question,
            "objective": self.options.objective,
            "attack": TypeAdapter(Attack).dump_python(self.attack, mode="json"),
        } | ({"prune": True} if self.options.prune else {})
        return dataclasses.replace(training, settings={**training.settings, **search})

    def run(self, study: Study) -> None:
        """Run the trials that are missing, in this process or in several."""
        self.progress.start("trials", self.options.trials * UNITS)
        for trial in study.ended():  # of which the last one may have been interrupted before this
            self._discard_states(trial["number"])
        if self.options.processes == 1:
            for job in self.jobs(study):
                outcome = run_trial(job, functools.partial(self.report, study, job.number, outcome=None))
                self.report(study, job.number, None, outcome)
        else:
            report, function = functools.partial(self.report, study), f"{__name__}:run_trial"
            in_processes(self.jobs(study), report, self.options.processes, function=function, failed=_failed)

    def jobs(self, study: Study) -> Iterator[Job]:
        """The trials that are missing; one whose settings do not fit together ends as failed."""
        attack = TypeAdapter(Attack).dump_python(self.attack, mode="json")
        for number in study.numbers(self.options.trials):
            varied, reason = _experiment(self.vary, study.settings(number))
            if varied is None:
                study.end(number, _failed(reason))
                continue
            folder = str(self._trial_folder(number))
            experiment = config.to_dict(varied)
            curves = Pruning.curves(study) if self.options.prune else []
            yield Job(number, experiment, attack, self.options.objective, folder, self.options.save_every, curves)

    def report(self, study: Study, number: int, share: float | None, outcome: dict[str, Any] | None) -> None:
        """Show the completed share of a trial, or store its outcome."""
        objective = self.options.objective
        if outcome is not None:
            if outcome["state"] == STOPPED:
                raise CannotWrite(f"{outcome['reason']}; the same command resumes")
            study.end(number, outcome)
            self._discard_states(number)
            self._shares.pop(number, None)
            self.progress.say(_line(study.table[number], study.best()))
            self.progress.start("trials", self.options.trials * UNITS)
        elif share is not None:
            self._shares[number] = share
        best = study.best()
        note = f"best {objective} {best['objective']:.2%}" if best else ""
        self.progress.update(round(UNITS * (len(study.ended()) + sum(self._shares.values()))), note)

    def _discard_states(self, number: int) -> None:
        """Delete what only an unfinished trial needs."""
        for left in ("training", "checkpoints"):
            shutil.rmtree(self._trial_folder(number) / left, ignore_errors=True)

    def write_best(self, best: Mapping[str, Any]) -> None:
        """Write the experiment of the best trial, as a configuration file."""
        command = " ".join(command_line().split())
        over = f", the mean of {best['seeds']} seeds" if "seeds" in best else ""
        reached = f"{self.options.objective} {best['objective']:.4f}{over}"
        header = f"# Trial {best['number']} of `{command}`: {reached}\n"
        experiment = dataclasses.replace(self.vary(_as_settings(best["settings"])), compare=())
        with atomic_path(self.folder / BEST) as temporary:
            temporary.write_text(header + config.to_yaml(experiment), encoding="utf-8")

    def _trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04}"


class _Hopeless(Exception):
    """A trial is below the median of the others; its text says so."""


class Pruning:
    """Stops a trial whose best objective so far is below the median of other trials at the same share of training.

    The share is that of the epochs of the last phase, of which a quarter always runs. After the last epoch, a trial
    that is stopped is not attacked. The others are the trials that were completed when the trial began, at least
    `FEWEST`. Objectives are those of the validation after each epoch.

    Args:
        job: The trial.
        last: Its last phase.
    """

    FEWEST, ALWAYS = 5, 0.25

    def __init__(self, job: Job, last: Phase):
        self._job, self._last = job, last

    @classmethod
    def curves(cls, study: Study) -> Sequence[Sequence[Sequence[float]]]:
        """The curves of the completed trials; none if they are too few."""
        found = [trial["curve"] for trial in study.ended() if trial["state"] == "done" and trial.get("curve")]
        return found if len(found) >= cls.FEWEST else []

    def curve(self) -> list[tuple[float, float]]:
        """The share of the last phase and the objective after each validation of the trial."""
        found = []
        for line in METRICS.read_lines(Path(self._job.folder) / "metrics.jsonl"):
            clean, robust = (line.get(f"validation_{name}_accuracy") for name in ("clean", "robust"))
            if line["phase"] == self._last.name and isinstance(clean, float) and isinstance(robust, float):
                value = objective_value(self._job.objective, clean, robust)
                found.append((round(line["epoch"] / self._last.epochs, 4), round(value, 6)))
        return found

    def __call__(self) -> None:
        """Look at the last validation; raises `_Hopeless` if the trial is to be stopped."""
        curve = self.curve()
        share = curve[-1][0]
        if not self._job.curves or share < self.ALWAYS:
            return
        best = _best_until(curve, share)
        median = statistics.median(_best_until(other, share) for other in self._job.curves)
        if best < median:
            raise _Hopeless(
                f"pruned after {share:.0%} of the last phase: {best:.2%}, and the median of {len(self._job.curves)} "
                f"trials was {median:.2%}"
            )


def _best_until(curve: Sequence[Sequence[float]], share: float) -> float:
    """The best objective of a curve up to a share; 0 before the first validation."""
    return max((value for at, value in curve if at <= share), default=0.0)


def _failed(reason: str) -> dict[str, Any]:
    return {"state": "failed", "reason": reason}


def _line(trial: Mapping[str, Any], best: Mapping[str, Any] | None) -> str:
    """The line that reports a completed trial."""
    what = trial.get("reason") or f"{trial['objective']:.2%}" + (" (best)" if best is trial else "")
    return f"trial {trial['number']}: {what}  {', '.join(_as_settings(trial['settings']))}"


def _as_settings(values: Mapping[str, str]) -> list[str]:
    return [f"{setting}={value}" for setting, value in values.items()]


def _own_values(experiment: Experiment, vary: Callable, space: Mapping[str, Range]) -> dict[str, Any]:
    """The experiment's own values of the settings, where the ranges hold them; refuses ranges with an invalid end."""
    own: dict[str, Any] = {}
    start = config.to_dict(experiment)
    for setting, values in space.items():
        ends = {end: _varied(vary, setting, values, end) for end in values.ends}
        value = _at(start, setting)
        if isinstance(values, Choice):
            own.update((setting, end) for end, varied in ends.items() if varied == experiment)
        elif isinstance(value, (int, float)) and values.low <= value <= values.high:
            own[setting] = value
    return own


def _at(fields: Any, setting: str) -> Any:
    """The value at a dotted path of nested mappings; None if there is none."""
    for key in setting.split("."):
        fields = fields.get(key) if isinstance(fields, dict) else None
    return fields


def _varied(vary: Callable, setting: str, values: Range, end: str) -> Experiment:
    try:
        return vary([f"{setting}={end}"])
    except InvalidInputError as error:
        raise InvalidInputError(f"--search {setting}={values}: at {end}: {error}") from None


def _experiment(vary: Callable, settings: Mapping[str, str]) -> tuple[Experiment | None, str]:
    """The experiment with these settings, or why it is invalid: valid settings may exclude each other."""
    try:
        return vary(_as_settings(settings)), ""
    except InvalidInputError as error:
        return None, str(error)


def _check_attack(attack: Attack) -> None:
    if not attack.measures_training:
        raise InvalidInputError(
            f"--attack {attack.label} does not look at the network's own logits within a ball; choose pgd or autoattack"
        )


@functools.lru_cache(maxsize=1)
def _loaded(dataset: Dataset) -> sources.ImageData:
    return sources.load(dataset)


def _without_test(experiment: Experiment) -> sources.ImageData:
    """The experiment's data without its test split, so that no trial can use it."""
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
    """Train and measure on the validation split; resume a trial that was interrupted.

    Args:
        job: The trial.
        tell: Called with the completed share of the training, in [0, 1].

    Returns:
        The trial's `state`, `done`, `pruned`, `failed` or `STOPPED`, with its results or the `reason`.
    """
    folder = Path(job.folder)
    experiment = config.parse(job.experiment, f"trial {job.number}")
    attack = TypeAdapter(Attack).validate_python(job.attack)
    pruning = Pruning(job, experiment.method.phases()[-1])
    folder.mkdir(parents=True, exist_ok=True)
    keras.backend.clear_session()
    with lock_folder(folder, wait=True):
        states = SnapshotStore(folder, lambda line: None)
        resumed = states.rewind()
        try:
            with raised_signals():
                data = _without_test(experiment)
                own = load_own_encoder(experiment.network.encoder, data.image_shape, seed=experiment.seed)
                pair = networks(experiment, data, encoder=own)
                with TensorBoardWriter(folder) as writer:
                    context = RunContext(
                        folder,
                        writer,
                        snapshots=states,
                        resumed=resumed,
                        save_every=job.save_every,
                        progress=_Share(tell),
                        after_validation=pruning,
                    )
                    chosen = train(experiment, data, pair, context)
                    outcome = _measured(experiment, data, pair[1], attack, job.objective)
                    outcome |= {"epoch": chosen.get("epoch"), "seconds": round(states.seconds, 1)}
                    outcome["curve"] = pruning.curve()
                    reached = {name: outcome[name] for name in ("clean_accuracy", "robust_accuracy")}
                    name = f"{folder.parent.parent.name}, trial {job.number}"
                    writer.results(name, flatten(config.to_dict(experiment)), reached)
                if reason := _dead(folder, job.objective):
                    outcome |= {"state": "failed", "reason": reason}
        except CannotWrite as error:  # the trial itself has not failed
            return {"state": STOPPED, "reason": str(error)}
        except OSError as error:
            if disk_error(error) is None:
                raise
            return {"state": STOPPED, "reason": str(refusal(folder, error))}
        except _Hopeless as reason:
            outcome = {"state": "pruned", "reason": str(reason), "curve": pruning.curve()}
            outcome["seconds"] = round(states.seconds, 1)
        except (InvalidInputError, tf.errors.OpError) as error:
            outcome = {"state": "failed", "reason": " ".join(str(error).split())[:600]}
    return outcome


def _measured(
    experiment: Experiment, data: sources.ImageData, network: keras.Model, attack: Attack, objective: str
) -> dict[str, Any]:
    """Both accuracies on the validation split, and the objective."""
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
    """One of the accuracies, (clean + robust) / 2, or 2 clean robust / (clean + robust), which is 0 if both are 0."""
    if objective == "mean":
        return (clean + robust) / 2
    if objective == "harmonic_mean":
        return 2 * clean * robust / (clean + robust) if clean + robust else 0.0
    return {"clean_accuracy": clean, "robust_accuracy": robust}[objective]


def _dead(folder: Path, objective: str) -> str | None:
    """Why a completed training does not count: an attack met mostly zero gradients in the last epoch of a phase.

    If it is the attack of the training, the training was not adversarial; if it is the monitored attack, the robust
    accuracy is high only because the gradient vanished.
    """
    metrics = folder / "metrics.jsonl"
    if not metrics.exists():  # a method without epochs
        return None
    lines: list[dict[str, Any]] = [dict(line) for line in METRICS.read_lines(metrics)]
    ends = list({line["phase"]: line for line in lines}.items())
    for phase, line in ends:
        monitored = phase == ends[-1][0] and objective != "clean_accuracy"
        for name in ("zero_gradients", "monitor_zero_gradients")[: 1 + monitored]:
            if (share := line.get(name) or 0.0) > DEAD:
                return f"dead attack: {share:.0%} of the pixel gradients at the end of {phase} are zero ({name})"
    return None


class _Share(Silent):
    """Reports the completed share of all planned work."""

    def __init__(self, tell: Callable[[float], None]):
        self._tell, self._reported_at = tell, 0.0
        self._planned, self._completed, self._total, self._work = 0.0, 0.0, 1, 0.0

    def plan(self, total_work: float) -> None:
        self._planned = total_work

    def start(self, label: str, total: int, work: float = 0.0) -> None:
        self._total, self._work = max(total, 1), work

    def update(self, done: int, note: str = "") -> None:
        if time.monotonic() - self._reported_at > 0.2:
            self._reported_at = time.monotonic()
            share = (self._completed + self._work * done / self._total) / self._planned if self._planned else 0.0
            self._tell(min(share, 1.0))

    def finish(self, note: str = "") -> None:
        self._completed += self._work
