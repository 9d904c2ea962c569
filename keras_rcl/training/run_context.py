"""Where a training runs, as opposed to what is trained: folder, writers, snapshots, progress, workers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from keras_rcl.runtime.distributed import ALONE, Workers
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.snapshots import Snapshot, SnapshotStore
from keras_rcl.training.tensorboard import TensorBoardWriter
from keras_rcl.vocabulary.attacks import Attack


@dataclasses.dataclass(frozen=True)
class RunContext:
    """The surroundings of one training.

    Attributes:
        folder: The folder of the run; receives `metrics.jsonl` and `checkpoints/`. Each worker has its own; only that
            of the chief is kept.
        writer: Writes TensorBoard's event file.
        snapshots: Where training snapshots are stored, so that the run can be resumed. None: they are not stored.
            Only the chief stores them.
        resumed: The snapshot from which this run resumes.
        reused: The folder of another run and how many of its first phases this training shares with it, at the same
            seed and on the same data. Unless a snapshot is resumed, the training begins with the weights at their end.
        save_every: Seconds between two snapshots. A snapshot is also stored at the end, and when SIGINT or SIGTERM
            arrives. The best weights are written with a snapshot.
        progress: Shows progress.
        after_validation: Called after each validation, once its metrics are in `metrics.jsonl`. What it raises ends the
            training.
        workers: The processes that train together; all of them call `run_phases` with the same arguments, except for
            `folder`, `snapshots` and `resumed`.
    """

    folder: Path
    writer: TensorBoardWriter
    snapshots: SnapshotStore | None = None
    resumed: Snapshot | None = None
    reused: tuple[Path, int] | None = None
    save_every: float = 60.0
    progress: Progress = dataclasses.field(default_factory=Silent)
    after_validation: Callable[[], None] = lambda: None
    workers: Workers = ALONE


@dataclasses.dataclass(frozen=True)
class Validation:
    """What measures a network while it trains.

    Attributes:
        monitored_attack: Attacks a fixed batch of training images once per epoch, for logs and pictures.
        evaluate: Called after each epoch of the last phase. Returns metrics on held-out images; `robust_accuracy` among
            them decides which epoch is the best. None: the last weights are kept.
        patience: The last phase ends after this many consecutive epochs that were not better than the best epoch
            before them. None: it runs all its epochs.
        outputs: What `inference_graph` returned for the network. None: the network is traced again.
        attacked: What `Evaluator.one_round` returned for the monitored attack on the network. None: it is traced again.
    """

    monitored_attack: Attack
    evaluate: Callable[[], dict[str, float]] | None = None
    patience: int | None = None
    outputs: Callable | None = None
    attacked: Callable | None = None
