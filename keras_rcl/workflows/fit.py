"""The composition of a training: an `Experiment` becomes network, data, phases, evaluation, record and export."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_rcl import config
from keras_rcl.config import Experiment
from keras_rcl.data import sources
from keras_rcl.data.adversarial_store import with_stored
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.record import command_line, make_record, read_record, versions
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.folding import at_inference
from keras_rcl.model_io.export import export as write_export
from keras_rcl.model_io.export import model_hash
from keras_rcl.networks.two_headed import build_network, synchronize
from keras_rcl.runtime.distributed import ALONE, Message, Workers
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.runtime.signals import held_signals
from keras_rcl.runtime.tensorflow import start_tensorflow
from keras_rcl.storage.atomic import FolderInUse, atomic_path, check_writable, read_json, sweep, write_json
from keras_rcl.storage.checkpoints import Checkpoints
from keras_rcl.storage.fingerprint import Fingerprint
from keras_rcl.storage.journal import Journal
from keras_rcl.storage.output_folder import check_name, check_replaceable, free_name
from keras_rcl.storage.run_folder import RunFolder
from keras_rcl.storage.snapshots import SnapshotStore
from keras_rcl.training.loss_terms import term_names
from keras_rcl.training.run_context import RunContext, Validation
from keras_rcl.training.run_phases import checkpoint_name, run_phases
from keras_rcl.training.tensorboard import TensorBoardWriter, flatten
from keras_rcl.vocabulary.phase import Phase
from keras_rcl.workflows.inputs import geometry_of, outputs_of, pixels, support_of

PROJECTED_IMAGES = 500


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What `fit` leaves: the record of the test part under attack, and where everything lies; with the chief alone."""

    experiment: Experiment
    record: dict[str, Any]
    run: Path
    saved_model: Path


def fit(experiment: Experiment, **options) -> Fitted:
    """Train a variant, attack it on the test part, export it: `fit_all` of one."""
    return fit_all([experiment], **options)[0]


def fit_all(
    experiments: Sequence[Experiment],
    *,
    name: str | None = None,
    runs: Path = Path("runs"),
    saved_models: Path = Path("saved_models"),
    overwrite: bool = False,
    deterministic: bool = False,
    reuse: Path | None = None,
    save_every: float = 60.0,
    progress: Progress | None = None,
    workers: Workers = ALONE,
) -> list[Fitted]:
    """Train variants one after another; attack each on the test part, and export it.

    The same call, made again after it was broken off at any instant, goes on from there and ends in the same results.

    Args:
        experiments: what to do.
        name: of the first run and of its export; `<data set>-<variant>`, numbered where that is taken, if not given.
        runs: the folder of runs: receives `<name>/` with the resolved config, environment, metrics, checkpoints,
            TensorBoard and the record.
        saved_models: the folder of exports: receives `<name>/`.
        overwrite: replace a run and an export of that name, and an unfinished run of something else.
        deterministic: let every operation give the same bits each time.
        reuse: a run, or a folder of runs: first phases that are there, of the same seed, data, network and versions,
            are taken from it, and not trained again.
        save_every: seconds of training between two states, from which a killed run goes on.
        progress: where progress is shown.
        workers: all of which call this with the same; only the chief keeps anything.

    Raises:
        InvalidInputError: if the data is missing, the name is taken, a folder cannot be written, or `reuse` is a run
            that has no first phase of an experiment.
        KeyboardInterrupt: with the word that the same command resumes.
    """
    start_tensorflow(deterministic=deterministic)
    fitted, folders = [], []
    with contextlib.ExitStack() as all_runs:
        for number, experiment in enumerate(experiments):
            data = with_stored(sources.load(experiment.dataset), config.training_attacks(experiment.method.phases()))

            settings = {"deterministic": deterministic}
            if deterministic or not experiment.synchronized:
                settings["replicas"] = workers.replicas
            fingerprint = fingerprint_of(experiment, data, **settings)
            reused = _alike(experiment, fingerprint, reuse, workers) if reuse else None

            def claim(
                experiment=experiment, fingerprint=fingerprint, chosen=None if number else name
            ) -> RunFolder | _Scratch:
                workers.assert_same_inputs(fingerprint.to_json())
                if not workers.chief:
                    return _Scratch(Path(all_runs.enter_context(tempfile.TemporaryDirectory())))
                folder = _run_folder(experiment, fingerprint, chosen, runs, saved_models, overwrite)
                folders.append(all_runs.enter_context(folder))
                return folder

            settings = dict(overwrite=overwrite, save_every=save_every, progress=progress or Silent(), workers=workers)
            fitted.append(_fit(experiment, data, claim, saved_models, reused=reused, **settings))
        with held_signals(forget=True):
            for folder in folders:  # only now, so that the same call finds those that are done
                folder.finish()
    return fitted


class _Scratch(NamedTuple):
    """What a worker that is not the chief has for a run's folder; deleted at the end."""

    path: Path
    resumed = False

    @property
    def record(self) -> Path:
        return self.path / "record.json"


def fingerprint_of(experiment: Experiment, data: sources.ImageData, **settings: Any) -> Fingerprint:
    """What a run's results depend on: the experiment, all images and labels, the versions, and further settings."""
    experiment_settings = config.to_dict(experiment)
    del experiment_settings["compare"]
    digest = hashlib.sha256(repr((data.name, data.class_names)).encode())
    for part in (data.train, data.validation, data.test):
        digest.update(getattr(part, "identity", "").encode())
        part = part.held
        for array in (part.images, part.labels, part.indices, *part.stored.values()):
            digest.update(np.ascontiguousarray(array))
    stored = {**experiment_settings, **settings, "images": digest.hexdigest(), "versions": versions()}
    return Fingerprint.from_json(stored)


def _given(experiment: Experiment, fingerprint: Fingerprint) -> dict[str, Any]:
    """The part of a fingerprint that the experiment's configuration does not hold."""
    stored = fingerprint.to_json()
    return {key: stored[key] for key in stored.keys() - config.to_dict(experiment).keys()}


def _alike(experiment: Experiment, fingerprint: Fingerprint, reuse: Path, workers: Workers) -> tuple[Path, int] | None:
    """The run that has ended the most of an experiment's first phases, and how many; never all of them.

    Raises:
        InvalidInputError: if `reuse` is itself a run, and has none.
    """
    if workers.count > 1:
        raise InvalidInputError(f"--reuse is for one process, and there are {workers.count} workers; leave out either")
    one = (reuse / "config.yaml").is_file()
    wanted = config.training_of(experiment), experiment.seed, _given(experiment, fingerprint)
    found = (reuse, 0)
    for run in [reuse] if one else sorted(path.parent for path in reuse.glob("*/config.yaml")):
        try:
            other = config.load(run / "config.yaml")
            given = read_json(run / "environment.json").get("given")
        except (InvalidInputError, OSError, ValueError):  # of another version
            continue
        same = dataclasses.replace(config.training_of(other), method=experiment.method)
        if (same, other.seed, given) == wanted:
            found = max(found, (run, _phases_alike(experiment, other, run)), key=lambda pair: pair[1])
    if found[1]:
        return found
    if one:
        raise InvalidInputError(
            f"{reuse} has no first phase of this training at seed {experiment.seed}; leave out --reuse"
        )
    return None


def _phases_alike(experiment: Experiment, other: Experiment, run: Path) -> int:
    """How many first phases two experiments share, all but the last, as far as a run of the other has ended them."""
    names, count = Checkpoints(run / "checkpoints").names(), 0
    pairs = zip(experiment.method.phases()[:-1], other.method.phases(), strict=False)
    for number, (phase, one) in enumerate(pairs, start=1):
        if phase != one or (phase.epochs and checkpoint_name(number, phase) not in names):
            break
        count = number if phase.epochs else count
    return count


def _run_folder(
    experiment: Experiment,
    fingerprint: Fingerprint,
    name: str | None,
    runs: Path,
    saved_models: Path,
    overwrite: bool,
) -> RunFolder:
    """The folder of the run: without a name that of an unfinished run with the same fingerprint, or else a free one."""

    def begin(folder: Path) -> None:
        given = {"given": _given(experiment, fingerprint)}
        write_json(folder / "environment.json", {**environment(experiment), **given})
        _write_text(folder / "config.yaml", config.to_yaml(experiment))

    default = f"{experiment.dataset.name}-{experiment.method.name}"
    check_writable(runs)
    check_writable(saved_models)
    if name is None and not overwrite:
        numbered = re.compile(rf"{re.escape(default)}(-\d+)?")
        for candidate in sorted(path.parent.parent for path in runs.glob("*/training/question.json")):
            if numbered.fullmatch(candidate.name):
                with contextlib.suppress(FolderInUse):
                    return RunFolder(candidate, fingerprint, begin)
    name = name or free_name(default, (runs, saved_models), overwrite)
    check_name(name)
    if not (runs / name / "training/question.json").is_file():
        check_replaceable(runs / name, "config.yaml", overwrite)
        check_replaceable(saved_models / name, "model.json", overwrite)
    sweep(runs, re.escape(name))
    return RunFolder(runs / name, fingerprint, begin, overwrite=overwrite)


def _fit(
    experiment: Experiment,
    data: sources.ImageData,
    claim: Callable[[], RunFolder | _Scratch],
    saved_models: Path,
    *,
    reused: tuple[Path, int] | None,
    overwrite: bool,
    save_every: float,
    progress: Progress,
    workers: Workers,
) -> Fitted:
    """One run, from where it is to its record; its folder is claimed once nothing can be refused any more."""
    network, served = networks(experiment, data, workers)
    own, attacks = functools.partial(output_of, served), experiment.evaluation.attacks
    outputs, hashes = outputs_of(attacks, own, data)
    run = claim()
    export_to = saved_models / run.path.name
    if run.record.is_file():
        read_record(run.record)  # refused where it was edited
    finished = workers.broadcast(Message(read_json(run.record) if run.record.is_file() else None)).value
    if finished:
        return Fitted(experiment, finished, run.path, export_to)
    if reused and reused[0].resolve() == run.path.resolve():
        reused = None  # what this run has itself is in its states
    evaluation, states = experiment.evaluation, SnapshotStore(run.path, progress.say)
    resumed = states.rewind()
    with TensorBoardWriter(run.path) as writer:
        context = RunContext(
            run.path,
            writer,
            snapshots=states if workers.chief else None,
            resumed=resumed,
            reused=reused,
            save_every=save_every,
            progress=progress,
            workers=workers,
        )
        validation = train(experiment, data, (network, served), context)
        if workers.count > 1:  # only the chief has the chosen weights
            weights = {str(number): weight for number, weight in enumerate(served.get_weights())}
            weights = workers.broadcast(Message(arrays=weights)).arrays
            served.set_weights([weights[str(number)] for number in range(len(weights))])
        seconds = states.seconds
        test = data.test.limited(evaluation.limit)
        evaluator = Evaluator(
            own("logits"),
            attacks,
            batch_size=evaluation.batch_size,
            seed=experiment.seed,
            jit=experiment.jit,
            outputs=outputs,
            support=support_of(attacks, outputs, data),
            crafted_on=at_inference(served),
        )
        images = pixels(test.images)
        fingerprint = dataclasses.replace(
            evaluator.fingerprint(images, test.labels), model=model_hash(served), sources=hashes
        )
        with (
            Journal(run.evaluation, fingerprint, discard_existing=True)
            if workers.chief
            else contextlib.nullcontext() as journal
        ):
            survival = evaluator(images, test.labels, progress=progress, journal=journal, workers=workers)
        if not workers.chief:
            return Fitted(experiment, {}, run.path, export_to)
        journal.close()
        record = make_record(
            survival,
            model={"name": run.path.name, "variant": experiment.method.name, "training_seconds": round(seconds, 1)},
            data={"name": data.name, "part": "test", "indices": test.indices},
            seed=experiment.seed,
            sources=hashes,
        )
        record["config"] = config.to_dict(experiment)
        record["validation"] = validation
        record["geometry"] = geometry_of(own, test, attacks, experiment.seed)
        record["losses"] = _losses(run.path / "metrics.jsonl", experiment.method.phases())
        final = {f"{row['attack']} robust accuracy": row["robust_accuracy"] for row in record["rows"]}
        writer.geometry(record["geometry"])
        writer.hparams(flatten(config.to_dict(experiment)), {"clean accuracy": survival.clean_accuracy, **final})
        shown = data.test.limited(PROJECTED_IMAGES)
        embeddings = served.predict(pixels(shown.images), verbose=0)["embedding"]
        writer.projector(embeddings, shown.labels, data.class_names, pixels(shown.images))
    record["model"]["hash"] = model_hash(served)
    if not (run.resumed and _exported_hash(export_to) == record["model"]["hash"]):
        sweep(export_to.parent, re.escape(export_to.name))
        write_export(served, export_to, contract(experiment, data, record), overwrite=overwrite)
    write_json(run.record, record)
    states.discard()
    return Fitted(experiment, record, run.path, export_to)


def _losses(metrics: Path, phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """Of each epoch, the refreshes' too: `phase`, `epoch`, and the `loss` and its terms, means over the batches."""
    names = {"phase", "epoch", "loss"}
    for phase in phases:
        names.update(name for step in (*phase.refresh, phase) for name in term_names(step))
    lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    rounded = lambda value: round(value, 5) if isinstance(value, float) else value  # noqa: E731
    return [{key: rounded(value) for key, value in line.items() if key in names} for line in lines]


def _exported_hash(folder: Path) -> str | None:
    """Of the model that is exported there, if one is."""
    try:
        return json.loads((folder / "model.json").read_text(encoding="utf-8"))["model_hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def networks(
    experiment: Experiment, data: sources.ImageData, workers: Workers = ALONE
) -> tuple[keras.Model, keras.Model]:
    """The network that trains, and the one that is measured and served: the same in float32, on one device.

    In float32 and with one replica they are one and the same.
    """
    with workers.scope():
        network = build(experiment, data)
    if experiment.synchronized and workers.replicas > 1:
        synchronize(network)
    own_copy = experiment.precision != "float32" or workers.replicas > 1
    return network, build(experiment, data, precision="float32") if own_copy else network


def train(
    experiment: Experiment,
    data: sources.ImageData,
    pair: tuple[keras.Model, keras.Model],
    context: RunContext,
) -> dict[str, float]:
    """Train by all phases of the experiment's method; both networks end with the chosen weights.

    Args:
        experiment: what to do.
        data: what it is done on.
        pair: what `networks` gave.
        context: where the training runs.

    Returns:
        The validation metrics of the chosen weights; none where nothing is held out.
    """
    network, served = pair

    def sync():
        if served is not network:
            served.set_weights(network.get_weights())

    evaluation = experiment.evaluation
    validation = run_phases(
        network,
        experiment.method.phases(),
        data,
        context,
        Validation(
            monitored_attack=evaluation.validation_attack,
            evaluate=_validator(served, sync, data, experiment, context.workers),
            patience=evaluation.patience,
        ),
        seed=experiment.seed,
        compute=experiment.compute,
        balanced=experiment.dataset.balanced_batches,
    )
    sync()
    return validation


def build(experiment: Experiment, data: sources.ImageData, precision: str | None = None) -> keras.Model:
    """The experiment's network for its data, freshly initialised from the seed."""
    mean, std = data.mean_std()
    return build_network(
        experiment.network,
        data.image_shape,
        data.num_classes,
        mean=mean,
        std=std,
        seed=experiment.seed,
        precision=precision or experiment.precision,
    )


def contract(experiment: Experiment, data: sources.ImageData, record: dict[str, Any]) -> dict[str, Any]:
    """What `model.json` says of an export, besides what the export works out itself."""
    attacks = [view.attack for phase in experiment.method.phases() for view in phase.views if hasattr(view, "attack")]
    trained_for = {"norm": attacks[-1].norm, "epsilon": attacks[-1].epsilon} if attacks else None
    if attacks and attacks[-1].protocol != "pixel":
        trained_for["protocol"] = attacks[-1].protocol
    certified = experiment.method.phases()[-1].worst_case
    if certified and certified.outputs == "margins":
        trained_for = {"norm": "linf", "epsilon": certified.radius, "bound": certified.bound}
    return {
        "name": record["model"]["name"],
        "variant": experiment.method.name,
        "data_set": data.name,
        "class_names": list(data.class_names),
        "threat_model": trained_for,
        "config": config.to_dict(experiment),
        "metrics": {"clean_accuracy": record["clean_accuracy"], "rows": record["rows"]},
        "versions": versions(),
    }


def export_run(
    run: Path,
    *,
    checkpoint: str = "best",
    saved_models: Path = Path("saved_models"),
    name: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Export a run's checkpoint (`best`, `last`, or a phase's) as a SavedModel.

    Raises:
        InvalidInputError: if `run` is no run, or holds no such checkpoint.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise InvalidInputError(f"{run} is not the folder of a run: it has no config.yaml; give runs/<name>")
    experiment = config.load(run / "config.yaml")
    checkpoints = Checkpoints(run / "checkpoints")
    if checkpoint == "best" and "best" not in checkpoints.names():
        checkpoint = "last"
    name = name or free_name(f"{run.name}-{checkpoint}", (saved_models,), overwrite)
    check_name(name)
    check_replaceable(saved_models / name, "model.json", overwrite)
    data = sources.load(experiment.dataset)
    network = build(experiment, data, precision="float32")
    checkpoints.load(network, checkpoint)
    test = data.test.limited(experiment.evaluation.limit)
    evaluator = Evaluator(output_of(network, "logits"), (), batch_size=experiment.evaluation.batch_size)
    record = make_record(
        evaluator(pixels(test.images), test.labels),
        model={"name": name, "variant": experiment.method.name, "checkpoint": checkpoint},
        data={"name": data.name, "part": "test", "indices": test.indices},
        seed=experiment.seed,
    )
    return write_export(network, saved_models / name, contract(experiment, data, record), overwrite=overwrite)


def environment(experiment: Experiment) -> dict[str, Any]:
    """Where and from what a run was made."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "command": command_line(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": experiment.seed,
        "commit": commit,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions(),
    }


def _validator(served, sync, data: sources.ImageData, experiment: Experiment, workers: Workers):
    """Clean and robust accuracy on the held-out part; none where nothing is held out."""
    evaluation = experiment.evaluation
    held_out = data.validation.limited(evaluation.validation_limit)
    if not len(held_out.labels):
        return None
    evaluator = Evaluator(
        output_of(served, "logits"),
        (evaluation.validation_attack,),
        batch_size=min(evaluation.batch_size, len(held_out.labels)),
        seed=experiment.seed,
        jit=experiment.jit,
    )
    images = pixels(held_out.images)

    def validate() -> dict[str, float]:
        sync()
        survival = evaluator(images, held_out.labels, workers=workers)
        return {
            "clean_accuracy": survival.clean_accuracy,
            "robust_accuracy": survival.rows()[0]["robust_accuracy"],
        }

    return validate


def output_of(network: keras.Model, name: str) -> Callable:
    return lambda x: network(x, training=False)[name]


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
