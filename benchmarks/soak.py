"""Trains and attacks for an hour, a process each, and watches what grows: memory, open files, traces.

    python -m benchmarks.soak --minutes 60 --json results/benchmarks/soak.json

`fit` is one training on digits without end, with a state every ten seconds; `attack` is one attack with restarts
without end, and `attacks` one short attack after another in the same process. Every few seconds the resident memory and
the open files are written down beside the steps done: optimizer steps, or batches attacked. The slope is of a line
through the samples after the first third, by least squares, in MiB per 1,000 steps.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.command import command_line
from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

from keras_rcl import config  # noqa: E402
from keras_rcl.evaluation.record import versions  # noqa: E402
from keras_rcl.runtime.progress import Silent  # noqa: E402
from keras_rcl.training.robust_trainer import RobustTrainer  # noqa: E402
from keras_rcl.vocabulary.attacks import parse_attack  # noqa: E402
from keras_rcl.workflows.attack import attack  # noqa: E402
from keras_rcl.workflows.fit import FitOptions, fit, fit_all  # noqa: E402

SMALL = ("method.batch_size=64", "dataset.limit=640", "evaluation.limit=100", "evaluation.validation_limit=50")
ENDLESS = "method.adversarial_epochs=20000"


class Watch(Silent):
    """Progress that counts steps, samples this process in a thread, and ends the run when the time is over."""

    def __init__(self, minutes: float, every: float):
        self.minutes, self.every, self.steps, self.samples = minutes, every, 0, []
        self._began, self._stop = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def update(self, done: int, note: str = "") -> None:
        self.steps += 1
        if self.is_over():
            raise KeyboardInterrupt

    def is_over(self) -> bool:
        return time.monotonic() - self._began > 60 * self.minutes

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self._stop.set()
        self._thread.join()
        return kind is not None and issubclass(kind, KeyboardInterrupt) and self.is_over()

    def _sample(self) -> None:
        while not self._stop.wait(self.every):
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            files = len(os.listdir("/proc/self/fd"))
            self.samples.append((time.monotonic() - self._began, self.steps, resident / 2**20, files))

    def result(self) -> dict:
        seconds, steps, resident, files = np.array(self.samples).T
        warm = slice(len(steps) // 3, None)
        slope, _ = np.polyfit(steps[warm] / 1000, resident[warm], 1)
        return {
            "minutes": round(seconds[-1] / 60, 1),
            "steps": int(steps[-1]),
            "slope_mib_per_1000_steps": round(float(slope), 4),
            "resident_mib": {"warm": round(resident[warm][0], 1), "end": round(resident[-1], 1)},
            "open_files": {"least": int(files[warm].min()), "most": int(files[warm].max())},
            "samples": [[round(float(value), 1) for value in row] for row in np.array(self.samples)],
        }


def soak_fit(minutes: float, every: float) -> dict:
    """CLAF's second stage without end: refreshes, attacks, a monitor, states."""
    trainers, make = [], RobustTrainer.__init__

    def noted(trainer, *args, **kwargs):
        make(trainer, *args, **kwargs)
        trainers.append(trainer)

    RobustTrainer.__init__ = noted
    with Watch(minutes, every) as watch:
        experiment = config.load(variant="clafs", settings=[*SMALL, ENDLESS, "method.warmup_epochs=1"])
        fit_all([experiment], FitOptions(save_every=10), progress=watch)
    return {**watch.result(), "most_traces_of_a_trainer": max(trainer.traces for trainer in trainers)}


def soak_attack(minutes: float, every: float) -> dict:
    """One attack, whose restarts never end."""
    with Watch(minutes, every) as watch:
        attack(_exported(), [parse_attack("pgd-10:epsilon=1/255,num_restarts=10000000")], batch_size=16, progress=watch)
    return watch.result()


def soak_attacks(minutes: float, every: float) -> dict:
    """The same attack again and again, each loading the model again."""
    exported, number = _exported(), 0
    with Watch(minutes, every) as watch:
        while True:
            words = [parse_attack("pgd-10:epsilon=1/255,num_restarts=20")]
            attack(exported, words, output_dir=Path("out"), overwrite=True, batch_size=16, progress=watch)
            number += 1
    return {**watch.result(), "attacks": number}


def _exported() -> Path:
    """A network trained for a moment."""
    return fit(config.load(variant="baseline", settings=[*SMALL, "method.epochs=2"])).saved_model


PARTS = {"fit": soak_fit, "attack": soak_attack, "attacks": soak_attacks}


def _part(name: str, minutes: float, every: float) -> dict:
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        os.chdir(folder)
        try:
            return PARTS[name](minutes, every)
        finally:
            os.chdir("/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="For each part.")
    parser.add_argument("--every", type=float, default=5, help="Seconds between two samples.")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    context, found = multiprocessing.get_context("spawn"), {}
    for name in options.parts:
        with context.Pool(1) as pool:
            found[name] = pool.apply(_part, (name, options.minutes, options.every))
        print(json.dumps({name: {k: v for k, v in found[name].items() if k != "samples"}}), flush=True)
        if options.json:
            result = {"command": command_line(), "versions": versions()}
            options.json.write_text(json.dumps({**result, **found}) + "\n")


if __name__ == "__main__":
    main()
