"""The processes of `test_replicas.py`: `replicas_program.py FOLDER PORT PORT`.

One process has two replicas, and two are the workers at the ports. They are forked from this one, which has imported
TensorFlow and not started it, and which prints their exit codes. The result of each stage is written to
`FOLDER/<kind>/<stage><worker>.npz`; in the last stage a worker is killed.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from tiny import BATCH, image_data, tiny_clafs, tiny_network, train

from keras_rcl.networks import synchronize
from keras_rcl.objectives import contrastive, tiled
from keras_rcl.runtime.distributed import Message, Workers
from keras_rcl.runtime.progress import Silent
from keras_rcl.runtime.signals import WorkerLost
from keras_rcl.runtime.tensorflow import start_tensorflow
from keras_rcl.storage.snapshots import SnapshotStore
from keras_rcl.training.phase_runner import PhaseRunner
from keras_rcl.vocabulary.attacks import PGD, AutoPGD
from keras_rcl.vocabulary.dataset import CropFlip
from keras_rcl.vocabulary.phase import SGD, Adam, Adversarial, Augmented, Clean, Phase, SupCon

PLAIN = SGD(learning_rate=1.0, momentum=0.0)
CROP = Augmented(policy=CropFlip(padding=1))
SUPCON = Phase(
    name="contrast",
    epochs=1,
    trains=("encoder", "projector"),
    views=(CROP, Clean(), Adversarial(attack=PGD(epsilon=8 / 255, num_steps=2))),
    terms=(SupCon(temperature=0.1),),
    optimizer=PLAIN,
    batch_size=BATCH,
)
# Adam divides a gradient that is 0 up to rounding by itself, so that a bias before BatchNorm could not be compared.
METHOD = tiny_clafs(
    warmup_epochs=0,
    optimizer=SGD(learning_rate=0.05),
    inner_optimizer=Adam(learning_rate=0.01, clip_norm=0.1, weight_decay=0.01),
    linear_optimizer=SGD(learning_rate=0.05),
)


def network_of(workers: Workers, synchronized: bool = True):
    with workers.scope():
        network = tiny_network()
    if synchronized and workers.replicas > 1:
        synchronize(network)
    return network


def stepped(phase: Phase, workers: Workers, synchronized: bool = True) -> dict[str, np.ndarray]:
    """The change of each weight in one step, the metrics, and how often the step was traced in two steps."""
    network = network_of(workers, synchronized)
    before = network.get_weights()
    runner = PhaseRunner(network, phase, image_data(BATCH), epochs=1, seed=(0,), workers=workers)
    metrics = runner.run_epoch(Silent(), "")
    del metrics["images_per_second"]
    changes = {str(number): after - before[number] for number, after in enumerate(network.get_weights())}
    runner.run_epoch(Silent(), "")
    numbers = {**metrics, "traces": runner.trainer.traces}
    return {**changes, **{name: np.array(value) for name, value in numbers.items()}}


def trained(folder: Path, workers: Workers, progress=None) -> dict[str, np.ndarray]:
    """The weights after one epoch of each phase of CLAF; the chief stores snapshots in the folder."""
    network, snapshots = network_of(workers), SnapshotStore(folder, print)
    folder.mkdir(parents=True, exist_ok=True)
    train(
        folder,
        network,
        METHOD.phases(),
        snapshots=snapshots if workers.chief else None,
        resumed=snapshots.rewind(),
        save_every=0,
        progress=progress or Silent(),
        workers=workers,
    )
    return {str(number): weight for number, weight in enumerate(network.get_weights())}


def evaluated(folder: Path, workers: Workers):
    """The survival table of two attacks of one graph; computed twice, so that the journal of the chief is also read."""
    from keras_rcl.evaluation.robustness import Evaluator
    from keras_rcl.storage.journal import Journal

    network, data = tiny_network(), image_data(60).test
    images = data.images.astype(np.float32) / 255
    attacks = tuple(AutoPGD(epsilon=epsilon, num_steps=5, num_restarts=2) for epsilon in (0.05, 0.1))
    evaluator = Evaluator(lambda x: network(x, training=False)["logits"], attacks, batch_size=8)
    for _ in range(2):
        journal = Journal(folder / "journal", evaluator.fingerprint(images, data.labels)) if workers.chief else None
        survival = evaluator(images, data.labels, keep_images=True, journal=journal, workers=workers)
        if workers.chief:
            journal.close()
    fields = ("clean_predictions", "predictions", "distances", "zero_gradients", "forwards", "backwards", "adversarial")
    return {name: getattr(survival, name) for name in fields}


def certified(folder: Path, workers: Workers):
    """The certificates of a linear classifier; computed twice, so that the journal of the chief is also read."""
    from keras_rcl.evaluation.smoothing import Smoother, Smoothing
    from keras_rcl.storage.journal import Journal

    data = image_data(7).test
    images = data.images.astype(np.float32) / 255
    weights = np.linspace(-1, 1, 64 * 3, dtype=np.float32).reshape(64, 3) ** 3
    smoother = Smoother(lambda x: tf.reshape(x, [-1, 64]) @ weights, Smoothing(0.5, n=200), batch_size=100)
    for _ in range(2):
        journal = Journal(folder / "smoothing", smoother.fingerprint(images, data.labels)) if workers.chief else None
        smoothed = smoother(images, data.labels, journal=journal, workers=workers)
        if workers.chief:
            journal.close()
    return {name: getattr(smoothed, name) for name in ("predictions", "radii", "counts")}


class Copies(Silent):
    """Copies the folder of the chief after some steps, as if the run had been killed there."""

    def __init__(self, folder: Path, steps: int):
        self.folder, self.left = folder, steps

    def update(self, done, note=""):
        self.left -= 1
        if not self.left:
            shutil.copytree(self.folder, self.folder.with_name("cut"))


def tiled_step(workers: Workers) -> dict[str, np.ndarray]:
    """A step whose loss is computed by blocks of rows."""
    usual = contrastive.TILED_FROM, tiled.BLOCK_ELEMENTS
    contrastive.TILED_FROM, tiled.BLOCK_ELEMENTS = 0, 64
    try:
        return stepped(SUPCON, workers)
    finally:
        contrastive.TILED_FROM, tiled.BLOCK_ELEMENTS = usual


def run(folder: Path, replicas: int | None) -> None:
    """All stages of one process: of two replicas, or of a worker of `TF_CONFIG`."""
    from keras_rcl.runtime.distributed import start_workers

    folder.mkdir(exist_ok=True)
    start_tensorflow()
    workers = start_workers(replicas, heartbeat=30)

    def write(**stages: dict[str, np.ndarray]) -> None:
        for name, arrays in stages.items():
            np.savez(folder / f"{name}{workers.index}.npz", **arrays)

    own = folder / f"run{workers.index}"
    write(clafs=trained(own, workers, Copies(own, 4) if workers.chief else None))
    if workers.count == 1:
        write(apart=stepped(SUPCON, workers, synchronized=False), tiled=tiled_step(workers))
        return
    write(supcon=stepped(SUPCON, workers))
    messages = workers.all_gather(Message(workers.index, {"a": np.arange(workers.index * 5)}))
    gathered = {str(message.value): message.arrays["a"] for message in messages}
    write(gathered=gathered, evaluated=evaluated(folder, workers), certified=certified(folder, workers))
    if not workers.chief:
        time.sleep(3)  # the chief may still be reading the last message from here
        os.kill(os.getpid(), 9)
    try:
        workers.all_gather(Message())
    except WorkerLost:
        (folder / "lost").touch()


def main(folder: Path, ports: list[str]) -> None:
    """Fork the processes, each of which returns from here after its stages, and wait for them."""
    cluster, children = {"worker": [f"localhost:{port}" for port in ports]}, []
    for index in (None, *range(len(ports))):
        if child := os.fork():
            children.append(child)
        elif index is None:
            return run(folder / "replicas", 2)
        else:
            os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
            return run(folder / "worker", None)
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
