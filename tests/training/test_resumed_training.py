"""A training that is interrupted at any step and resumed ends bit for bit like one that is not."""

import dataclasses
import json
import signal

import numpy as np
import pytest
import tensorflow as tf
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorflow.python.framework import config as tensorflow_config
from tiny import BATCH, image_data, runner, tiny_clafs, tiny_network

from keras_rcl.errors import InvalidInputError
from keras_rcl.methods.adversarial import AdversarialBatch
from keras_rcl.methods.at import AT
from keras_rcl.methods.baseline import Baseline
from keras_rcl.runtime.progress import Silent
from keras_rcl.runtime.signals import Terminated
from keras_rcl.storage.checkpoints import Checkpoints
from keras_rcl.storage.snapshots import SnapshotStore
from keras_rcl.training import run_phases as engine
from keras_rcl.training.monitor import mean_cosine
from keras_rcl.training.robust_trainer import RobustTrainer
from keras_rcl.training.run_context import RunContext, Validation
from keras_rcl.training.schedule import ScheduledEpoch
from keras_rcl.vocabulary.attacks import FGSM, Refreshed
from keras_rcl.vocabulary.phase import SGD


@pytest.fixture(autouse=True)
def deterministic(unoptimized):
    tf.config.experimental.enable_op_determinism()
    yield
    tensorflow_config.disable_op_determinism()


class Killed(BaseException):
    """Raised where a process would be killed."""


class Dies(Silent):
    """Raises an exception or a signal after some steps of this process; `lines` are the lines that it reported."""

    def __init__(self, after: int | None = None, by=Killed):
        self.left, self.by, self.lines = after, by, []

    def update(self, done, note=""):
        if self.left is None:
            return
        self.left -= 1
        if self.left == 0:
            if isinstance(self.by, signal.Signals):
                signal.raise_signal(self.by)
            else:
                raise self.by

    def say(self, line):
        self.lines.append(line)


def train(folder, phases, progress, save_every=0.0, reused=None):
    """Run phases in a folder like `fit`; returns the network and the chosen validation."""
    network, snapshots = tiny_network(), SnapshotStore(folder, progress.say)

    def evaluate():
        return {"robust_accuracy": float(np.abs(network.get_weights()[0]).sum() % 1)}

    chosen = tiny.train(
        folder,
        network,
        phases,
        evaluate=evaluate,
        snapshots=snapshots,
        resumed=snapshots.rewind(),
        reused=reused,
        save_every=save_every,
        progress=progress,
    )
    return network, chosen


def outcome(folder, network, chosen):
    """Everything that a training writes and returns, except for times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("images_per_second") > 0 for line in lines)
    curves = {}
    for sub_run in sorted({path.parent for path in (folder / "tensorboard").rglob("*tfevents*")}):
        events = EventAccumulator(str(sub_run), size_guidance={"tensors": 0}).Reload()
        for tag in set(events.Tags()["tensors"]) - {"images_per_second"}:
            curve = [(event.step, event.tensor_proto.SerializeToString()) for event in events.Tensors(tag)]
            curves[f"{sub_run.name} {tag}"] = curve
    checkpoints, held, weights = Checkpoints(folder / "checkpoints"), tiny_network(seed=1), {}
    for name in checkpoints.names():
        checkpoints.load(held, name)
        weights[name] = [value.tobytes() for value in held.get_weights()]
    return lines, curves, weights, [value.tobytes() for value in network.get_weights()], chosen


# There are two steps per epoch.
AVERAGED = AT(epochs=2, ema=0.8, batch_size=BATCH, attack=FGSM(epsilon=8 / 255))
CLAFS = tiny_clafs(warmup_epochs=0, adversarial_epochs=2, linear_epochs=2)
BY_MOMENTUM = SGD(learning_rate=0.05)  # whose update is traced in a fraction of Adam's time; `CLAFS` has Adam's state
REFRESHED = AdversarialBatch(
    epochs=2,
    batch_size=BATCH,
    attack=Refreshed(every=3, attack=FGSM(epsilon=8 / 255)),
    separate_batchnorm=True,
    optimizer=BY_MOMENTUM,
)


def killed(folder, phases, *deaths, reused=None):
    """Kill a training after some steps of each process; all of them leave torn event files."""
    for after in deaths:
        with pytest.raises(Killed):
            train(folder, phases, Dies(after), reused=reused)
        (torn := folder / "tensorboard/torn").mkdir(exist_ok=True)
        (torn / "events.out.tfevents.of-the-killed").write_bytes(b"torn")


@pytest.mark.slow
def test_refreshed_examples_averaged_weights_and_two_batchnorm_sets_are_resumed(tmp_path):
    """The examples of all images take two steps; killed within the interval that reads them, and at its end.

    The end of the interval is within the second epoch, which begins with the weights and not with their average.
    """
    phases = tuple(dataclasses.replace(phase, ema=0.8) for phase in REFRESHED.phases())
    expected = outcome(tmp_path / "whole", *train(tmp_path / "whole", phases, Dies()))
    killed(tmp_path / "cut", phases, 4, 7)
    last = Dies()
    assert outcome(tmp_path / "cut", *train(tmp_path / "cut", phases, last)) == expected
    assert last.lines == ["resuming 1/1 adversarial training  epoch 2/2, step 1"]


@pytest.mark.slow
def test_phases_with_refreshes_are_resumed_or_taken_from_another_run(tmp_path):
    """Killed within the first refresh and at the end of a phase; a run that reuses phases is killed within the last."""

    def without_pictures(lines, curves, *others):
        return lines, {tag: curve for tag, curve in curves.items() if "perturbation" not in tag}, *others

    phases = CLAFS.phases()
    expected = outcome(tmp_path / "whole", *train(tmp_path / "whole", phases, Dies()))
    killed(tmp_path / "cut", phases, 2, 8)
    last = Dies()
    assert outcome(tmp_path / "cut", *train(tmp_path / "cut", phases, last)) == expected
    assert last.lines == ["resuming 3/3 linear evaluation  epoch 1/2, step 0"]

    reused = (tmp_path / "whole", 2)
    killed(tmp_path / "other", phases, 4, reused=reused)
    last = Dies()
    found = outcome(tmp_path / "other", *train(tmp_path / "other", phases, last, reused=reused))
    assert last.lines == ["resuming 3/3 linear evaluation  epoch 2/2, step 1"]
    assert without_pictures(*found) == without_pictures(*expected)  # those of TensorBoard are not copied


@pytest.mark.slow
def test_a_signal_lets_the_step_end_and_stores_it(tmp_path):
    """Without regular snapshots nothing is lost; with a damaged snapshot one step; a finished run is only read."""
    phases = Baseline(epochs=2, batch_size=BATCH, optimizer=BY_MOMENTUM).phases()
    expected = outcome(tmp_path / "whole", *train(tmp_path / "whole", phases, Dies(), save_every=1e9))
    before = signal.getsignal(signal.SIGTERM)
    for by, raised, said in ((signal.SIGTERM, Terminated, None), (signal.SIGINT, KeyboardInterrupt, "1/2, step 1")):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        progress = Dies(1 if by == signal.SIGTERM else 2, by)
        with pytest.raises(KeyboardInterrupt) as stopped:
            train(tmp_path / "cut", phases, progress, save_every=1e9)
        assert stopped.type is raised and signal.getsignal(signal.SIGTERM) == before
        assert said is None or said in progress.lines[0]
    latest = max((tmp_path / "cut/training").glob("*.state"))
    latest.write_bytes(latest.read_bytes()[:-1])
    last = Dies()
    assert outcome(tmp_path / "cut", *train(tmp_path / "cut", phases, last)) == expected
    assert "is damaged" in last.lines[0] and last.lines[1].startswith("resuming 1/1 train")
    last = Dies(1)
    assert outcome(tmp_path / "cut", *train(tmp_path / "cut", phases, last)) == expected
    assert last.lines == ["resuming after the last epoch"]


# Guards


def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path):
    """At a learning rate of 1e30 the first step is finite and the second is not."""
    method = AT(epochs=2, batch_size=BATCH, attack=FGSM(), optimizer=SGD(learning_rate=1e30, momentum=0.0))
    with pytest.raises(InvalidInputError) as refusal:
        train(tmp_path, method.phases(), Dies())
    line = str(refusal.value)
    assert "not finite after step" in line and "of epoch 1 of adversarial training" in line
    assert "and 8 more" in line and "smaller learning rate (now 1e+30)" in line and "\n" not in line
    named = line.split("training images ")[1].split(" and 8")[0].split(", ")
    assert len(named) == 8 and all(0 <= int(index) < 2 * BATCH for index in named)


def test_the_reported_images_are_those_of_the_step():
    batches = runner(tiny_network(), AVERAGED.phases()[0]).batches
    batches.start_epoch(3)
    for step, (_, labels, _) in enumerate(batches.dataset):
        np.testing.assert_array_equal(image_data().train.labels[batches.indices(step)], labels)
    everything = [labels.numpy() for _, labels, _ in batches.dataset]
    batches.start_epoch(3, step=1)
    np.testing.assert_array_equal([labels.numpy() for _, labels, _ in batches.dataset], everything[1:])


def test_insufficient_memory_raises_with_a_hint(tmp_path, monkeypatch):
    def exhausted(*args, **kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    monkeypatch.setattr(RobustTrainer, "fit", exhausted)
    with pytest.raises(
        InvalidInputError, match="out of memory in adversarial training: batches of 16 .* --micro-batch 8$"
    ):
        train(tmp_path, AVERAGED.phases(), Dies())


@pytest.mark.parametrize(
    ("shares", "similarity", "named"),
    [({"zero_gradients": 0.6}, 0.0, "dead attack"), ({}, 0.9995, "collapsed embeddings"), ({}, 0.99, None)],
)
def test_a_warning_is_given_once_per_phase(tmp_path, shares, similarity, named):
    progress = Dies()
    contrast, _, _ = CLAFS.phases()
    context = RunContext(tmp_path, None, progress=progress)
    training = engine._Training(tiny_network(), [], image_data(), context, Validation(FGSM()))
    runner = type("Runner", (), {"phase": contrast})
    metrics = {"monitor_adversarial_accuracy": 0.5, **shares}
    for epoch in (1, 2):
        training.warn(ScheduledEpoch(1, epoch, runner, (), ""), metrics, similarity)
    assert [line.split(" in epoch ")[0] for line in progress.lines] == ([named] if named else [])


def test_mean_cosine_by_hand():
    rows = np.array([[1, 0], [0, 1], [1, 0]], np.float32)  # of three pairs, one has the cosine 1
    assert float(mean_cosine(tf.constant(rows))) == pytest.approx(1 / 3)
    assert float(mean_cosine(tf.constant(rows[:1]))) == 0
