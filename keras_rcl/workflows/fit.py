"""The `fit` command: an experiment becomes data, networks, a training, its evaluation, record and export."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import os
import platform
import re
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
from keras_rcl.evaluation.record import command_line, commit, make_record, versions
from keras_rcl.evaluation.robustness import Evaluator, Survival
from keras_rcl.folding import at_inference, inference_graph
from keras_rcl.model_io.continued import build_continued, continued_hash
from keras_rcl.model_io.export import export as write_export
from keras_rcl.model_io.export import model_hash
from keras_rcl.model_io.loading import LoadedModel, read_contract
from keras_rcl.model_io.own_encoder import import_function, load_own_encoder
from keras_rcl.networks.own_model import copied, encoder_hash
from keras_rcl.networks.two_headed import build_network, synchronize
from keras_rcl.report.tables import comparison_table, markdown_table
from keras_rcl.runtime.distributed import ALONE, Message, Workers
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.runtime.signals import held_signals
from keras_rcl.runtime.tensorflow import start_tensorflow
from keras_rcl.storage.atomic import FolderInUse, atomic_path, check_writable, complete_files, sweep, write_json
from keras_rcl.storage.checkpoints import Checkpoints
from keras_rcl.storage.fingerprint import Fingerprint
from keras_rcl.storage.journal import Journal
from keras_rcl.storage.kinds import ENVIRONMENT, METRICS, RECORD
from keras_rcl.storage.output_folder import check_name, check_replaceable, free_name
from keras_rcl.storage.run_folder import RunFolder
from keras_rcl.storage.snapshots import Snapshot, SnapshotStore
from keras_rcl.training.loss_terms import term_names
from keras_rcl.training.run_context import RunContext, Validation
from keras_rcl.training.run_phases import checkpoint_name, run_phases
from keras_rcl.training.tensorboard import TensorBoardWriter, flatten
from keras_rcl.vocabulary.network import Precision, encoder_source
from keras_rcl.vocabulary.phase import Phase
from keras_rcl.vocabulary.record import Record
from keras_rcl.workflows.inputs import geometry_of, outputs_of, pixels, support_of

PROJECTED_IMAGES = 500
OWN_ENCODER = "encoder.keras"
"""The file of a run that holds its own encoder as it was before training."""


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """Where a run is stored, and how it is carried out.

    Attributes:
        name: Of the first run and of its export. None: `<data set>-<variant>`, numbered if that is taken.
        runs: The folder of runs; receives `<name>/` with the resolved config, environment, metrics, checkpoints,
            TensorBoard and the record.
        saved_models: The folder of exports; receives `<name>/`.
        overwrite: Replace a run and an export of that name, and an unfinished run with another fingerprint.
        deterministic: Every operation gives the same bits each time.
        reuse: A run, or a folder of runs. First phases that are there, with the same seed, data, network and versions,
            are copied from it instead of trained again.
        save_every: Seconds of training between two snapshots, from which an interrupted run resumes.
    """

    name: str | None = None
    runs: Path = Path("runs")
    saved_models: Path = Path("saved_models")
    overwrite: bool = False
    deterministic: bool = False
    reuse: Path | None = None
    save_every: float = 60.0


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A finished run.

    Attributes:
        experiment: What was trained.
        record: The evaluation on the test split; empty except on the chief.
        run: The folder of the run.
        saved_model: The folder of the export.
    """

    experiment: Experiment
    record: Record | dict[str, Any]
    run: Path
    saved_model: Path


def fit(
    experiment: Experiment,
    *,
    name: str | None = None,
    runs: str | Path = FitOptions.runs,
    saved_models: str | Path = FitOptions.saved_models,
    overwrite: bool = False,
    deterministic: bool = False,
    reuse: str | Path | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Train a variant, attack it on the test split, and export it.

    The same call, made again after an interruption at any instant, resumes the run and ends in the same results.

    Args:
        experiment: What to train and how to evaluate it, see `keras_rcl.config.load`.
        name: See `FitOptions`, as for the following arguments.
        runs: The folder of runs.
        saved_models: The folder of exports.
        overwrite: Replace a run and an export of that name.
        deterministic: Every operation gives the same bits each time.
        reuse: A run, or a folder of runs, whose first phases are not trained again.
        progress: Shows progress. None: nothing is shown.

    Returns:
        The finished run: its record and folders.

    Raises:
        InvalidInputError: If the data is missing, the name is taken, a folder cannot be written, or `reuse` is a run
            without a first phase of the experiment.
        KeyboardInterrupt: With a message that the same command resumes.

    Example:
        >>> import keras_rcl
        >>> fitted = keras_rcl.fit(keras_rcl.Experiment(method=keras_rcl.AT(epochs=3)))  # doctest: +SKIP
        >>> fitted.saved_model  # doctest: +SKIP
    """
    options = FitOptions(
        name, Path(runs), Path(saved_models), overwrite, deterministic, None if reuse is None else Path(reuse)
    )
    return fit_all([experiment], options, progress=progress)[0]


def fit_all(
    experiments: Sequence[Experiment],
    options: FitOptions = FitOptions(),
    *,
    progress: Progress | None = None,
    workers: Workers = ALONE,
) -> list[Fitted]:
    """Train variants one after another; attack each on the test split, and export it. See `fit`.

    Args:
        experiments: What to train.
        options: See `FitOptions`. Its name is that of the first run; the other runs have default names.
        progress: Shows progress. None: nothing is shown.
        workers: The processes that train together. All of them call this function with the same arguments; only the
            chief stores anything.

    Returns:
        The finished runs, in order.

    Raises:
        InvalidInputError: As `fit`.
        KeyboardInterrupt: As `fit`.
    """
    start_tensorflow(deterministic=options.deterministic)
    load, folders, fitted = _DataLoader(), [], []
    with contextlib.ExitStack() as stack:
        for experiment in experiments:
            run = Run(experiment, *load(experiment), options, progress or Silent(), workers)
            run.prepare(stack)
            fitted.append(run.fit())
            folders += [run.folder] if run.folder else []
            options = dataclasses.replace(options, name=None)
        # Not before, so that the same call finds all runs of an interrupted one, also those that have their record.
        with held_signals(forget=True):
            for folder in folders:
                folder.finish()
    return fitted


class _DataLoader:
    """Loads and hashes each data set once."""

    def __init__(self):
        self._load = functools.cache(sources.load)
        self._hashes: dict[Any, str] = {}

    def __call__(self, experiment: Experiment) -> tuple[sources.ImageData, str]:
        """Return an experiment's data, with the stored examples that it trains on, and its hash."""
        attacks = tuple(config.training_attacks(experiment.method.phases()))
        data = with_stored(self._load(experiment.dataset), attacks)
        key = experiment.dataset, tuple(attack for attack in attacks if attack.name == "stored")
        if key not in self._hashes:
            self._hashes[key] = hash_data(data)
        return data, self._hashes[key]


def hash_data(data: sources.ImageData) -> str:
    """Return a hash of all images, labels and stored examples of a data set, and of its names."""
    digest = hashlib.sha256(repr((data.name, data.class_names)).encode())
    for split in (data.train, data.validation, data.test):
        digest.update(getattr(split, "identity", "").encode())
        split = split.held
        for array in (split.images, split.labels, split.indices, *split.stored.values()):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def fingerprint_of(experiment: Experiment, images_hash: str, **settings: Any) -> Fingerprint:
    """Return what a run's results depend on.

    Args:
        experiment: What is trained.
        images_hash: What `hash_data` returned for its data.
        **settings: Whatever else the results depend on.
    """
    stored = config.to_dict(experiment)
    del stored["compare"]
    return Fingerprint.from_json({**stored, **settings, "images": images_hash, "versions": versions()})


class Run:
    """One training in its folder: claimed, trained, evaluated, exported, recorded.

    All workers make the same calls; a worker that is not the chief has a temporary folder.

    Args:
        experiment: What is trained.
        data: What it is trained on.
        images_hash: What `hash_data` returned for the data.
        options: See `FitOptions`.
        progress: Shows progress.
        workers: The processes that train together.
        encoder: The model that the experiment's `encoder="own"` stands for, as `own_encoder` makes it. Any other
            encoder of a user is loaded or built here.

    Attributes:
        folder: The run folder, once it is claimed; None on a worker that is not the chief.
        path: Where it is.
        tested: The name of the split that is attacked at the end, for the record.
        export_path: The folder of the export.
    """

    def __init__(
        self,
        experiment: Experiment,
        data: sources.ImageData,
        images_hash: str,
        options: FitOptions,
        progress: Progress,
        workers: Workers = ALONE,
        encoder: keras.Model | None = None,
    ):
        self.experiment, self.data, self.options = experiment, data, options
        self.progress, self.workers = progress, workers
        self.encoder = encoder = encoder or load_own_encoder(
            experiment.network.encoder, data.image_shape, seed=experiment.seed
        )
        self.tested = "test"
        settings: dict[str, Any] = {"deterministic": options.deterministic}
        if options.deterministic or not experiment.synchronized:
            settings["replicas"] = workers.replicas
        if (continued := continued_hash(experiment.network)) is not None:
            settings["continued"] = continued
        if encoder is not None:
            settings["encoder"] = encoder_hash(encoder)  # its weights too, with which training begins
        self.fingerprint = fingerprint_of(experiment, images_hash, **settings)
        self._reused = find_reusable(experiment, self.fingerprint, options.reuse, workers) if options.reuse else None

    def prepare(self, stack: contextlib.ExitStack) -> None:
        """Build the networks, and claim the folder, once nothing can be refused any more, until the stack is closed."""
        self.network, self._served = networks(self.experiment, self.data, self.workers, self.encoder)
        self._output = functools.partial(output_of, self._served)
        self._measuring = measuring(self.experiment, self.data, self._served)
        self._outputs, self._sources = outputs_of(self.experiment.evaluation.attacks, self._output, self.data)
        self.workers.assert_same_inputs(self.fingerprint.to_json())
        self.folder: Any = None  # A `RunFolder`, of the chief only.
        if self.workers.chief:
            self.folder = stack.enter_context(
                _run_folder(self.experiment, self.fingerprint, self.options, self.encoder, self.data.class_names)
            )
            self.path = self.folder.path
        else:
            self.path = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.export_path = self.options.saved_models / self.path.name

    def fit(self) -> Fitted:
        """Train, evaluate, export and record; a run that has its record already is only read."""
        record = self._stored_record()
        if record is None:
            self._snapshots = SnapshotStore(self.path, self.progress.say)
            resumed = self._snapshots.rewind()
            with TensorBoardWriter(self.path) as writer:
                validation = self.train(writer, resumed)
                survival, test = self.evaluate()
                if not self.workers.chief:
                    return Fitted(self.experiment, {}, self.path, self.export_path)
                record = self.make_record(survival, test, validation)
                self._log(writer, record)
            self.export(record)
            write_json(self.folder.record, record)
            self._snapshots.discard()
        return Fitted(self.experiment, record, self.path, self.export_path)

    def train(self, writer: TensorBoardWriter, resumed: Snapshot | None) -> dict[str, float]:
        """Train by all phases, or resume from a snapshot; returns the validation metrics of the chosen weights."""
        if self._reused and self._reused[0].resolve() == self.path.resolve():
            self._reused = None  # the run's own snapshots hold what it has trained
        context = RunContext(
            self.path,
            writer,
            snapshots=self._snapshots if self.workers.chief else None,
            resumed=resumed,
            reused=self._reused,
            save_every=self.options.save_every,
            progress=self.progress,
            workers=self.workers,
        )
        validation = train(self.experiment, self.data, (self.network, self._served), context, self._measuring)
        if self.workers.count > 1:  # only the chief has the chosen weights
            weights = {str(number): weight for number, weight in enumerate(self._served.get_weights())}
            weights = self.workers.broadcast(Message(arrays=weights)).arrays
            self._served.set_weights([weights[str(number)] for number in range(len(weights))])
        self._seconds = self._snapshots.seconds
        return validation

    def evaluate(self) -> tuple[Survival, sources.Split]:
        """Attack the test split; returns the outcome and the images' split."""
        evaluation, experiment = self.experiment.evaluation, self.experiment
        test = self.data.test.limited(evaluation.limit)
        evaluator = Evaluator(
            self._computed("logits"),
            evaluation.attacks,
            batch_size=evaluation.batch_size,
            seed=experiment.seed,
            jit=experiment.jit,
            outputs=self._outputs,
            support=support_of(evaluation.attacks, self._outputs, self.data),
            gradient_fn=at_inference(self._served),
        )
        images = pixels(test.images)
        with contextlib.ExitStack() as stack:
            journal = None
            if self.workers.chief:
                fingerprint = dataclasses.replace(
                    evaluator.fingerprint(images, test.labels), model=self._hash, sources=self._sources
                )
                journal = Journal(self.folder.evaluation, fingerprint, discard_existing=True)
                stack.callback(journal.close)
                stack.enter_context(journal)
            survival = evaluator(images, test.labels, progress=self.progress, journal=journal, workers=self.workers)
        return survival, test

    def make_record(self, survival: Survival, test: sources.Split, validation: dict[str, float]) -> Record:
        """Return the record of an evaluation, with the losses and the geometry of the embeddings."""
        experiment, train = self.experiment, self.data.train
        record = make_record(
            survival,
            model={
                "name": self.path.name,
                "variant": experiment.method.name,
                "training_seconds": round(self._seconds, 1),
                "training_images": train.count if isinstance(train, sources.StreamedSplit) else len(train.labels),
                "hash": self._hash,
            },
            data={"name": self.data.name, "part": self.tested, "indices": test.indices},
            seed=experiment.seed,
            sources=self._sources,
        )
        record["config"] = config.to_dict(experiment)
        record["validation"] = validation
        outputs = {name: self._computed(name) for name in ("embedding", "projection")}
        outputs["logits"] = self._output("logits")  # which is attacked
        record["geometry"] = geometry_of(
            outputs.get, test, experiment.evaluation.attacks, experiment.seed, self._measuring.evaluator
        )
        record["losses"] = _losses(self.path / "metrics.jsonl", experiment.method.phases())
        return record

    @functools.cached_property
    def _hash(self) -> str:
        """Of the trained network; it is read once the training is over."""
        return model_hash(self._served)

    def export(self, record: Record) -> None:
        """Export the network, unless an interrupted process of this run did."""
        if self.folder.resumed and _exported_hash(self.export_path) == record["model"]["hash"]:
            return
        sweep(self.export_path.parent, re.escape(self.export_path.name))
        about = contract(self.experiment, self.data.name, self.data.class_names, record)
        write_export(self._served, self.export_path, about, overwrite=self.options.overwrite)

    def _computed(self, name: str) -> Callable:
        """Images -> an output of the evaluated network, by the graph that is traced once; not for attacks."""
        return lambda images: self._measuring.outputs(images)[name]

    def _stored_record(self) -> Record | None:
        """The record of a run that was interrupted after it was written; the same on all workers."""
        record = None
        if self.folder is not None and self.folder.record.is_file():
            record = RECORD.read(self.folder.record)
        return self.workers.broadcast(Message(record)).value

    def _log(self, writer: TensorBoardWriter, record: Record) -> None:
        """Show on TensorBoard the settings with their results, the tables of the record, and the embeddings."""
        accuracies = {"clean_accuracy": record["clean_accuracy"]}
        if record["rows"]:
            accuracies["robust_accuracy"] = min(row["robust_accuracy"] for row in record["rows"])
        writer.results(self.path.name, flatten(config.to_dict(self.experiment)), accuracies)
        writer.text("configuration", f"```\n{config.to_yaml(self.experiment)}```")
        writer.text("results", markdown_table(*comparison_table({self.experiment.method.name: record})))
        if geometry := _geometry_rows(record["geometry"]):
            writer.text("geometry of the embeddings", markdown_table(["space", "measure", "value"], geometry))
        shown, embed = self.data.test.limited(PROJECTED_IMAGES), self._computed("embedding")
        images = pixels(shown.images)
        embeddings = np.concatenate([embed(images[start : start + 64]) for start in range(0, len(images), 64)])
        writer.projector(embeddings, shown.labels, self.data.class_names, images)


def _geometry_rows(geometry: dict[str, Any] | None) -> list[list[str]]:
    """The measures of each space of embeddings: space, measure, value."""
    spaces = {space: measures for space, measures in (geometry or {}).items() if isinstance(measures, dict)}
    return [
        [space, name, f"{value:.4g}"]
        for space, measures in spaces.items()
        for name, value in measures.items()
        if value is not None
    ]


def _given(experiment: Experiment, fingerprint: Fingerprint) -> dict[str, Any]:
    """The part of a fingerprint that the experiment's configuration does not hold."""
    stored = fingerprint.to_json()
    return {key: stored[key] for key in stored.keys() - config.to_dict(experiment).keys()}


def find_reusable(
    experiment: Experiment, fingerprint: Fingerprint, reuse: Path, workers: Workers
) -> tuple[Path, int] | None:
    """Find the run that shares the most completed leading phases with an experiment.

    Returns:
        The run and the number of phases, at most all but the last; None if no run shares any.

    Raises:
        InvalidInputError: If `reuse` is itself a run and shares none, or if there are several workers.
    """
    if workers.count > 1:
        raise InvalidInputError(
            f"--reuse needs a single process, and there are {workers.count} workers; leave out one of the two options"
        )
    is_run = (reuse / "config.yaml").is_file()
    wanted = config.training_of(experiment), experiment.seed, _given(experiment, fingerprint)
    found = (reuse, 0)
    for run in [reuse] if is_run else [path.parent for path in complete_files(reuse, "*/config.yaml")]:
        try:
            other = config.load(run / "config.yaml")
            given = ENVIRONMENT.read(run / "environment.json").get("given")
        except InvalidInputError:  # of another version
            continue
        same = dataclasses.replace(config.training_of(other), method=experiment.method)
        if (same, other.seed, given) == wanted:
            found = max(found, (run, shared_phases(experiment, other, run)), key=lambda pair: pair[1])
    if found[1]:
        return found
    if is_run:
        raise InvalidInputError(
            f"{reuse} has no first phase of this training at seed {experiment.seed}; leave out --reuse"
        )
    return None


def shared_phases(experiment: Experiment, other: Experiment, run: Path) -> int:
    """Count the leading phases that two experiments share and that a run of the other one has completed.

    The last phase does not count.
    """
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
    options: FitOptions,
    encoder: keras.Model | None,
    class_names: Sequence[str],
) -> RunFolder:
    """Claim the run's folder: without a name that of an unfinished run with the same fingerprint, else a free one."""

    def begin(folder: Path) -> None:
        given = {"given": _given(experiment, fingerprint), "class_names": list(class_names)}
        write_json(folder / "environment.json", {**environment(experiment), **given})
        _write_text(folder / "config.yaml", config.to_yaml(experiment))
        if encoder is not None:
            _save_encoder(encoder, folder / OWN_ENCODER)

    name, runs, saved_models, overwrite = options.name, options.runs, options.saved_models, options.overwrite
    default = f"{experiment.dataset.name}-{experiment.method.name}"
    check_writable(runs)
    check_writable(saved_models)
    check_name(name or default)
    if name is None and not overwrite:
        numbered = re.compile(rf"{re.escape(default)}(-\d+)?")
        for candidate in sorted(path.parent.parent for path in runs.glob("*/training/question.json")):
            if numbered.fullmatch(candidate.name):
                with contextlib.suppress(FolderInUse):
                    return RunFolder(candidate, fingerprint, begin)
        while True:  # until no other process has begun a run of this name meanwhile
            candidate = runs / free_name(default, (runs, saved_models), overwrite)
            sweep(runs, re.escape(candidate.name))
            with contextlib.suppress(FolderInUse):
                return RunFolder(candidate, fingerprint, begin)
    name = name or default
    if not (runs / name / "training/question.json").is_file():
        check_replaceable(runs / name, "config.yaml", overwrite)
        check_replaceable(saved_models / name, "model.json", overwrite)
    sweep(runs, re.escape(name))
    return RunFolder(runs / name, fingerprint, begin, overwrite=overwrite)


def _save_encoder(encoder: keras.Model, path: Path) -> None:
    """Write a user's encoder as it is before training.

    Raises:
        InvalidInputError: If it cannot be saved.
    """
    try:
        encoder.to_json()
        encoder.save(path)
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise InvalidInputError(
            f"the encoder cannot be saved: {' '.join(str(error).split())[:200]}; hint: build it as a functional or "
            "Sequential model, or give its layers get_config"
        ) from None


def _losses(metrics: Path, phases: Sequence[Phase]) -> list[Any]:
    """The losses of each epoch, refreshes included: `phase`, `epoch`, `loss` and its terms, means over batches."""
    names = {"phase", "epoch", "loss"}
    for phase in phases:
        names.update(name for step in (*phase.refresh, phase) for name in term_names(step))
    lines = METRICS.read_lines(metrics) if any(phase.epochs for phase in phases) else []
    rounded = lambda value: round(value, 5) if isinstance(value, float) else value  # noqa: E731
    return [{key: rounded(value) for key, value in line.items() if key in names} for line in lines]


def _exported_hash(folder: Path) -> str | None:
    """The hash of the model that is exported in a folder; None if there is none."""
    try:
        return read_contract(folder).get("model_hash")
    except InvalidInputError:
        return None


def networks(
    experiment: Experiment, data: sources.ImageData, workers: Workers = ALONE, encoder: keras.Model | None = None
) -> tuple[keras.Model, keras.Model]:
    """Return the network that is trained, and the one that is evaluated and exported: in float32, on one device.

    If the training itself is in float32 and on one replica, both are the same object.
    """
    with workers.scope():
        trained = copied(encoder) if encoder is not None and workers.replicas > 1 else encoder
        network = build(experiment, data, encoder=trained)
    if experiment.synchronized and workers.replicas > 1:
        synchronize(network)
    own_copy = experiment.precision != "float32" or workers.replicas > 1
    return network, build(experiment, data, precision="float32", encoder=encoder) if own_copy else network


class Measuring(NamedTuple):
    """What measures a network, traced once for all that measure it.

    Attributes:
        outputs: What `inference_graph` returned.
        evaluator: Of the validation attack.
    """

    outputs: Callable
    evaluator: Evaluator


def measuring(experiment: Experiment, data: sources.ImageData, served: keras.Model) -> Measuring:
    """Return what measures the network that is evaluated, which `networks` returned."""
    evaluation, outputs = experiment.evaluation, inference_graph(served)
    count = len(data.validation.limited(evaluation.validation_limit).labels)
    evaluator = Evaluator(
        lambda images: outputs(images)["logits"],
        (evaluation.validation_attack,),
        batch_size=min(evaluation.batch_size, count or evaluation.batch_size),
        seed=experiment.seed,
        jit=experiment.jit,
        gradient_fn=lambda images: at_inference(served)(images),  # folded in the graph, from the weights of the moment
    )
    return Measuring(outputs, evaluator)


def train(
    experiment: Experiment,
    data: sources.ImageData,
    pair: tuple[keras.Model, keras.Model],
    context: RunContext,
    measured_by: Measuring | None = None,
) -> dict[str, float]:
    """Train by all phases of the experiment's method; both networks end with the chosen weights.

    Args:
        experiment: What is trained.
        data: What it is trained on.
        pair: The two networks that `networks` returned.
        context: Where the training runs.
        measured_by: What `measuring` returned for the second network; None: it is called here.

    Returns:
        The validation metrics of the chosen weights; empty if nothing is held out.
    """
    network, served = pair
    measured_by = measured_by or measuring(experiment, data, served)

    def sync() -> None:
        if served is not network:
            served.set_weights(network.get_weights())

    validation = run_phases(
        network,
        experiment.method.phases(),
        data,
        context,
        _validation(pair, measured_by, sync, data, experiment, context.workers),
        seed=experiment.seed,
        compute=experiment.compute,
        balanced=experiment.dataset.balanced_batches,
    )
    sync()
    return validation


def build(
    experiment: Experiment,
    data: sources.ImageData,
    precision: Precision | None = None,
    encoder: keras.Model | None = None,
) -> keras.Model:
    """Return the experiment's network for its data, initialised from the seed or from the export that it continues.

    Args:
        experiment: What is trained.
        data: What it is trained on.
        precision: That of the experiment if it is not given.
        encoder: The model of an encoder that is not one of the package.
    """
    if experiment.network.pretrained_export is not None:
        return build_continued(
            experiment.network,
            data.image_shape,
            data.num_classes,
            seed=experiment.seed,
            precision=precision or experiment.precision,
            encoder=encoder,
        )
    mean, std = data.mean_std()
    return build_network(
        experiment.network,
        data.image_shape,
        data.num_classes,
        mean=mean,
        std=std,
        seed=experiment.seed,
        precision=precision or experiment.precision,
        encoder=encoder,
    )


def contract(experiment: Experiment, data_name: str, class_names: Sequence[str], record: Record) -> dict[str, Any]:
    """Return what `model.json` says about an export, except for what the export adds itself."""
    attacks = [view.attack for phase in experiment.method.phases() for view in phase.views if hasattr(view, "attack")]
    trained_for: dict[str, Any] | None = None
    if attacks:
        trained_for = {"norm": attacks[-1].norm, "epsilon": attacks[-1].epsilon}
    if trained_for is not None and attacks[-1].protocol != "pixel":
        trained_for["protocol"] = attacks[-1].protocol
    certified = experiment.method.phases()[-1].worst_case
    if certified and certified.outputs == "margins":
        trained_for = {"norm": "linf", "epsilon": certified.radius, "bound": certified.bound}
    return {
        "name": record["model"]["name"],
        "variant": experiment.method.name,
        "data_set": data_name,
        "class_names": list(class_names),
        "threat_model": trained_for,
        "config": config.to_dict(experiment),
        "metrics": {"clean_accuracy": record["clean_accuracy"], "rows": record["rows"]},
        "versions": versions(),
    }


def export_run(
    run: str | Path,
    *,
    checkpoint: str = "best",
    saved_models: str | Path = Path("saved_models"),
    name: str | None = None,
    overwrite: bool = False,
    trust: bool = False,
) -> Path:
    """Export a run's checkpoint (`best`, `last`, or a phase's) as a SavedModel.

    Args:
        run: The folder of the run.
        checkpoint: The name of the checkpoint; `last` if there is no best one.
        saved_models: The folder of exports.
        name: Of the export; None: `<run>-<checkpoint>`, numbered if that is taken.
        overwrite: Replace an export of that name.
        trust: Load a user's own encoder, which the run holds as `encoder.keras`, without checking it.

    Raises:
        InvalidInputError: If `run` is not the folder of a run, or has no such checkpoint.
    """
    run, saved_models = Path(run), Path(saved_models)
    if not (run / "config.yaml").is_file():
        raise InvalidInputError(f"{run} is not the folder of a run: it has no config.yaml; give runs/<name>")
    experiment = config.load(run / "config.yaml")
    checkpoints = Checkpoints(run / "checkpoints")
    if checkpoint == "best" and "best" not in checkpoints.names():
        checkpoint = "last"
    name = name or free_name(f"{run.name}-{checkpoint}", (saved_models,), overwrite)
    check_name(name)
    check_replaceable(saved_models / name, "model.json", overwrite)
    encoder = _stored_encoder(run / OWN_ENCODER, experiment.network.encoder, trust)
    model = {"name": name, "variant": experiment.method.name, "checkpoint": checkpoint}
    if encoder is not None and experiment.dataset.in_memory:
        class_names = _class_names(run)
        network = build_network(experiment.network, encoder.input_shape[1:], len(class_names), encoder=encoder)
        checkpoints.load(network, checkpoint)
        record: Any = {"model": model, "clean_accuracy": None, "rows": []}
        about = contract(experiment, experiment.dataset.name, class_names, record)
        return write_export(network, saved_models / name, about, overwrite=overwrite)
    data = sources.load(experiment.dataset)
    network = build(experiment, data, precision="float32", encoder=encoder)
    checkpoints.load(network, checkpoint)
    test = data.test.limited(experiment.evaluation.limit)
    evaluator = Evaluator(output_of(network, "logits"), (), batch_size=experiment.evaluation.batch_size)
    record = make_record(
        evaluator(pixels(test.images), test.labels),
        model=model,
        data={"name": data.name, "part": "test", "indices": test.indices},
        seed=experiment.seed,
    )
    about = contract(experiment, data.name, data.class_names, record)
    return write_export(network, saved_models / name, about, overwrite=overwrite)


def _stored_encoder(path: Path, source: str, trust: bool) -> keras.Model | None:
    """A user's own encoder as its run holds it; None if it has none.

    If it is trusted, the module of the function that built it is imported first, which has the layers of the user.
    """
    if not path.is_file():
        return None
    if trust and encoder_source(source).kind == "function":
        import_function(source)
    return LoadedModel(path, trust=trust).layers


def _class_names(run: Path) -> list[str]:
    """The names of the classes of a run on arrays that were in memory."""
    names = ENVIRONMENT.read(run / "environment.json").get("class_names")
    if names is None:
        raise InvalidInputError(
            f"{run} was trained on arrays in memory, and does not name their classes; hint: use its export in "
            "saved_models/, or call keras_rcl.train again"
        )
    return names


def environment(experiment: Experiment) -> dict[str, Any]:
    """Return the command, commit, machine and versions of a run."""
    return {
        "command": command_line(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": experiment.seed,
        "commit": commit(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions(),
    }


def _validation(
    pair: tuple[keras.Model, keras.Model],
    measured_by: Measuring,
    sync: Callable[[], None],
    data: sources.ImageData,
    experiment: Experiment,
    workers: Workers,
) -> Validation:
    """Return how the training is measured: by clean and robust accuracy on held-out images, if any are held out."""
    network, served = pair
    evaluation, evaluator, same = experiment.evaluation, measured_by.evaluator, served is network
    measured = Validation(
        monitored_attack=evaluation.validation_attack,
        patience=evaluation.patience,
        outputs=measured_by.outputs if same else None,
        attacked=evaluator.one_round(0) if same else None,
    )
    held_out = data.validation.limited(evaluation.validation_limit)
    if not len(held_out.labels):
        return measured
    images = pixels(held_out.images)

    def validate() -> dict[str, float]:
        sync()
        survival = evaluator(images, held_out.labels, workers=workers)
        return {
            "clean_accuracy": survival.clean_accuracy,
            "robust_accuracy": survival.rows()[0]["robust_accuracy"],
        }

    return dataclasses.replace(measured, evaluate=validate)


def output_of(network: keras.Model, name: str) -> Callable:
    """Return a function from images to one of the network's outputs, in inference mode."""
    return lambda x: network(x, training=False)[name]


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
