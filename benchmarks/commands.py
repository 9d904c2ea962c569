"""Where the time of the commands `attack` and `fit` goes: seconds per stage, from the start of Python to its end.

    python -m benchmarks.commands saved_models/cusin-adversarial-seed1 --json results/benchmarks/commands.json

`attack` runs PGD-20 on 500 test images of the data set of a model; `fit` trains `clafs` with `configs/digits.yaml`.
Each command runs in a process of its own, as a user types it, with a clock around the functions of `STAGES`. The time
of a stage leaves out the stages within it, so that stages add up. Tracing is a stage of its own wherever it happens.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.command import command_line

COMMANDS = {
    "attack": ["attack", "{model}", "--attack", "pgd-20", "--limit", "500"],
    "fit": ["fit", "--variant", "clafs", "--no-compare"],
}

IMPORT, TRACING, STEPS, ATTACK = "import of TensorFlow", "tracing", "training steps", "the attack itself"
TRACING_STEPS, PROCESS = "tracing of the training steps", "Python, its end, and what no other stage has"
STAGES = {
    "attack": {
        "reading the model": [
            "keras_rcl.workflows.attack:load_classifier",
            "keras_rcl.model_io.classifier:Classifier.as_trained",
            "keras_rcl.model_io.classifier:Classifier.gradient_fn",
        ],
        "reading the data": ["keras_rcl.data.sources:load"],
        ATTACK: ["keras_rcl.evaluation.robustness:Evaluator.__call__"],
        "warnings": ["keras_rcl.workflows.attack:model_warnings", "keras_rcl.workflows.attack:attack_warnings"],
        "pictures": ["keras_rcl.workflows.attack:draw"],
    },
    "fit": {
        "reading the data": ["keras_rcl.data.sources:load", "keras_rcl.workflows.fit:hash_data"],
        "network, batches, optimizers": [
            "keras_rcl.workflows.fit:networks",
            "keras_rcl.training.phase_runner:PhaseRunner.__init__",
        ],
        STEPS: ["keras_rcl.training.phase_runner:PhaseRunner._run_steps"],
        "monitor": ["keras_rcl.training.monitor:Monitor.__call__"],
        "validation": ["keras_rcl.training.run_phases:_Training.validate"],
        "checkpoints": [
            "keras_rcl.storage.checkpoints:Checkpoints.save",
            "keras_rcl.storage.checkpoints:Checkpoints.load",
            "keras_rcl.training.run_phases:_Training.snapshot",
            "keras_rcl.storage.snapshots:SnapshotStore.save",
        ],
        "TensorBoard": ["keras_rcl.training.recorder:Recorder.epoch", "keras_rcl.training.recorder:Recorder.pictures"]
        + ["keras_rcl.workflows.fit:Run._log", "keras_rcl.training.tensorboard:TensorBoardWriter.close"],
        "final evaluation": ["keras_rcl.workflows.fit:Run.evaluate"],
        "geometry": ["keras_rcl.workflows.fit:geometry_of"],
        "export": ["keras_rcl.workflows.fit:Run.export"],
    },
}
"""Command -> stage -> the functions whose time it is, as `module:function` or `module:Class.method`."""


class Clock:
    """Adds up wall and CPU seconds per stage; time counts for the innermost stage that is open.

    Attributes:
        seconds: Stage -> wall and CPU seconds.
    """

    def __init__(self):
        self.seconds: dict[str, list[float]] = {}
        self._open, self._since = [PROCESS], self._now()

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Open a stage while the context lasts."""
        self.charge()
        self._open.append(TRACING_STEPS if stage == TRACING and STEPS in self._open else stage)
        try:
            yield
        finally:
            self.charge()
            self._open.pop()

    def charge(self) -> None:
        """Count the time since the last call for the innermost stage."""
        now = self._now()
        found = self.seconds.setdefault(self._open[-1], [0.0, 0.0])
        for index, (end, start) in enumerate(zip(now, self._since, strict=True)):
            found[index] += end - start
        self._since = now

    def around(self, stage: str, name: str) -> None:
        """Replace a function by one that opens a stage while it runs."""
        module, _, path = name.partition(":")
        *owners, attribute = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*args, **kwargs):
            with self(stage):
                return function(*args, **kwargs)

        setattr(owner, attribute, timed)

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def run_command(command: str, arguments: Sequence[str], file: Path) -> None:
    """Run a command in this process, and write the seconds of its stages."""
    clock = Clock()
    with clock(IMPORT):
        from keras_rcl.runtime.tensorflow import start_tensorflow

        start_tensorflow()
    with clock("import of keras_rcl"):
        from keras_rcl.cli.app import cli

        importlib.import_module(f"keras_rcl.workflows.{command}")
    clock.around(TRACING, "tensorflow.python.framework.func_graph:func_graph_from_py_func")
    for stage, names in STAGES[command].items():
        for name in names:
            clock.around(stage, name)
    try:
        cli.main(list(arguments))  # exits
    finally:
        clock.charge()
        file.write_text(json.dumps(clock.seconds))


def measured(command: str, arguments: Sequence[str]) -> dict[str, list[float]]:
    """Run a command in a new process and folder: stage -> wall and CPU seconds."""
    with tempfile.TemporaryDirectory(prefix="commands") as folder:
        file = Path(folder) / "seconds.json"
        program = [sys.executable, "-m", "benchmarks.commands", "--stages", command, str(file), *arguments]
        root = Path(__file__).resolve().parents[1]
        paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
        before, started = _children_cpu(), time.perf_counter()
        subprocess.run(program, check=True, cwd=folder, env={**os.environ, "PYTHONPATH": paths})
        whole = time.perf_counter() - started, _children_cpu() - before
        seconds = json.loads(file.read_text())
    for index, total in enumerate(whole):
        seconds[PROCESS][index] += total - sum(stage[index] for stage in seconds.values())
    return seconds


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def medians(rounds: Sequence[dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Stage -> the median wall and CPU seconds, the longest stage first."""
    stages = dict.fromkeys(stage for one in rounds for stage in one)
    found = {
        stage: {
            kind: round(statistics.median(one.get(stage, (0.0, 0.0))[index] for one in rounds), 2)
            for index, kind in enumerate(("wall", "cpu"))
        }
        for stage in stages
    }
    return dict(sorted(found.items(), key=lambda pair: -pair[1]["wall"]))


def summary(command: str, stages: dict[str, dict[str, float]]) -> dict[str, float]:
    """What is compared: the wall and CPU seconds of a command apart from its import of TensorFlow and its work."""
    work = [STEPS] if command == "fit" else [ATTACK]
    rest = {
        f"rest_{kind}": round(sum(row[kind] for stage, row in stages.items() if stage not in (IMPORT, *work)), 2)
        for kind in ("wall", "cpu")
    }
    return {**rest, "rest_per_work": round(rest["rest_wall"] / stages[work[0]]["wall"], 3)}


def main() -> None:
    if sys.argv[1:2] == ["--stages"]:
        command, file, *arguments = sys.argv[2:]
        return run_command(command, arguments, Path(file))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="the model that is attacked")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each command; 1 by default")
    parser.add_argument("--only", choices=COMMANDS, help="the command to run; both by default")
    parser.add_argument("--json", type=Path, help="the file to write")
    arguments = parser.parse_args()
    chosen = [arguments.only] if arguments.only else list(COMMANDS)
    lines = {name: [part.format(model=arguments.model.resolve()) for part in COMMANDS[name]] for name in chosen}
    rounds: dict[str, list] = {name: [] for name in chosen}
    for _ in range(arguments.repeats):
        for name, line in lines.items():
            rounds[name].append(measured(name, line))
    from keras_rcl.runtime.tensorflow import start_tensorflow

    start_tensorflow()  # not before, so that this process does not use memory that a command could
    from benchmarks.contrast import processor
    from keras_rcl.evaluation.record import versions
    from keras_rcl.report.tables import markdown_table

    found = {}
    for name in chosen:
        stages = medians(rounds[name])
        found[name] = {**summary(name, stages), "stages": stages}
        rows = [[stage, f"{row['wall']:.2f}", f"{row['cpu']:.2f}"] for stage, row in stages.items()]
        print(f"\n{' '.join(COMMANDS[name]).format(model=arguments.model)}\n")
        print(f"{markdown_table(['stage', 'wall s', 'CPU s'], rows)}\n")
        print("; ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in summary(name, stages).items()))
    if arguments.json:
        command = command_line()
        machine = {"cores": len(os.sched_getaffinity(0)), "processor": processor(), "repeats": arguments.repeats}
        written = {"command": command, **machine, "versions": versions(), "commands": found}
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
