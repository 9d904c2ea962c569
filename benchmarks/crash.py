"""Kill `fit` at random instants and resume it: does it end as an uninterrupted run does, bit for bit?

    python -m benchmarks.crash --kills 200 --json results/benchmarks/crash.json

For one variant per family, on digits with a short schedule: one run to its end, then the same command again and again
in another folder, killed after a random time (by SIGKILL, one time in five by SIGTERM), until a run is complete.
Compared are the files, all checkpoints, the hash of the exported model, the metrics, the record and TensorBoard's
curves, except for seconds, images per second, and the number of event files.

Every run is a process of its own, forked from a server that has imported TensorFlow and called nothing of it, and that
has one thread, as the result says. That saves the ten seconds per run that the import takes.
"""

import argparse
import collections
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

from keras_rcl.evaluation.record import versions  # noqa: E402
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

TIMES = {"command", "seconds", "training_seconds", "images_per_second"}
"""What differs between two runs of the same bits."""


def command(variant: str, settings: Path) -> list[str]:
    """The command line of `fit`."""
    beside = ["--compare", "at"] if variant == next(iter(METHODS)) else ["--no-compare"]
    return ["fit", "--config", str(settings), "--variant", variant, "--deterministic", "--save-every", "0", *beside]


def run(arguments: list[str], folder: Path) -> None:
    """Run the command in a process of its own; its output goes to the file `said`."""
    from keras_rcl.cli.app import cli

    os.chdir(folder)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    threads = re.search(r"Threads:\s+(\d+)", Path(f"/proc/{os.getppid()}/status").read_text())
    Path("threads").write_text(threads[1])
    sys.argv = ["cli.py", *arguments]
    cli()


def start(context, arguments: list[str], folder: Path):
    process = context.Process(target=run, args=(arguments, folder))
    process.start()
    return process


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


def contents(folder: Path) -> dict[str, object]:
    """Everything that a completed command wrote, in a form that is equal if the bits are."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != folder):
        name = str(path.relative_to(folder))
        if path.suffix == ".h5":
            found[name] = weights(path)
        elif path.suffix == ".json":
            found[name] = plain(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [plain(json.loads(line)) for line in path.read_text().splitlines()]
        elif "tfevents" in name:
            found[str(Path(name).parent)] = curves(path.parent)
        elif path.suffix in (".keras", ".pb", ".data-00000-of-00001", ".index") or path.name == "fingerprint.pb":
            found[name] = None  # their bytes hold times and identifiers; the model's hash is in model.json
        else:
            found[name] = path.read_bytes()
    for name in list(found):
        if name.endswith("environment.json"):
            found[name] = None
    return found


def is_done(folder: Path, whole: Path) -> bool:
    """Whether all runs are there and none is unfinished; a process may also be killed after that."""
    runs, wanted = ({path.parent.name for path in where.glob("runs/*/record.json")} for where in (folder, whole))
    return runs == wanted and not any(folder.glob("runs/*/training/question.json"))


def instant(folder: Path) -> str:
    """What the process did when it was killed, according to its files."""
    latest = max(folder.glob("runs/*/training"), key=os.path.getmtime, default=None)
    if latest is None:
        return "after the run" if any(folder.glob("runs/*")) else "before the run"
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


# A script: one pass from arguments to result.
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--variants", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="Work here, and leave the runs; a temporary folder by default.")
    options = parser.parse_args()
    os.environ.update(
        OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="1"
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.started"])
    warm_up = context.Process(target=abs, args=(0,))
    warm_up.start()
    warm_up.join()
    rng = np.random.default_rng(options.seed)
    root = (options.keep or Path(tempfile.mkdtemp(prefix="crash"))).resolve()
    began, instants, rows = time.time(), collections.Counter(), []
    root.mkdir(exist_ok=True)
    (root / "crash.yaml").write_text(json.dumps(CONFIG))
    for number, variant in enumerate(options.variants):
        arguments, whole = command(variant, root / "crash.yaml"), root / variant / "whole"
        whole.mkdir(parents=True)
        started = time.perf_counter()
        process = start(context, arguments, whole)
        process.join()
        seconds = time.perf_counter() - started
        if process.exitcode:
            sys.exit(f"{variant}: the undisturbed run failed: {(whole / 'said').read_text()}")
        expected = contents(whole)
        row = dict(
            variant=variant,
            seconds=round(seconds, 1),
            kills=0,
            terminations=0,
            resumed=0,
            finished=0,
            differences=[],
            unreadable=0,
            statuses=[],
        )
        wanted = options.kills // len(options.variants) + (number < options.kills % len(options.variants))
        while row["kills"] < wanted:
            folder = root / variant / f"cut{row['finished']}"
            folder.mkdir(exist_ok=True)
            process = start(context, arguments, folder)
            process.join(rng.uniform(0, 0.5 * seconds))
            if process.exitcode is None:
                by = signal.SIGTERM if rng.random() < 0.2 else signal.SIGKILL
                os.kill(process.pid, by)
                process.join()
                row["kills"] += 1
                row["terminations"] += by == signal.SIGTERM
                if by == signal.SIGTERM and process.exitcode not in (143, -signal.SIGTERM, 0):
                    row["statuses"].append(process.exitcode)
                where = instant(folder)
                instants[where] += 1
                print(f"{variant:24} {row['kills']:3} {by.name:8} {where}", file=sys.stderr, flush=True)
                if not is_done(folder, whole):
                    if row["kills"] < wanted:
                        continue
                    process = start(context, arguments, folder)
                    process.join()
            said = (folder / "said").read_text()
            row["resumed"] += said.count("resuming ")
            row["unreadable"] += said.count("is damaged")
            row["finished"] += 1
            if not is_done(folder, whole):
                row["statuses"].append(process.exitcode)
                row["differences"].append(said[-2000:])
                continue
            found = contents(folder)
            differing = [name for name in expected.keys() | found.keys() if expected.get(name, 0) != found.get(name, 0)]
            left = [str(p.relative_to(folder)) for p in folder.rglob(".*")]
            row["differences"] += differing + left
            shutil.rmtree(folder)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    threads = (root / options.variants[0] / "whole" / "threads").read_text()
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.crash", *sys.argv[1:]]),
        "versions": versions(),
        "kills": sum(row["kills"] for row in rows),
        "terminations": sum(row["terminations"] for row in rows),
        "resumed": sum(row["resumed"] for row in rows),
        "finished": sum(row["finished"] for row in rows),
        "differences": sum(len(row["differences"]) for row in rows),
        "unreadable_states": sum(row["unreadable"] for row in rows),
        "wrong_statuses": sum(len(row["statuses"]) for row in rows),
        "instants": dict(instants.most_common()),
        "threads_of_the_server": int(threads),
        "minutes": round((time.time() - began) / 60, 1),
        "variants": rows,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "variants"}, indent=1))
    if not options.keep:
        shutil.rmtree(root)
    sys.exit(bool(result["differences"] or result["unreadable_states"] or result["wrong_statuses"]))


if __name__ == "__main__":
    main()
