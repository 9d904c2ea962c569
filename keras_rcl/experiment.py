"""The composition point: an `Experiment` becomes network, data, phases, evaluation and record."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import itertools
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
from pydantic import ValidationError

from keras_rcl import config
from keras_rcl.bounds import folded
from keras_rcl.classifier import Classifier, folded_logits, load_classifier
from keras_rcl.config import Experiment
from keras_rcl.data import sources
from keras_rcl.data.adversarial_store import with_stored
from keras_rcl.data.images import read_images
from keras_rcl.encoder import load_encoder
from keras_rcl.evaluation.embeddings import embedding_geometry
from keras_rcl.evaluation.journal import Journal
from keras_rcl.evaluation.record import command_line, make_record, read_record, versions
from keras_rcl.evaluation.robustness import Evaluator, Survival
from keras_rcl.export import export as write_export
from keras_rcl.export import model_hash
from keras_rcl.networks.two_headed import build_network, synchronize
from keras_rcl.objectives.geometry import POINTS
from keras_rcl.progress import Progress, Silent
from keras_rcl.report.figures import accuracy_epsilon_plot, attack_pictures
from keras_rcl.runtime import held_signals, start_tensorflow
from keras_rcl.saved import resizing
from keras_rcl.training.checkpoints import Checkpoints
from keras_rcl.training.loss_terms import term_names
from keras_rcl.training.run_folder import RunFolder
from keras_rcl.training.run_phases import run_phases
from keras_rcl.training.states import States
from keras_rcl.training.tensorboard import TensorBoardWriter, flatten
from keras_rcl.vocabulary.attack import Attack, describe
from keras_rcl.vocabulary.dataset import Dataset
from keras_rcl.vocabulary.files import Taken, atomic_folder, atomic_path, check_writable, read_json, sweep, write_json
from keras_rcl.vocabulary.phase import Phase
from keras_rcl.vocabulary.threat import PROTOCOLS
from keras_rcl.vocabulary.word import Refused, first_line
from keras_rcl.workers import ALONE, Message, Workers

PROJECTED_IMAGES = 500
PICTURED_IMAGES = 16
SUPPORT_IMAGES = 256
"""How many training images the SupCon attack contrasts with, class balance kept."""


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
        save_every: seconds of training between two states, from which a killed run goes on.
        progress: where progress is shown.
        workers: all of which call this with the same; only the chief keeps anything.

    Raises:
        Refused: if the data is missing, the name is taken, or a folder cannot be written.
        KeyboardInterrupt: with the word that the same command resumes.
    """
    start_tensorflow(deterministic=deterministic)
    fitted, folders = [], []
    with contextlib.ExitStack() as all_runs:
        for number, experiment in enumerate(experiments):
            data = with_stored(sources.load(experiment.dataset), config.training_attacks(experiment.method.phases()))

            def claim(experiment=experiment, data=data, chosen=None if number else name) -> RunFolder | _Scratch:
                question = {**question_of(experiment, data), "deterministic": deterministic}
                if deterministic or not experiment.synchronized:
                    question["replicas"] = workers.replicas
                workers.check_same(question)
                if not workers.chief:
                    return _Scratch(Path(all_runs.enter_context(tempfile.TemporaryDirectory())))
                folder = _run_folder(experiment, question, chosen, runs, saved_models, overwrite)
                folders.append(all_runs.enter_context(folder))
                return folder

            settings = dict(overwrite=overwrite, save_every=save_every, progress=progress or Silent(), workers=workers)
            fitted.append(_fit(experiment, data, claim, saved_models, **settings))
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


def question_of(experiment: Experiment, data: sources.ImageData) -> dict[str, Any]:
    """All that a run's results depend on, as JSON values."""
    settings = config.to_dict(experiment)
    del settings["compare"]
    digest = hashlib.sha256(repr((data.name, data.class_names)).encode())
    for part in (data.train, data.validation, data.test):
        digest.update(getattr(part, "identity", "").encode())
        part = part.held
        for array in (part.images, part.labels, part.indices, *part.stored.values()):
            digest.update(np.ascontiguousarray(array))
    return {**settings, "images": digest.hexdigest(), "versions": versions()}


def _run_folder(
    experiment: Experiment,
    question: dict[str, Any],
    name: str | None,
    runs: Path,
    saved_models: Path,
    overwrite: bool,
) -> RunFolder:
    """The folder of the run: without a name that of an unfinished run of the same question, or else a free one."""

    def begin(folder: Path) -> None:
        write_json(folder / "environment.json", environment(experiment))
        _write_text(folder / "config.yaml", config.to_yaml(experiment))

    default = f"{experiment.dataset.name}-{experiment.method.name}"
    check_writable(runs)
    check_writable(saved_models)
    if name is None and not overwrite:
        numbered = re.compile(rf"{re.escape(default)}(-\d+)?")
        for candidate in sorted(path.parent.parent for path in runs.glob("*/training/question.json")):
            if numbered.fullmatch(candidate.name):
                with contextlib.suppress(Taken):
                    return RunFolder(candidate, question, begin)
    name = name or free_name(default, (runs, saved_models), overwrite)
    _check_name(name)
    if not (runs / name / "training/question.json").is_file():
        check_replaceable(runs / name, "config.yaml", overwrite)
        check_replaceable(saved_models / name, "model.json", overwrite)
    sweep(runs, re.escape(name))
    return RunFolder(runs / name, question, begin, overwrite=overwrite)


def _fit(
    experiment: Experiment,
    data: sources.ImageData,
    claim: Callable[[], RunFolder | _Scratch],
    saved_models: Path,
    *,
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
    finished = workers.of_chief(Message(read_json(run.record) if run.record.is_file() else None)).told
    if finished:
        return Fitted(experiment, finished, run.path, export_to)
    evaluation, states = experiment.evaluation, States(run.path, progress.say)
    resumed = states.rewind()
    with TensorBoardWriter(run.path) as writer:
        validation = train(
            experiment,
            data,
            (network, served),
            run.path,
            writer=writer,
            states=states if workers.chief else None,
            resumed=resumed,
            save_every=save_every,
            progress=progress,
            workers=workers,
        )
        if workers.count > 1:  # only the chief has the chosen weights
            weights = {str(number): weight for number, weight in enumerate(served.get_weights())}
            weights = workers.of_chief(Message(arrays=weights)).arrays
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
            crafted_on=folded(served),
        )
        images = pixels(test.images)
        question = {"model": model_hash(served), "sources": hashes, **evaluator.question(images, test.labels)}
        with Journal(run.evaluation, question, anew=True) if workers.chief else contextlib.nullcontext() as journal:
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
        record["geometry"] = _geometry(own, test, attacks, experiment.seed)
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
    folder: Path,
    workers: Workers = ALONE,
    **settings,
) -> dict[str, float]:
    """Train by all phases of the experiment's method; both networks end with the chosen weights.

    Args:
        experiment: what to do.
        data: what it is done on.
        pair: what `networks` gave.
        folder: of the run.
        workers: as for `run_phases`.
        **settings: `writer`, `states`, `resumed`, `save_every` and `progress` of `run_phases`.

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
        folder,
        monitored_attack=evaluation.validation_attack,
        validate=_validator(served, sync, data, experiment, workers),
        patience=evaluation.patience,
        seed=experiment.seed,
        precision=experiment.precision,
        jit=experiment.jit,
        balanced=experiment.dataset.balanced_batches,
        micro_batch=experiment.micro_batch,
        workers=workers,
        **settings,
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


def attack(
    path: Path,
    attacks: Sequence[Attack],
    *,
    dataset: dict[str, Any] | None = None,
    part: str = "test",
    output_dir: Path | None = None,
    batch_size: int = 250,
    seed: int = 0,
    save_images: bool = False,
    overwrite: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
    workers: Workers = ALONE,
    **foreign,
) -> tuple[dict[str, Any], Path | None]:
    """Attack a SavedModel or `.keras` on a data set.

    Every batch is written to `.<name>.partial` beside the output folder as soon as it is finished. The same call, made
    again after it was broken off at any instant, goes on from there and ends in the same record.

    Args:
        path: a folder that `export` made, or any SavedModel or `.keras` from images to logits or probabilities.
        attacks: each is run on every image that the model classifies correctly.
        dataset: fields of `Dataset`: which images. Without a `name` they change the data set that the model was trained
            with, which its `model.json` names.
        part: `test`, `validation` or `train`.
        output_dir: the folder for the record and the pictures; `attacks/<model>`, numbered, where not given.
        batch_size: images attacked at once.
        seed: of the attacks.
        save_images: also write `adversarial.npz`.
        overwrite: replace the output folder, and an interrupted evaluation of something else.
        trust: load the model, and those that attacks look through, without looking for what could do harm.
        progress: where progress is shown.
        workers: all of which call this with the same; they share the batches, and the chief writes.
        **foreign: `input_range`, `output` and `endpoint` of a model of other makers, see `load_classifier`.

    Returns:
        The record, and the folder that holds it; none but on the chief.
    """
    classifier = load_classifier(path, trust=trust, **foreign)
    data = data_for(classifier, dataset or {})
    chosen = part_of(data, part)
    outputs, hashes = outputs_of(attacks, classifier.outputs, data, trust)
    images, progress = pixels(chosen.images), progress or Silent()
    evaluator = Evaluator(
        classifier.logits,
        attacks,
        batch_size=min(batch_size, len(images)),
        seed=seed,
        outputs=outputs,
        support=support_of(attacks, outputs, data),
        crafted_on=folded_logits(classifier, images[:32], trust=trust),
    )
    question = {
        "model": {"hash": classifier.model_hash, **foreign},
        "sources": hashes,
        **evaluator.question(images, chosen.labels, keep_images=save_images),
        "versions": versions(),
    }
    workers.check_same(question)
    journal = None
    if workers.chief:
        output_dir, journal = output_and_journal(output_dir, Path("attacks") / path.stem, question, overwrite)
        tell_resumed(journal, progress)
    with contextlib.nullcontext() if journal is None else journal:
        told = dict(keep_images=save_images, progress=progress, journal=journal, workers=workers)
        survival = evaluator(images, chosen.labels, **told)
    record = make_record(
        survival,
        model={
            "name": classifier.contract.get("name", path.stem),
            "variant": classifier.contract.get("variant"),
            "hash": classifier.model_hash,
            "note": classifier.note,
        },
        data={"name": data.name, "part": part, "indices": chosen.indices},
        seed=seed,
        sources=hashes,
    )
    if not workers.chief:
        return record, None
    record["geometry"] = _geometry(classifier.outputs, chosen, attacks, seed)
    class_names = classifier.class_names or data.class_names
    with atomic_folder(output_dir, overwrite=overwrite) as folder:
        write_json(folder / "record.json", record)
        _draw(evaluator, survival, images, class_names, record["model"]["name"], folder)
        if save_images:
            np.savez_compressed(
                folder / "adversarial.npz",
                images=survival.adversarial,
                predictions=survival.predictions,
                labels=survival.labels,
                indices=chosen.indices,
                attacks=np.array([describe(word) for word in survival.attacks]),
            )
    journal.discard()
    return record, output_dir


def predict(path: Path, inputs: Sequence[Path], *, resize: bool = False, **foreign) -> list[dict[str, Any]]:
    """Classify image files, folders of them, or arrays: one entry an image, with its class and probability."""
    classifier = load_classifier(path, **foreign)
    images, names = read_images(list(inputs), classifier.image_shape, resize=resize)
    evaluated = [classifier.logits(images[start : start + 250]) for start in range(0, len(images), 250)]
    probabilities = np.asarray(keras.ops.softmax(keras.ops.concatenate(evaluated, axis=0)))
    class_names = classifier.class_names or tuple(str(index) for index in range(classifier.num_classes))
    return [
        {
            "image": name,
            "class": int(row.argmax()),
            "class_name": class_names[int(row.argmax())],
            "probability": float(row.max()),
        }
        for name, row in zip(names, probabilities, strict=True)
    ]


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
        Refused: if `run` is no run, or holds no such checkpoint.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise Refused(f"{run} is not the folder of a run: it has no config.yaml; give runs/<name>")
    experiment = config.load(run / "config.yaml")
    checkpoints = Checkpoints(run / "checkpoints")
    if checkpoint == "best" and "best" not in checkpoints.names():
        checkpoint = "last"
    name = name or free_name(f"{run.name}-{checkpoint}", (saved_models,), overwrite)
    _check_name(name)
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


def outputs_of(
    attacks: Sequence[Attack], own: Callable, data: sources.ImageData, trust: bool = False
) -> tuple[Callable, dict[str, str]]:
    """attack -> the function of images that it looks at; and the hash of each source, all of which are read now.

    `own` gives the attacked model's: `logits`, `embedding` or `projection` -> function, None where it tells none.
    """
    found, hashes = {}, {}
    for member in itertools.chain.from_iterable(attack.members for attack in attacks):
        key = source, reads = member.source, member.reads
        if key in found:
            continue
        if member.of_training:
            raise Refused(f"{member.name} is an attack of training; attack the model by pgd and by supcon")
        if source is None:
            found[key] = own(reads)
            if found[key] is None:
                cure = "give it source=MODEL" if reads == "embedding" else "choose another attack"
                raise Refused(f"{member.label} looks at the {reads}, which the attacked model does not tell; {cure}")
        elif reads == "logits":
            found[key], hashes[source] = logits_through(source, data, trust)
        else:
            encoder = load_encoder(source, data.image_shape, trust=trust)
            found[key], hashes[source] = encoder.embedding, encoder.model_hash
    return lambda attack: found[attack.source, attack.reads], hashes


def logits_through(source: str, data: sources.ImageData, trust: bool = False) -> tuple[Callable, str]:
    """images -> logits of the classifier that a transfer attack is crafted on, and its hash."""
    classifier = load_classifier(source, trust=trust)
    if classifier.num_classes != data.num_classes:
        raise Refused(
            f"{source} tells {classifier.num_classes} classes apart, but {data.name} has {data.num_classes}; "
            "give a source of the same classes"
        )
    resize, _ = resizing(source, classifier.image_shape, data.image_shape)
    return lambda images: classifier.logits(resize(images)), classifier.model_hash


def support_of(
    attacks: Sequence[Attack], outputs: Callable, data: sources.ImageData
) -> tuple[np.ndarray, np.ndarray] | None:
    """Labels [M] and projections [M, D] of training images, always the same; where an attack contrasts with them."""
    contrasting = [attack for attack in attacks if attack.name == "supcon"]
    if not contrasting:
        return None
    if len({attack.reads for attack in contrasting}) > 1:
        raise Refused(f"{', '.join(attack.label for attack in contrasting)} contrast two outputs; run one at a time")
    shown = data.train.held.limited(SUPPORT_IMAGES)
    if without := data.num_classes - len(np.unique(shown.labels)):
        raise Refused(
            f"{contrasting[0].label} contrasts with {len(shown.labels)} training images, which leave {without} of "
            f"{data.num_classes} classes without one; choose another attack, or a larger --limit"
        )
    images, project = pixels(shown.images), outputs(contrasting[0])
    return shown.labels, np.concatenate([project(images[start : start + 64]) for start in range(0, len(images), 64)])


def _geometry(outputs: Callable, part: sources.Part, attacks: Sequence[Attack], seed: int) -> dict[str, Any] | None:
    """Of the embeddings of a few of the part's images."""
    shown = part.limited(POINTS)
    return embedding_geometry(outputs, pixels(shown.images), shown.labels, attacks, seed=seed)


def part_of(data: sources.ImageData, part: str) -> sources.Part:
    """The `train`, `validation` or `test` part.

    Raises:
        Refused: if it has no images.
    """
    chosen = getattr(data, part)
    if isinstance(chosen, sources.StreamedPart):
        raise Refused(f"the {part} part of {data.name} is streamed; choose another --part, or give --limit")
    if not len(chosen.labels):
        raise Refused(f"the {part} part of {data.name} is empty; choose another --part")
    return chosen


def pixels(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 255


def free_name(default: str, folders: Sequence[Path], overwrite: bool) -> str:
    """The default name, numbered where it is taken and not to be overwritten."""
    number, candidate = 1, default
    while not overwrite and any((folder / candidate).exists() for folder in folders):
        number += 1
        candidate = f"{default}-{number}"
    return candidate


def _check_name(name: str) -> None:
    if Path(name).name != name or name in ("", ".", ".."):
        raise Refused(f"name {name!r} must be one plain word; folders go to --runs and --saved-models")


def check_replaceable(folder: Path, marker: str, overwrite: bool) -> None:
    """Refuse a folder that is taken, or that `overwrite` would delete though it holds something else."""
    if not folder.exists():
        return
    if not overwrite:
        raise Refused(f"{folder} already exists; choose another name or give --overwrite")
    if not (folder / marker).is_file():
        raise Refused(f"{folder} has no {marker}, so it is not ours to overwrite; choose another name")


def output_and_journal(
    output_dir: Path | None, default: Path, question: dict[str, Any], overwrite: bool, marker: str = "record.json"
) -> tuple[Path, Journal]:
    """The folder for the results, of which `marker` is one, and the journal beside it.

    Where no folder is given: that of an interrupted evaluation of the same question, else the default, numbered where
    results or another evaluation are.
    """

    def journal_of(folder):
        journal = Journal(folder.with_name(f".{folder.name}.partial"), question, anew=overwrite)
        sweep(folder.parent, re.escape(folder.name))
        return journal

    if output_dir or overwrite:
        output_dir = output_dir or default
        check_replaceable(output_dir, marker, overwrite)
        return output_dir, journal_of(output_dir)
    check_writable(default.parent)
    partial = re.compile(rf"\.({re.escape(default.name)}(-\d+)?)\.partial")
    interrupted = [found[1] for found in map(partial.fullmatch, sorted(os.listdir(default.parent))) if found]
    numbered = (default.name if number == 1 else f"{default.name}-{number}" for number in itertools.count(1))
    for name in itertools.chain(interrupted, numbered):
        output_dir = default.parent / name
        if not output_dir.exists():
            with contextlib.suppress(Taken):
                return output_dir, journal_of(output_dir)


def tell_resumed(journal: Journal, progress: Progress) -> None:
    """Say how far an interrupted evaluation is, if it is one."""
    if (done := len(journal) - 1) > 0:  # but for the clean predictions
        progress.say(f"resuming {journal.path}: {done} batches done")


def data_for(classifier: Classifier, fields: dict[str, Any]) -> sources.ImageData:
    """The data set of `dataset_of`, which the classifier fits.

    Raises:
        Refused: if none is named, it cannot be read, or its images or classes are others than the classifier's.
    """
    data = sources.load(dataset_of(classifier, fields))
    _check_fit(classifier, data)
    return data


def dataset_of(classifier: Classifier, fields: dict[str, Any]) -> Dataset:
    """The data set that `fields` name; or the one that the model was trained with, with these fields changed."""
    if "name" not in fields:
        settings = classifier.contract.get("config")
        if settings is None:
            raise Refused(f"{classifier.path} has no model.json that names its data set; give --dataset")
        # Of a model from elsewhere; TFDS would write there.
        fields = {**settings["dataset"], "data_dir": None, **fields}
    try:
        return Dataset(**fields)
    except ValidationError as error:
        raise Refused(f"data set: {first_line(error)}") from None


def _check_fit(classifier: Classifier, data: sources.ImageData) -> None:
    shape = tuple(classifier.image_shape)
    if any(want is not None and want != have for want, have in zip(shape, data.image_shape, strict=True)):
        raise Refused(
            f"{classifier.path} takes images of shape {shape}, but {data.name} has {data.image_shape}; "
            "give --dataset, or --image-size to resize"
        )
    if classifier.num_classes != data.num_classes:
        raise Refused(
            f"{classifier.path} tells {classifier.num_classes} classes apart, but {data.name} has {data.num_classes}; "
            "give the --dataset that it was trained on"
        )


def _draw(
    evaluator: Evaluator,
    survival: Survival,
    images: np.ndarray,
    class_names: Sequence[str],
    title: str,
    folder: Path,
) -> None:
    """The accuracy-epsilon plot, one a norm, and pictures of the strongest attack."""
    rows = survival.rows()
    for norm in dict.fromkeys(row["norm"] for row in rows):
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row["norm"] == norm:
                protocol = row["protocol"]
                curve = row["attack"].split(f" {norm}")[0] + (f" {protocol}" if protocol != "pixel" else "")
                # Where a protocol's box is not that of pixels, epsilon 0 changes images too.
                start = [] if PROTOCOLS[protocol].box else [(0.0, survival.clean_accuracy)]
                curves.setdefault(curve, start).append((row["epsilon"], row["robust_accuracy"]))
        accuracy_epsilon_plot(curves, folder / f"accuracy_epsilon_{norm}.png", norm=norm, title=title)
    strongest = int(np.argmin(survival.survived.mean(axis=1)))
    fell = np.flatnonzero(survival.clean & ~survival.survived[strongest])
    stood = np.flatnonzero(survival.survived[strongest])
    chosen = np.concatenate([fell, stood])[:PICTURED_IMAGES]
    if len(chosen):
        attack_pictures(
            images[chosen],
            evaluator.craft(strongest, images[chosen], survival.labels[chosen]),
            survival.labels[chosen],
            survival.clean_predictions[chosen],
            survival.predictions[strongest][chosen],
            class_names,
            folder / "pictures.png",
            epsilon_text=describe(survival.attacks[strongest]),
        )


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
