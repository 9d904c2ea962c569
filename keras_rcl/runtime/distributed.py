"""Workers: the processes of one run. Each has one or more replicas, which are devices with a copy of the network.

All workers run the same command on the same data; `TF_CONFIG`, TensorFlow's own variable, names them. The first one,
the chief, owns everything on disk. This module has their communication between steps.
"""

import contextlib
import functools
import io
import ipaddress
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime import private_network
from keras_rcl.runtime.signals import Terminated, WorkerLost

_EXAMPLE = '{"cluster": {"worker": ["host-a:2222", "host-b:2222"]}, "task": {"type": "worker", "index": 0}}'
HEARTBEAT = 60
"""Seconds without a heartbeat after which a worker counts as lost. TensorFlow's 10 are too few on a busy machine."""
_INTERRUPTS = (None, KeyboardInterrupt, Terminated)


class Message(NamedTuple):
    """What one worker sends.

    Attributes:
        value: A JSON value.
        arrays: By name; none of them of objects.
    """

    value: Any = None
    arrays: dict[str, np.ndarray] = {}


class Task(NamedTuple):
    """A process among the workers, as `TF_CONFIG` describes it.

    Attributes:
        index: Of the process; 0 is the chief.
        addresses: `host:port` of each worker.
    """

    index: int
    addresses: tuple[str, ...]


def task_of(text: str | None) -> Task | None:
    """Return the task that `TF_CONFIG` describes; None without it, or if it names a single process.

    Raises:
        InvalidInputError: If it cannot be read, or names processes other than workers and a chief.
    """
    if not text:
        return None
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        if others := cluster.keys() - {"chief", "worker"}:
            raise ValueError(f"its cluster has {', '.join(sorted(others))}, and all processes must be workers")
        if task["type"] not in cluster:
            raise ValueError(f"its task has type {task['type']!r}, and its cluster has {', '.join(cluster)}")
        if not 0 <= task["index"] < len(cluster[task["type"]]):
            raise ValueError(f"its task has index {task['index']} of {len(cluster[task['type']])}")
        addresses = (*cluster.get("chief", ()), *cluster.get("worker", ()))
        if not all(isinstance(address, str) and address.rpartition(":")[2].isdigit() for address in addresses):
            raise ValueError("its addresses must be strings host:port")
        before = len(cluster.get("chief", ())) if task["type"] == "worker" else 0
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InvalidInputError(f"TF_CONFIG: {what}; give it as {_EXAMPLE}") from None
    return Task(before + task["index"], addresses) if len(addresses) > 1 else None


def port_of(address: str) -> int:
    """The port of an address `host:port`."""
    return int(address.rpartition(":")[2])


def is_loopback(address: str) -> bool:
    """Whether an address `host:port` is of this machine's loopback interface."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Workers:
    """This process among the workers.

    Args:
        strategy: TensorFlow's. None: there is one replica in all.
        task: Of this process. None: there is one process.

    Attributes:
        index: Of this process; 0 is the chief.
        count: The number of processes.
        replicas: The number of replicas of all workers.
        strategy: TensorFlow's, or None.
    """

    def __init__(self, strategy=None, task: Task | None = None):
        self.strategy = strategy
        self.index, self.count = (task.index, len(task.addresses)) if task else (0, 1)
        self.replicas = strategy.num_replicas_in_sync if strategy else 1

    @property
    def chief(self) -> bool:
        return self.index == 0

    @property
    def local_replicas(self) -> int:
        """The number of replicas of this worker."""
        return self.replicas // self.count

    def scope(self) -> contextlib.AbstractContextManager:
        """Return a context in which new variables have a copy on each replica."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()

    def broadcast(self, message: Message) -> Message:
        """Return the chief's message on all workers; the messages of the others are ignored."""
        if self.count == 1:
            return message
        content = _packed(message) if self.chief else b""
        length = int(self._total(np.array([len(content)], np.int32))[0])
        words = np.zeros(-(-length // 4), np.int32)
        if self.chief:
            words[:] = np.frombuffer(content + bytes(-length % 4), np.int32)
        return _unpacked(self._total(words).tobytes()[:length])

    def all_gather(self, message: Message) -> list[Message]:
        """Return the messages of all workers, in order, on all of them."""
        if self.count == 1:
            return [message]
        content = _packed(message)
        lengths = np.zeros(self.count, np.int32)
        lengths[self.index] = len(content)
        lengths = self._total(lengths)
        words = np.zeros((self.count, -(-lengths.max() // 4)), np.int32)
        padded = content + bytes(4 * words.shape[1] - len(content))
        words[self.index] = np.frombuffer(padded, np.int32)
        rows = self._total(words.ravel()).reshape(words.shape)
        return [_unpacked(row.tobytes()[:length]) for row, length in zip(rows, lengths, strict=True)]

    def assert_same_inputs(self, inputs: dict[str, Any]) -> None:
        """Check that all workers have the same inputs, which are JSON values.

        Raises:
            InvalidInputError: On every worker, naming what differs.
        """
        gathered = [message.value for message in self.all_gather(Message(json.loads(json.dumps(inputs))))]
        for index, other in enumerate(gathered):
            if different := [key for key in gathered[0] if other.get(key) != gathered[0][key]]:
                raise InvalidInputError(
                    f"worker {index} has other {', '.join(different)} than worker 0; give all workers the same "
                    "command, data and versions"
                )

    def any_interrupted(
        self, interrupt: Callable[[], type[BaseException] | None]
    ) -> Callable[[], type[BaseException] | None]:
        """Return a function that gives the same answer on all workers.

        Args:
            interrupt: Returns the exception that this worker is asked to raise, or None.

        Returns:
            A function that returns the exception that any of the workers is asked to raise, or None.
        """
        if self.count == 1:
            return interrupt

        def any_interrupt() -> type[BaseException] | None:
            codes = np.zeros(self.count, np.int32)
            codes[self.index] = _INTERRUPTS.index(interrupt())
            return _INTERRUPTS[self._total(codes).max()]

        return any_interrupt

    @contextlib.contextmanager
    def collective_errors(self) -> Iterator[None]:
        """A context for operations that all workers execute together.

        Raises:
            WorkerLost: If an operation fails because a worker is lost.
        """
        import tensorflow as tf

        try:
            yield
        except tf.errors.OpError as error:
            gone = isinstance(
                error, (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)
            )
            if self.count > 1 and (gone or "Collective ops is aborted" in str(error)):
                raise WorkerLost from error
            raise

    def _total(self, numbers: np.ndarray) -> np.ndarray:
        """The sum of the workers' int32 vectors, all of one length."""
        with self.collective_errors():
            return self._sum(numbers).numpy()

    @functools.cached_property
    def _sum(self) -> Callable:
        import tensorflow as tf

        def once_each(numbers):
            context = tf.distribute.get_replica_context()
            first = context.replica_id_in_sync_group % self.local_replicas == 0
            # `where` also gives the numbers a device, which the sum must know.
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(first, numbers, 0))

        def total(numbers):
            return self.strategy.experimental_local_results(self.strategy.run(once_each, (numbers,)))[0]

        return tf.function(total, input_signature=[tf.TensorSpec([None], tf.int32)], autograph=False)


ALONE = Workers()
"""One process with one replica."""


def start_workers(
    replicas: int | None = None, say: Callable[[str], None] = lambda line: None, heartbeat: int = HEARTBEAT
) -> Workers:
    """Join the workers that `TF_CONFIG` names. TensorFlow must have been started, and have computed nothing yet.

    Args:
        replicas: The number of devices of this process: its first GPUs, or logical CPUs if there is no GPU. None: one
            without `TF_CONFIG`; with it the GPUs of this process, which workers on one host divide among themselves.
        say: Called with a line of text before the process waits for the others.
        heartbeat: Seconds without a heartbeat after which a worker counts as lost.

    Returns:
        This process among the workers.

    Raises:
        InvalidInputError: If `TF_CONFIG` cannot be read, there are too few GPUs, or the workers cannot be reached.
    """
    import tensorflow as tf

    task = task_of(os.environ.get("TF_CONFIG"))
    gpus = tf.config.list_physical_devices("GPU")
    if task:
        if replicas:
            raise InvalidInputError(
                f"--replicas {replicas} is for one process, and TF_CONFIG names workers; leave it out"
            )
        if gpus and len({address.rpartition(":")[0] for address in task.addresses}) == 1:
            each = len(gpus) // len(task.addresses)
            if not each:
                raise InvalidInputError(
                    f"{len(task.addresses)} workers share {len(gpus)} GPUs of one machine; give fewer workers"
                )
            tf.config.set_visible_devices(gpus[each * task.index :][:each], "GPU")
        say(f"worker {task.index} of {len(task.addresses)} waits for the others at {', '.join(task.addresses)}")
        if others := [address for address in task.addresses if not is_loopback(address)]:
            say(
                f"warning: the workers listen for {', '.join(others)} on all interfaces, and TensorFlow executes what "
                "anyone sends them; use them in a private network only"
            )
        _set_heartbeat(heartbeat)
        try:
            with contextlib.nullcontext() if others else private_network.guarded(port_of(task.addresses[task.index])):
                return Workers(tf.distribute.MultiWorkerMirroredStrategy(), task)
        except (tf.errors.OpError, RuntimeError) as error:
            raise InvalidInputError(
                f"the workers of TF_CONFIG cannot be reached: {str(error).splitlines()[0]}"
            ) from None
    if (replicas or 1) == 1:
        return ALONE
    if gpus and len(gpus) < replicas:
        raise InvalidInputError(
            f"--replicas {replicas} needs as many GPUs, and there are {len(gpus)}; give a smaller number"
        )
    kind = "GPU" if gpus else "CPU"
    if not gpus:
        (cpu,) = tf.config.list_physical_devices("CPU")
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
        except RuntimeError:
            raise InvalidInputError(
                f"{replicas} replicas on a CPU must be requested before TensorFlow computes anything"
            ) from None
    return Workers(tf.distribute.MirroredStrategy([f"{kind}:{index}" for index in range(replicas)]))


def _set_heartbeat(seconds: int) -> None:
    """Configure the service that watches workers as the strategy does, with another time; there is no public API."""
    import tensorflow as tf
    from tensorflow.python.distribute import collective_all_reduce_strategy as strategy

    cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver().cluster_spec()
    job = strategy.coordination_config_pb2.CoordinatedJob
    strategy.context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=strategy.multi_worker_util.coordination_leader(cluster),
        heartbeat_timeout_in_ms=1000 * seconds,
        coordinated_jobs=[job(name=name, num_tasks=cluster.num_tasks(name)) for name in cluster.jobs],
    )


def _packed(message: Message) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **message.arrays, **{"JSON": np.frombuffer(json.dumps(message.value).encode(), np.uint8)})
    return stream.getvalue()


def _unpacked(content: bytes) -> Message:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = dict(archive)
    return Message(json.loads(arrays.pop("JSON").tobytes()), arrays)
