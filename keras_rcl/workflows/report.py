"""Report a paper's tables and figures from records; train, attack and verify the rows that have none."""

import dataclasses
import datetime
import importlib.util
import io
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from sklearn.manifold import TSNE

from keras_rcl.attacks.craft import craft
from keras_rcl.config import Experiment, training_attacks
from keras_rcl.data import sources
from keras_rcl.data.adversarial_store import RECORD
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.record import commit
from keras_rcl.model_io.classifier import Classifier, load_classifier
from keras_rcl.model_io.loading import read_contract
from keras_rcl.papers import PAPERS
from keras_rcl.report import records as results
from keras_rcl.report.figures import (
    accuracy_epsilon_plot,
    attack_pictures,
    bars_plot,
    embeddings_plot,
    loss_curves_plot,
)
from keras_rcl.report.paper_page import paper_page
from keras_rcl.report.paper_tables import Lookup, markdown_report, paper_report
from keras_rcl.report.records import VERIFIED_COUNT, VERIFIED_IMAGES, Results, Run
from keras_rcl.report.verdicts import mean_and_spread
from keras_rcl.runtime.process_pool import in_processes
from keras_rcl.runtime.progress import Progress, Silent, StderrProgress
from keras_rcl.storage.atomic import FolderInUse, atomic_folder, complete_files, write_json
from keras_rcl.storage.output_folder import check_replaceable
from keras_rcl.vocabulary.attacks import describe
from keras_rcl.vocabulary.dataset import Dataset
from keras_rcl.vocabulary.paper import (
    Bars,
    Clean,
    Embeddings,
    Figure,
    LossCurves,
    Measure,
    Paper,
    Pictures,
    RobustCurves,
    Row,
    StoredExamples,
)
from keras_rcl.vocabulary.threat import PROTOCOLS
from keras_rcl.workflows import attack as attacking
from keras_rcl.workflows import fit as experiment
from keras_rcl.workflows.craft_dataset import craft_dataset
from keras_rcl.workflows.inputs import dataset_of, pixels
from keras_rcl.workflows.verify import verify_model

PICTURED_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class Folders:
    """The folders of records and models. Records of `attack` and `verify` are in `attacks/` and `verifications/`."""

    results: Path = Path("results")
    runs: Path = Path("runs")
    saved_models: Path = Path("saved_models")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, Path(getattr(self, field.name)))

    def read(self) -> Results:
        """All records that are in the folders now."""
        return Results(self.results, (self.runs, Path("attacks"), Path("verifications")))

    def model(self, run: Run) -> Path | None:
        """The export of a run, under any name; None if there is none."""
        for contract in complete_files(self.saved_models, "*/model.json"):
            if read_contract(contract.parent).get("model_hash") == run.model_hash:
                return contract.parent
        return None


# The options of the command, and where progress is shown.
def report(
    paper: str,
    *,
    scale: str = "full",
    train: bool = False,
    processes: int = 1,
    seeds: int | None = None,
    settings: Sequence[str] = (),
    limit: int | None = None,
    folders: Folders = Folders(),  # noqa: B008  a frozen value
    output_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Path]:
    """Write a paper's tables and figures, published beside measured, to a folder.

    Args:
        paper: a name of `PAPERS`.
        scale: the scale of its rows' configurations.
        train: first train, attack and verify every row that has no record. If this is interrupted, the same call
            resumes it.
        processes: the number of rows that `train` processes at once.
        seeds: the number of seeds, from 0; by default all seeds that have a record, and at least one.
        settings: `a.b=value` texts for every row.
        limit: use at most N images per split in every row, for a quick look: these are other experiments than the
            paper's.
        folders: the folders that records and models are read from, and that `train` writes to.
        output_dir: the folder for `report.json`, `report.md`, `report.html` and the figures; an earlier report in it is
            replaced. `reports/<paper>-<scale>` by default.
        progress: where progress is shown.

    Returns:
        The content of `report.json`, and the folder.

    Raises:
        InvalidInputError: if data is missing, a folder cannot be written, or a record cannot be read.
    """
    spec, progress = PAPERS[paper], progress or Silent()
    settings = [*settings, *([f"dataset.limit={limit}"] if limit else [])]
    rows = results.experiments(spec, scale, settings)
    called = scale + (f"-limit{limit}" if limit else "")
    output_dir = Path(output_dir or Path("reports") / f"{paper}-{called}")
    check_replaceable(output_dir, "report.json", overwrite=True)
    if train:
        proxies = {stored.proxy: results.experiment(stored.proxy, scale, settings) for stored in spec.stored}
        _run_missing(spec, rows, proxies, called, range(seeds or 1), folders, processes, progress)
    found = folders.read()

    lookup = found.lookup(rows, seeds)
    setups = {row: found.setup(rows[row], seeds) for row in rows}
    made = paper_report(spec, scale, lookup, results.missing(spec, scale, found, seeds, settings), setups)
    made["made"] = {"date": datetime.date.today().isoformat(), "version": version("keras_rcl"), "commit": commit()}
    with atomic_folder(output_dir, overwrite=True) as folder:
        data_dir = {"data_dir": rows[spec.configs[0]].dataset.data_dir}
        writer = _FigureWriter(spec, lambda row: found.runs(rows[row], seeds), lookup, folders, data_dir, folder)
        drawn, skipped = writer.draw_all()
        write_json(folder / "report.json", made)
        figures = "".join(f"![{caption}]({path.name})\n\n{caption}\n\n" for caption, path in drawn)
        lines = "".join(f"- {line}\n" for line in skipped)
        text = f"{markdown_report(made)}\n\n### Figures\n\n{figures}{lines}"
        (folder / "report.md").write_text(text, encoding="utf-8")
        (folder / "report.html").write_text(paper_page(made, drawn, skipped), encoding="utf-8")
    return made, output_dir


class Job(NamedTuple):
    """A row of a paper at one seed, for a process: the experiment, the name of the run, and the measures."""

    number: int
    label: str
    experiment: Experiment
    name: str
    measures: tuple[Measure, ...]
    folders: Folders


def _run_missing(
    paper: Paper,
    rows: dict[str, Experiment],
    proxies: dict[str, Experiment],
    called: str,
    seeds: Sequence[int],
    folders: Folders,
    processes: int,
    progress: Progress,
) -> None:
    """Train, attack and verify every row and seed that has no record.

    Args:
        paper: the paper.
        rows: config of a row -> its experiment.
        proxies: the experiments of the models that the paper's stored examples are crafted on.
        called: the part of a run's name between paper and row.
        seeds: the seeds of every row.
        folders: the folders of records and models.
        processes: the number of rows that are processed at once.
        progress: where progress is shown.
    """
    jobs: list[Job] = []
    attacks: list[Any] = []
    found = folders.read()
    work = [(row, seed) for seed in seeds for row in rows]
    for number, (row, seed) in enumerate(work, start=1):
        run, measures = found.runs(rows[row]).get(seed), tuple(paper.measures(row))
        if run is None or _missing(run, measures):
            label = f"{paper.name} {number}/{len(work)}: {row}, seed {seed}"
            name = f"{paper.name}-{called}-{row}" + (f"-seed{seed}" if seed else "")
            seeded = dataclasses.replace(rows[row], seed=seed)
            jobs.append(Job(number, label, seeded, name, measures, folders))
            if run is None:
                attacks += training_attacks(seeded.method.phases())
    needed = {attack.folder for attack in attacks if attack.name == "stored"}
    for stored in paper.stored:
        if stored.folder in needed and not (Path(stored.folder) / RECORD).is_file():
            progress.say(f"{paper.name}: {stored.folder} of {stored.proxy}")
            name = stored.proxy.replace("/", f"-{called}-")
            _store(stored, proxies[stored.proxy], name, folders, progress)
    if processes == 1:
        for job in jobs:
            progress.say(job.label)
            _run_row(job, progress)
        return
    labels, failures = {job.number: job.label for job in jobs}, []

    def report(number: int, line: str | None, outcome: str | None) -> None:
        if line or outcome:
            progress.say(f"{labels[number]}: {line or outcome}")
        if outcome:
            failures.append(f"{labels[number]}: {outcome}")

    try:
        in_processes(iter(jobs), report, processes, function=f"{__name__}:run_row", failed=str)
    except KeyboardInterrupt as stop:
        raise type(stop)("the same command resumes") from None
    if failures:
        raise InvalidInputError(f"{len(failures)} of {len(jobs)} rows failed: {failures[0]}")


def run_row(job: Job, tell: Callable[[str], None]) -> str:
    """Run a row in a process. Returns why it failed, or an empty text; `tell` receives lines of progress."""
    try:
        _run_row(job, StderrProgress(_Lines(tell)))  # type: ignore[arg-type]  # A stream of whole lines.
    except InvalidInputError as error:
        return str(error)
    return ""


class _Lines(io.TextIOBase):
    """A stream that passes its lines to a function."""

    def __init__(self, tell: Callable[[str], None]):
        self._tell = tell

    def write(self, text: str) -> int:
        self._tell(text.rstrip("\n"))
        return len(text)


def _run_row(job: Job, progress: Progress) -> None:
    """Train a row if it has no run, then attack and verify it for every measure that has no record."""
    keras.backend.clear_session()

    def found() -> Run | None:
        return job.folders.read().runs(job.experiment).get(job.experiment.seed)

    run = found()
    if run is None:
        _train(job.experiment, job.name, job.folders, progress)
        run = found()
    if run is None:
        raise RuntimeError(f"the run {job.name} was trained, and {job.folders.runs} has no record of its experiment")
    if missing := _missing(run, job.measures):
        _measure(run, missing, job.experiment.dataset, job.folders, progress)


def _missing(run: Run, measures: Sequence[Measure]) -> list[Measure]:
    return [measure for measure in measures if run.measure(measure) is None]


def _train(trained: Experiment, name: str, folders: Folders, progress: Progress) -> None:
    """Run `fit` under the report's name for the row. The name is in use only if another experiment took it."""
    run, export = folders.runs / name, folders.saved_models / name
    begun = (run / "training/question.json").is_file()
    for path in (run, export):
        if path.exists() and not begun:
            raise InvalidInputError(f"{path} is of another experiment; move it away")
    try:
        places: dict[str, Any] = dict(runs=folders.runs, saved_models=folders.saved_models, reuse=folders.runs)
        experiment.fit(trained, name=name, progress=progress, **places)
    except FolderInUse:
        raise InvalidInputError(
            f"{run} is in use, or was begun by another experiment or version; move it away"
        ) from None


def _store(stored: StoredExamples, proxy: Experiment, name: str, folders: Folders, progress: Progress) -> None:
    """Craft the examples that rows train on; train the model that they are crafted on if it has no export."""
    run = folders.read().runs(proxy).get(proxy.seed)
    model = folders.model(run) if run is not None else None
    if model is None:
        _train(proxy, name, folders, progress)
        model = folders.saved_models / name
    craft_dataset(model, stored.attack, Path(stored.folder), dataset=_located(proxy.dataset), progress=progress)


def _measure(run: Run, missing: Sequence[Measure], data: Dataset, folders: Folders, progress: Progress) -> None:
    """Attack and verify the export of a run."""
    model = folders.model(run)
    if model is None:
        progress.say(f"{run.name} is not in {folders.saved_models}, so it cannot be attacked; its record is kept")
        return

    def fewer(images: int | None) -> dict[str, Any]:
        """The data set's fields for at most N images, and not more than the run used."""
        limit = results.fewest(images, data)
        return {**_located(data), **({"limit": limit} if limit else {})}

    for images in dict.fromkeys(measure.limit for measure in missing if measure.kind == "robust"):
        attacks = [measure.attack for measure in missing if measure.kind == "robust" and measure.limit == images]
        attacking.attack(model, attacks, dataset=fewer(images), progress=progress)
    radii = [measure.epsilon for measure in missing if measure.kind == "verified"]
    if radii:
        verify_model(model, radii, count=VERIFIED_COUNT, dataset=fewer(VERIFIED_IMAGES), progress=progress)


def _located(data: Dataset) -> dict[str, Any]:
    """The data set's `data_dir`, if it is set."""
    return {"data_dir": data.data_dir} if data.data_dir else {}


# Figures


class _FigureWriter:
    """Draws those of a paper's figures that have the records and models that they need."""

    def __init__(
        self,
        paper: Paper,
        runs_of: Callable[[str], dict[int, Run]],
        lookup: Lookup,
        folders: Folders,
        data_set: dict[str, Any],
        folder: Path,
    ):
        self.paper, self.runs_of, self.lookup = paper, runs_of, lookup
        self.folders, self.data_set, self.folder = folders, data_set, folder
        self.drawn: list[tuple[str, Path]] = []
        self.skipped: list[str] = []

    def draw_all(self) -> tuple[list[tuple[str, Path]], list[str]]:
        """(caption, PNG) of each drawn figure; and one line for each figure, or part of one, that is skipped."""
        for figure in self.paper.figures:
            getattr(self, figure.kind)(figure)
        return self.drawn, self.skipped

    def _next(self, caption: str) -> Path:
        path = self.folder / f"figure-{len(self.drawn) + 1}.png"
        self.drawn.append((caption, path))
        return path

    def _skip(self, figure: Figure, rows: Sequence[str], what: str) -> None:
        if rows:
            self.skipped.append(f"{figure.title}: {', '.join(rows)} not drawn: missing {what}.")

    def loss_curves(self, figure: LossCurves) -> None:
        panels, missing = [], []
        for title, row, phase in figure.panels:
            run = next(iter(self.runs_of(row).values()), None)
            lines = run.record.get("losses", ()) if run else ()
            shown = [line for line in lines if phase in (None, line["phase"])]
            if shown:
                panels.append((title, shown))
            else:
                missing.append(title)
        if panels:
            loss_curves_plot(
                panels, self._next(f"{figure.title}. A vertical line separates two phases. One seed is shown.")
            )
        self._skip(figure, missing, "a record with losses")

    def robust_curves(self, figure: RobustCurves) -> None:
        rows = [row for row in self.paper.table(figure.table).rows if row.label in figure.rows]
        columns = self.paper.table(figure.table).columns
        wanted = [m for column in columns for m in column.measures if m.kind == "robust" and m.limit is None]
        for protocol in dict.fromkeys(measure.attack.protocol for measure in wanted):
            curves = {}
            for row in rows:
                found = [(m.attack.epsilon, self._mean(row, m)) for m in wanted if m.attack.protocol == protocol]
                points = [(e, value / 100) for e, value in found if e is not None and value is not None]
                clean = self._mean(row, Clean())
                if points and clean is not None and not PROTOCOLS[protocol].box:  # else epsilon 0 changes images too
                    points.append((0.0, clean / 100))
                if points:
                    curves[row.label] = points
            if curves:
                accuracy_epsilon_plot(curves, self._next(f"{figure.title}, protocol {protocol}."), title=protocol)
            missing = [row.label for row in rows if row.label not in curves]
            self._skip(figure, missing, f"a record under {protocol}")

    def bars(self, figure: Bars) -> None:
        table = self.paper.table(figure.table)
        titles = [column.title for column in table.columns]
        shown = titles.index(figure.column) if figure.column else 0
        (measure,) = table.columns[shown].measures
        bars = {}
        for row in table.rows:
            beside = {figure.beside: _published(row, titles.index(figure.beside))} if figure.beside else {}
            bars[row.label] = {**beside, "published": _published(row, shown), "measured": self._mean(row, measure)}
        bars_plot(bars, self._next(f"{figure.title}. A missing bar means that the number was not measured."))

    def embeddings(self, figure: Embeddings) -> None:
        panels: list[Any] = []
        names: tuple[str, ...] = ()
        missing, method = [], ""
        for title, row in figure.panels:
            loaded = self._load_model_and_images(row, figure.images)
            if loaded is None:
                missing.append(title)
                continue
            model, shown, names = loaded
            embedding_of: Any = model.outputs("embedding")
            embedding = np.asarray(embedding_of(pixels(shown.images)))
            points, method = in_the_plane(embedding)
            panels.append((title, points, shown.labels))
        if panels:
            caption = f"{figure.title}: {len(panels[0][2])} test images; {method} maps their embeddings to the plane."
            embeddings_plot(panels, names, self._next(caption), title=method)
        self._skip(figure, missing, "its model in saved_models/, or its data")

    def pictures(self, figure: Pictures) -> None:
        missing = []
        for title, row in figure.panels:
            loaded = self._load_model_and_images(row, PICTURED_IMAGES)
            if loaded is None:
                missing.append(title)
                continue
            model, shown, names = loaded
            images = pixels(shown.images)
            crafted = np.asarray(craft(figure.attack, model.logits, images, shown.labels))
            before, after = (np.argmax(model.logits(x), axis=1) for x in (images, crafted))
            attack = describe(figure.attack)
            path = self._next(f"{figure.title}: {title}.")
            attack_pictures(
                images, crafted, shown.labels, before, after, names, path, epsilon_text=f"{title}, {attack}"
            )
        self._skip(figure, missing, "its model in saved_models/, or its data")

    def _mean(self, row: Row, measure: Measure) -> float | None:
        found = self.lookup(row.key, measure)
        return None if found is None else mean_and_spread(list(found.values.values()))[0]  # type: ignore[arg-type]

    def _load_model_and_images(self, row: str, count: int) -> tuple[Classifier, sources.Split, tuple[str, ...]] | None:
        """The network of the first seed that has an export, test images, and class names; None if there is none."""
        paths = (self.folders.model(run) for run in self.runs_of(row).values())
        path = next((path for path in paths if path is not None), None)
        if path is None:
            return None
        try:
            model = load_classifier(path)
            data = sources.load(dataset_of(model, self.data_set))
        except InvalidInputError:  # of a damaged export, or where its data is not here
            return None
        return model, data.test.limited(count), data.class_names


def _published(row: Row, column: int) -> float | None:
    value = row.published[column] if row.published else None
    return value if isinstance(value, float) else None


def in_the_plane(embedding: np.ndarray) -> tuple[np.ndarray, str]:
    """Points [N, 2] of embeddings [N, D], and the method: UMAP if umap-learn is installed, else t-SNE."""
    if importlib.util.find_spec("umap"):
        from umap import UMAP

        return UMAP(random_state=0).fit_transform(embedding), "UMAP"
    perplexity = min(30.0, (len(embedding) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(embedding), "t-SNE"
