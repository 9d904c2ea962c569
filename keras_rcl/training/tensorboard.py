"""What a run writes for TensorBoard: scalars, picture grids, texts, hyper-parameters, the embedding projector."""

import contextlib
import errno
import io
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.types_pb2 import DT_FLOAT
from tensorboard.plugins import projector
from tensorboard.plugins.hparams import api as hparams_api
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar import metadata as scalar_metadata

from keras_rcl.data.pictures import to_rgb
from keras_rcl.storage.atomic import atomic_path, refusal

Scalar = bool | int | float | str

_SCALAR = scalar_metadata.create_summary_metadata(display_name=None, description=None)
_LENGTH = struct.Struct("<Q")
"""The length of a record's content, which begins a record of an event file."""
_RECORD_OVERHEAD = 16
"""The bytes of a record besides its content: the length and two checksums."""
RESULTS = "results"
"""The sub-run of the final results."""

TAGS = {"monitor_clean_accuracy": "clean_accuracy", "monitor_adversarial_accuracy": "adversarial_accuracy"}
"""Name of a measure in `metrics.jsonl` -> its tag, where they differ."""

SPRITE_SIDE = 8192
"""The largest side of a sprite, in pixels, that the projector's WebGL takes."""


def flatten(config: Mapping) -> dict[str, Scalar]:
    """Flatten a nested configuration to hyper-parameters: names with dots, lists as JSON.

    What is None is left out: TensorBoard gives each column one type, and a text among numbers makes them texts.

    >>> flatten({"method": {"name": "clafs", "views": [1, 2]}, "limit": None, "seed": 0})
    {'method.name': 'clafs', 'method.views': '[1, 2]', 'seed': 0}
    """
    flat: dict[str, Scalar] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": scalar for inner, scalar in flatten(value).items()}
        elif value is not None:
            flat[name] = value if isinstance(value, Scalar) else json.dumps(value)
    return flat


class TensorBoardWriter:
    """Writes what TensorBoard shows of a run to `folder/tensorboard`. Close it, or use it in a `with`.

    Each phase is a sub-run with its own event file, and so are the final results, in `results`. Curves of the same
    measure have the same tag in every phase of every run, so that TensorBoard draws them in one chart.

    Args:
        folder: The folder of the run.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder) / "tensorboard"
        self._writers: dict[str, tf.summary.SummaryWriter] = {}
        self._checked: dict[Path, int] = {}
        with self._refusing():
            self.folder.mkdir(parents=True, exist_ok=True)

    def scalars(self, phase: str, values: Mapping[str, float], step: int) -> None:
        """Add one value to each curve of a phase; the tag is the name of the measure, see `TAGS`."""
        summary = Summary()
        for name, value in values.items():
            added = summary.value.add(tag=TAGS.get(name, name), metadata=_SCALAR)
            added.tensor.dtype = DT_FLOAT
            added.tensor.tensor_shape.SetInParent()  # that of a number, which has no dimensions
            added.tensor.float_val.append(float(value))
        with self._writing(phase, step):  # as one record: `tf.summary.scalar` takes a millisecond per value
            tf.summary.experimental.write_raw_pb(summary.SerializeToString())

    def images(self, phase: str, name: str, grid: np.ndarray, step: int) -> None:
        """Write a picture of a phase: uint8 RGB [h, w, 3]."""
        encoded, (height, width, _) = io.BytesIO(), grid.shape
        Image.fromarray(grid).save(encoded, "png")
        with self._writing(phase, step):  # `tf.summary.image` takes three times as long
            written = tf.constant([f"{width}", f"{height}", encoded.getvalue()])
            metadata = image_metadata.create_summary_metadata(display_name=None, description=None)
            tf.summary.write(name, written, metadata=metadata)

    def text(self, name: str, markdown: str) -> None:
        """Write a page of the Text tab."""
        with self._writing(RESULTS, 0):
            tf.summary.text(name, markdown)

    def results(self, run: str, hparams: Mapping[str, Scalar], metrics: Mapping[str, float]) -> None:
        """Write the row of the run in the HParams tab: its name, its hyper-parameters and its final metrics.

        TensorBoard takes all curves of the sub-run that holds the hyper-parameters for metrics, so it holds these
        alone. No experiment summary is written: TensorBoard reads only one for a whole log folder, and without it shows
        the hyper-parameters of every variant.

        Args:
            run: The name of the row.
            hparams: The hyper-parameters, as `flatten` returns them.
            metrics: The final metrics, such as `clean_accuracy` and `robust_accuracy`.
        """
        with self._writing(RESULTS, 0):
            hparams_api.hparams(dict(hparams), trial_id=run)
            for name, value in metrics.items():
                tf.summary.scalar(name, float(value))

    def projector(
        self, embeddings: np.ndarray, labels: np.ndarray, class_names: Sequence[str], images: np.ndarray
    ) -> None:
        """Write the Projector tab: points coloured by label and drawn as their images.

        The metadata has the class name, which TensorBoard offers as a colour for at most 50 classes, and the number of
        the class, which it always offers.

        Args:
            embeddings: [N, E].
            labels: Integers [N].
            class_names: The name of each class.
            images: [N, H, W, C] in [0, 1]; rows and columns are left out if their sprite would be too large.
        """
        folder = self.folder / RESULTS
        with self._writing(RESULTS, 0):  # TensorBoard finds the projector of a folder that has an event file
            folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / "embeddings.tsv") as path:
            np.savetxt(path, embeddings, fmt="%.6g", delimiter="\t")
        rows = [f"{' '.join(class_names[label].split())}\t{label}" for label in labels]
        with atomic_path(folder / "metadata.tsv") as path:
            path.write_text("\n".join(["label\tclass", *rows]) + "\n", encoding="utf-8")
        pixels, height, width = _sprite(images)
        with atomic_path(folder / "sprite.png") as path:
            Image.fromarray(pixels).save(path)

        config = projector.ProjectorConfig()
        entry = config.embeddings.add(tensor_name="embeddings", tensor_path="embeddings.tsv")
        entry.tensor_shape.extend(embeddings.shape)
        entry.metadata_path = "metadata.tsv"
        entry.sprite.image_path = "sprite.png"
        entry.sprite.single_image_dim.extend([width, height])
        projector.visualize_embeddings(str(folder), config)

    def flush(self) -> None:
        """Write all buffered numbers.

        Raises:
            InvalidInputError: If they cannot be written.
        """
        with self._refusing():
            for writer in self._writers.values():
                writer.flush()
            self._check_whole()

    def close(self) -> None:
        """Write all buffered numbers, and close the event files.

        Raises:
            InvalidInputError: If they cannot be written.
        """
        with self._refusing():
            for writer in self._writers.values():
                writer.close()
            self._check_whole()

    def _check_whole(self) -> None:
        """Raise OSError if an event file ends within a record: TensorFlow does not report a write that failed there."""
        for path in self.folder.rglob("events.out.tfevents.*"):
            size, end = path.stat().st_size, self._checked.get(path, 0)
            with path.open("rb") as file:
                while end < size:
                    file.seek(end)
                    header = file.read(_LENGTH.size)
                    end += _RECORD_OVERHEAD + (_LENGTH.unpack(header)[0] if len(header) == _LENGTH.size else size)
            if end > size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._checked[path] = end

    @contextlib.contextmanager
    def _writing(self, sub_run: str, step: int):
        """Within this context summaries are written to the event file of a sub-run under a step."""
        with self._refusing():
            if sub_run not in self._writers:
                path = self.folder / sub_run.replace(" ", "-").replace("/", "-")
                self._writers[sub_run] = tf.summary.create_file_writer(str(path), flush_millis=10_000)
            with self._writers[sub_run].as_default(step=step):
                yield

    @contextlib.contextmanager
    def _refusing(self):
        """Within this context a failed write raises an error of one line."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            raise refusal(self.folder, error) from error

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def _sprite(images: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Arrange images [N, H, W, C] row by row in a square: uint8 RGB, with the height and width of one image."""
    side = int(np.ceil(np.sqrt(len(images))))
    stride = -(-side * max(images.shape[1:3]) // SPRITE_SIDE)
    tiles = to_rgb(images[:, ::stride, ::stride])
    count, height, width, _ = tiles.shape
    tiles = np.pad(tiles, ((0, side * side - count), (0, 0), (0, 0), (0, 0)), constant_values=255)
    square = tiles.reshape(side, side, height, width, 3).transpose(0, 2, 1, 3, 4)
    return square.reshape(side * height, side * width, 3), height, width
