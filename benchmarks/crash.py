"""Kill commands at random instants and resume them: does each end as an uninterrupted one does, bit for bit?

    python -m benchmarks.crash --kills 200 --json results/robustness/crash.json
    python -m benchmarks.crash --json results/robustness/crash_commands.json --subjects \\
        attack:20 craft-dataset:20 audit:14 verify:12 tune:12 mtl_ibp:12 report:6 workers:4

A subject is `fit` of one variant per family, on digits with a short schedule; another command that can be resumed; or
`fit` by two workers. Each is run once to its end, then again and again in another folder, killed after a random time
(by SIGKILL, one time in five by SIGTERM), until a run is complete. Compared are all files that the command wrote: bytes
of TFRecords, arrays and pictures, weights, metrics, records and TensorBoard's curves, except for seconds, images per
second, pages of HTML, and the number of event files.

Every run is a process of its own, forked from this one, which has imported TensorFlow and called nothing of it, and
which has one thread, as the result says. That saves the ten seconds per run that the import takes. Only workers are
started as users start them.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="1")

import h5py  # noqa: E402
import numpy as np  # noqa: E402

import benchmarks.started  # noqa: E402, F401
from benchmarks.command import command_line
from keras_rcl.evaluation.record import versions  # noqa: E402
from keras_rcl.runtime.tensorflow import start_tensorflow  # noqa: E402
from keras_rcl.storage.snapshots import SnapshotStore  # noqa: E402

METHODS = {
    "baseline": dict(epochs=3),
    "at": dict(epochs=2),
    "trades": dict(epochs=2, ema=0.9),
    "mart": dict(epochs=2),
    "clafs": dict(warmup_epochs=1, adversarial_epochs=2, inner_epochs=2, linear_epochs=1),
    "supcon_linear": dict(encoder_epochs=2, linear_epochs=2),
    "rocl_at": dict(pretraining_epochs=1, finetuning_epochs=2),
    "refined_scl": dict(baseline_epochs=1, epochs=2),
    "margin_scl": dict(baseline_epochs=1, epochs=2),
    "sc_both": dict(pretraining_epochs=1, supcon_epochs=1, finetuning_epochs=1),
    "adversarial_contrastive": dict(encoder_epochs=1, linear_epochs=2),
    "certified": dict(epochs=3, start_epochs=0, ramp_epochs=2),
    "mtl_ibp": dict(epochs=3, start_epochs=0, ramp_epochs=2),
}
"""One variant per family, with its schedule; the first one trains another variant after itself."""

CONFIG = {
    "dataset": {"name": "digits", "validation_fraction": 0.2, "test_fraction": 0.3, "limit": 120},
    "network": {"encoder": "small_cnn", "projection_hidden": 64, "projection_dim": 32},
    "evaluation": {
        "attacks": [{"name": "pgd", "epsilon": "16/255", "num_steps": 5}],
        "validation_attack": {"name": "fgsm", "epsilon": "16/255"},
        "limit": 60,
    },
    "methods": {name: {**schedule, "batch_size": 32} for name, schedule in METHODS.items()},
}

PAPER = {
    "tiny.yaml": "dataset: {name: digits, validation_fraction: 0}\n"
    "network: {projection_hidden: 8, projection_dim: 4}\n"
    "evaluation: {attacks: [{name: fgsm, epsilon: 16/255}]}\n"
    "scales: {cpu: {dataset: {limit: 60}}}\n",
    "tiny/baseline.yaml": "{extends: ../tiny.yaml, variant: baseline, methods: {baseline: {epochs: 1}}}",
    "tiny/scl.yaml": "{extends: ../tiny.yaml, variant: scl, methods: {scl: {epochs: 1, batch_size: 30}}}",
}
"""The configurations of a paper of two rows, for `report --train`."""

TIMES = {"command", "seconds", "training_seconds", "images_per_second", "started", "date"}
"""What differs between two runs of the same bits."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A command that is interrupted.

    Attributes:
        arguments: Of the command line.
        finished: Whether all results are in a folder, of which the second one is that of the undisturbed run.
        process: How it is run: `fork` from this process, or `start` as a user starts it.
        statuses: The exit statuses of a completed run; 1 is an audit's if the claim falls.
    """

    arguments: list[str]
    finished: Callable[[Path, Path], bool]
    process: str = "fork"
    statuses: tuple[int, ...] = (0,)


def runs_finished(folder: Path, whole: Path) -> bool:
    """Whether all runs are there and none is unfinished; a process may also be killed after that."""
    runs, wanted = ({path.parent.name for path in where.glob("runs/*/record.json")} for where in (folder, whole))
    return runs == wanted and not any(folder.glob("runs/*/training/question.json"))


def holds(*files: str) -> Callable[[Path, Path], bool]:
    """A function that says whether a folder holds all of these files, and no unfinished run."""
    return lambda folder, whole: (
        all((folder / file).is_file() for file in files) and not any(folder.glob("runs/*/training/question.json"))
    )


def subjects(root: Path) -> dict[str, Subject]:
    """Every subject by name; models are those of `make_models`."""
    settings, models = root / "crash.yaml", root / "models/saved_models"
    shared = ["--output-dir", "out"]
    found = {}
    for variant in METHODS:
        beside = ["--compare", "at"] if variant == next(iter(METHODS)) else ["--no-compare"]
        base = ["fit", "--config", str(settings), "--variant", variant, "--deterministic", "--save-every", "0"]
        found[variant] = Subject([*base, *beside], runs_finished)
    at, certified = str(models / "at"), str(models / "certified")
    attacks = ["--attack", "pgd-100:epsilon=16/255,num_restarts=2", "--attack", "square-100:epsilon=16/255"]
    nearest = [f"--attack={name}:epsilon=16/255" for name in ("deepfool", "ddn", "fmn", "hopskipjump-500")]
    nearest += [f"--attack={name}:norm=l1,epsilon=2" for name in ("fmn", "apgd-20", "fab-10", "square-100")]
    crafted = ["--attack", "pgd-200:epsilon=16/255", "--batch-size", "5", "--shard-size", "30"]
    claim = ["--claim", "60%", "--epsilon", "16/255", "--limit", "20", "--check-images", "10", "--batch-size", "10"]
    claim += ["--verifier", "pgd-40:num_restarts=2"]
    space = ["--search", "method.batch_size=choice(16,32,60)", "--trials", "2", "--save-every", "0"]
    balls = [
        "--epsilon",
        "0.5/255,1/255",
        "--limit",
        "20",
        "--max-images",
        "3",
        "--timeout",
        "600",
        "--batch-size",
        "10",
    ]
    table = {
        "attack": (["attack", at, *attacks, "--batch-size", "10", "--save-images", *shared], ["out/record.json"]),
        "corruptions": (
            ["attack", at, "--attack", "corruptions", "--attack", "spatial:num_rotations=9", "--save-images", *shared],
            ["out/record.json", "out/corruptions.png"],
        ),
        "nearest": (["attack", at, *nearest, "--batch-size", "10", "--save-images", *shared], ["out/record.json"]),
        "craft-dataset": (["craft-dataset", at, *crafted, *shared], ["out/examples.json"]),
        "audit": (["audit", at, *claim, *shared], ["out/audit.json"]),
        "verify": (["verify", certified, *balls, *shared], ["out/record.json"]),
        "certify": (["certify", at, "--smoothing", "0.25", "--limit", "20", *shared], ["out/record.json"]),
        "tune": (["tune", "--config", str(settings), "--variant", "at", *space, *shared], ["out/best.yaml"]),
        "report": (["report", "--paper", "tiny", "--scale", "cpu", "--train"], ["reports/tiny-cpu/report.json"]),
    }
    found |= {name: Subject(arguments, holds(*files)) for name, (arguments, files) in table.items()}
    found["audit"] = dataclasses.replace(found["audit"], statuses=(0, 1))
    two = [*found["at"].arguments, "--workers", "2"]
    return {**found, "workers": Subject(two, runs_finished, "start")}


def run(arguments: list[str], folder: Path, root: Path) -> None:
    """Run the command in a process of its own; its output goes to the file `said`."""
    from keras_rcl.cli.app import cli

    os.chdir(folder)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    threads = re.search(r"Threads:\s+(\d+)", Path(f"/proc/{os.getppid()}/status").read_text())
    Path("threads").write_text(threads[1])
    start_tensorflow(deterministic=True)  # not every command has the option
    if arguments[0] == "report":
        register_paper(root / "configs")
    sys.argv = ["cli.py", *arguments]
    cli()


def register_paper(configs: Path) -> None:
    """Make a paper of two rows known to this process."""
    from keras_rcl.cli.report import report as command
    from keras_rcl.report import records
    from keras_rcl.vocabulary.attacks import FGSM, PGD
    from keras_rcl.vocabulary.paper import Clean, Column, Paper, Robust, Row, Table, Verified
    from keras_rcl.workflows import report

    columns = (
        Column(title="clean", measures=(Clean(),)),
        Column(title="FGSM", measures=(Robust(attack=FGSM(epsilon=16 / 255)),)),
        Column(title="PGD", measures=(Robust(attack=PGD(num_steps=2), limit=10),)),
        Column(title="verified", measures=(Verified(epsilon=1e-5),)),
    )
    rows = (Row(label="Plain", config="baseline"), Row(label="Contrastive", config="scl"))
    table = Table(name="Table 1", caption="", protocol="pixel", columns=columns, rows=rows)
    report.PAPERS["tiny"] = Paper(name="tiny", title="Tiny", reference="", tables=(table,))
    records.CONFIGS = configs
    (option,) = (parameter for parameter in command.params if parameter.name == "paper")
    option.type.choices = [*option.type.choices, "tiny"]


class Forked:
    """A run that is forked from this process."""

    def __init__(self, context, arguments: list[str], folder: Path, root: Path):
        self._process = context.Process(target=run, args=(arguments, folder, root))
        self._process.start()

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for its end; returns its exit status, None if it still runs."""
        self._process.join(seconds)
        return self._process.exitcode

    def kill(self, number: int) -> None:
        os.kill(self._process.pid, number)


class Started:
    """A run that is started as a user starts it, with the processes that it starts."""

    def __init__(self, arguments: list[str], folder: Path):
        self._folder = folder
        with (folder / "said").open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "keras_rcl", *arguments],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
                stdout=said,
                stderr=said,
            )

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for the end of all processes; returns the exit status, None if the first one still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        while self._process.returncode is not None and self._others():
            time.sleep(0.2)
        return self._process.returncode

    def kill(self, number: int) -> None:
        self._process.send_signal(number)

    def _others(self) -> bool:
        """Whether a process still works in the folder."""
        for place in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):
                if place.readlink() == self._folder:
                    return True
        return False


def plain(value):
    """A record without its times."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if key not in TIMES}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def weights(path: Path) -> dict[str, bytes]:
    """Of a checkpoint, by name."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: np.asarray(item).tobytes()} if len(item.shape) else {})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return found


def curves(folder: Path) -> dict[str, list]:
    """Of TensorBoard: each tag's steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["tensors"] if not any(name in tag for name in TIMES)]
    return {tag: [(e.step, e.tensor_proto.SerializeToString()) for e in events.Tensors(tag)] for tag in sorted(tags)}


UNCOMPARED = (".keras", ".pb", ".data-00000-of-00001", ".index", ".html", ".md")
"""Files whose bytes hold times and identifiers; the hash of the model is in model.json."""


def contents(folder: Path) -> dict[str, object]:
    """Everything that a completed command wrote, in a form that is equal if the bits are."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != folder):
        name = str(path.relative_to(folder))
        if path.name in ("environment.json", "fingerprint.pb") or path.suffix in UNCOMPARED:
            found[name] = None
        elif path.suffix == ".h5":
            found[name] = weights(path)
        elif path.suffix == ".json":
            found[name] = plain(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [plain(json.loads(line)) for line in path.read_text().splitlines()]
        elif "tfevents" in name:
            found[str(Path(name).parent)] = curves(path.parent)
        elif path.name == "best.yaml":
            found[name] = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        else:
            found[name] = path.read_bytes()
    return found


def instant(folder: Path) -> str:
    """What the process did when it was killed, according to its files."""
    if (folder / ".out.partial").exists():
        if (folder / "out").exists():
            return "after the results"
        writes = any(re.fullmatch(r"\.[0-9a-f]{8}\.out", path.name) for path in folder.iterdir())
        return "writing the results" if writes else "computing"
    latest = max(folder.glob("runs/*/training"), key=os.path.getmtime, default=None)
    if latest is None:
        return "between two runs" if any(folder.glob("*/*")) else "before the run"
    run_folder, states = latest.parent, SnapshotStore(latest.parent, print)
    if (run_folder / "record.json").is_file():
        return "after the record"
    if any(path.name.startswith(".") or path.name == run_folder.name for path in folder.glob("saved_models/*")):
        return "export"
    if (latest / "evaluation").exists():
        return "final evaluation"
    for number in reversed(states.numbers()):
        header, _ = states.read(number)
        phase = re.sub(r"^\d+/\d+ | +epoch \d+/\d+| \d+/\d+", "", header["where"])
        phase, _, step = phase.partition(", step ")
        return phase + ("" if not step else ", mid-epoch" if step != "0" else ", between epochs")
    return "before the first state"


class Bench:
    """The runs of all subjects.

    Args:
        root: The folder that they work in.
        seed: Of the instants.
    """

    def __init__(self, root: Path, seed: int):
        self.root, self.rng = root, np.random.default_rng(seed)
        self.instants: collections.Counter = collections.Counter()
        self._context = multiprocessing.get_context("fork")

    def start(self, subject: Subject, folder: Path) -> Forked | Started:
        """Start a run in a folder."""
        if subject.process == "start":
            return Started(subject.arguments, folder)
        return Forked(self._context, subject.arguments, folder, self.root)

    def undisturbed(self, name: str, subject: Subject, folder: Path) -> float:
        """Run a subject to its end; returns the seconds."""
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        if self.start(subject, folder).wait() not in subject.statuses:
            sys.exit(f"{name}: the undisturbed run failed: {(folder / 'said').read_text()}")
        return time.perf_counter() - started

    def make_models(self) -> None:
        """Train the models that other commands than `fit` read."""
        for variant in ("at", "certified"):
            fit = subjects(self.root)[variant]
            named = dataclasses.replace(fit, arguments=[*fit.arguments, "--name", variant])
            if not (self.root / f"models/saved_models/{variant}/model.json").is_file():  # of an earlier call
                self.undisturbed(variant, named, self.root / "models")

    def kill_and_resume(self, name: str, subject: Subject, wanted: int) -> dict:
        """Kill a subject a number of times; returns the row of the result."""
        seconds = self.undisturbed(name, subject, whole := self.root / name / "whole")
        expected = contents(whole)
        row = dict(subject=name, seconds=round(seconds, 1), kills=0, terminations=0, resumed=0, finished=0)
        row |= dict(differences=[], unreadable=0, statuses=[])
        while row["kills"] < wanted:
            folder = self.root / name / f"cut{row['finished']}"
            folder.mkdir(exist_ok=True)
            process = self.start(subject, folder)
            status = process.wait(self.rng.uniform(0, 0.8 * seconds))
            if status is None:
                self._kill(name, row, process, folder)
                if not subject.finished(folder, whole):
                    if row["kills"] < wanted:
                        continue
                    status = self.start(subject, folder).wait()
            self._compare(subject, row, folder, whole, expected, status)
        return row

    def _kill(self, name: str, row: dict, process: Forked | Started, folder: Path) -> None:
        """Kill a run, and count what it did."""
        by = signal.SIGTERM if self.rng.random() < 0.2 else signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            process.kill(by)
        status = process.wait()
        row["kills"] += 1
        row["terminations"] += by == signal.SIGTERM
        if by == signal.SIGTERM and status not in (143, -signal.SIGTERM, 0):
            row["statuses"].append(status)
            print((folder / "said").read_text()[-2000:], file=sys.stderr, flush=True)
        where = instant(folder)
        self.instants[where] += 1
        print(f"{name:24} {row['kills']:3} {by.name:8} {where}", file=sys.stderr, flush=True)

    def _compare(self, subject: Subject, row: dict, folder: Path, whole: Path, expected: dict, status) -> None:
        """Compare a completed run with the undisturbed one, and delete it."""
        said = (folder / "said").read_text()
        row["resumed"] += said.count("resuming ")
        row["unreadable"] += said.count("is damaged")
        row["finished"] += 1
        if not subject.finished(folder, whole):
            row["statuses"].append(status)
            row["differences"].append(said[-2000:])
            return
        found = contents(folder)
        row["differences"] += [
            name for name in expected.keys() | found.keys() if expected.get(name, 0) != found.get(name, 0)
        ]
        # A journal is deleted once the results are in place; a kill between the two leaves it.
        row["differences"] += [
            str(path.relative_to(folder)) for path in folder.rglob(".*") if not path.name.startswith(".out.partial")
        ]
        shutil.rmtree(folder)


def result_of(rows: list[dict], instants: collections.Counter, threads: int, minutes: float) -> dict:
    """The result of all subjects."""
    return {
        "command": command_line(),
        "versions": versions(),
        **{name: sum(row[name] for row in rows) for name in ("kills", "terminations", "resumed", "finished")},
        "differences": sum(len(row["differences"]) for row in rows),
        "unreadable_states": sum(row["unreadable"] for row in rows),
        "wrong_statuses": sum(len(row["statuses"]) for row in rows),
        "instants": dict(instants.most_common()),
        "threads_of_the_server": threads,
        "minutes": minutes,
        "subjects": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument(
        "--subjects", nargs="+", default=list(METHODS), metavar="NAME[:KILLS]", help=", ".join(subjects(Path()))
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="Work here, and leave the runs; a temporary folder by default.")
    options = parser.parse_args()
    root = (options.keep or Path(tempfile.mkdtemp(prefix="crash"))).resolve()
    root.mkdir(exist_ok=True)
    (root / "crash.yaml").write_text(json.dumps(CONFIG))
    for name, text in PAPER.items():
        path = root / "configs/papers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    began, bench, rows = time.time(), Bench(root, options.seed), []
    chosen = [subject.partition(":") for subject in options.subjects]
    if {name for name, _, _ in chosen} - {*METHODS, "tune", "report", "workers"}:
        bench.make_models()
    for number, (name, _, kills) in enumerate(chosen):
        share = options.kills // len(chosen) + (number < options.kills % len(chosen))
        rows.append(bench.kill_and_resume(name, subjects(root)[name], int(kills or share)))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        threads = max((int(path.read_text()) for path in root.glob("*/whole/threads")), default=0)
        result = result_of(rows, bench.instants, threads, round((time.time() - began) / 60, 1))
        if options.json:  # after each subject, so that an interrupted benchmark leaves what it has
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "subjects"}, indent=1))
    if not options.keep:
        shutil.rmtree(root)
    sys.exit(bool(result["differences"] or result["unreadable_states"] or result["wrong_statuses"]))


if __name__ == "__main__":
    main()
