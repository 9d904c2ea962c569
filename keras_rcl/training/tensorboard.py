"""What a run writes for TensorBoard: scalars, picture grids, texts, hyper-parameters, the embedding projector."""

import contextlib
import errno
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.plugins import projector
from tensorboard.plugins.hparams import api as hparams_api

from keras_rcl.data.pictures import to_rgb
from keras_rcl.storage.atomic import atomic_path, refusal

Scalar = bool | int | float | str

_LENGTH = struct.Struct("<Q")
"""The length of a record's content, which begins a record of an event file."""
_RECORD_OVERHEAD = 16
"""The bytes of a record besides its content: the length and two checksums."""
SPRITE_SIDE = 8192
"""The largest side of a sprite, in pixels, that the projector's WebGL takes."""


def flatten(config: Mapping) -> dict[str, Scalar]:
    """Flatten a nested configuration to hyper-parameters: names with dots, lists and nulls as JSON.

    >>> flatten({"method": {"name": "clafs", "views": [1, 2]}, "seed": 0})
    {'method.name': 'clafs', 'method.views': '[1, 2]', 'seed': 0}
    """
    flat: dict[str, Scalar] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": scalar for inner, scalar in flatten(value).items()}
        else:
            flat[name] = value if isinstance(value, Scalar) else json.dumps(value)
    return flat


class TensorBoardWriter:
    """Writes the event file and the projector of a run to `folder/tensorboard`. Close it, or use it in a `with`.

    Args:
        folder: The folder of the run.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder) / "tensorboard"
        with self._refusing():
            self._checked: dict[Path, int] = {}
            self._writer = tf.summary.create_file_writer(str(self.folder), flush_millis=10_000)

    def scalars(self, phase: str, values: Mapping[str, float], step: int) -> None:
        """Add one value to each curve `phase/name`."""
        with self._writing(step):
            for name, value in values.items():
                tf.summary.scalar(f"{phase}/{name}", float(value))

    def images(self, phase: str, name: str, grid: np.ndarray, step: int) -> None:
        """Write a picture `phase/name`: uint8 RGB [h, w, 3]."""
        with self._writing(step):
            tf.summary.image(f"{phase}/{name}", grid[None])

    def text(self, name: str, markdown: str) -> None:
        """Write a page of the Text tab."""
        with self._writing(0):
            tf.summary.text(name, markdown)

    def hparams(self, hparams: Mapping[str, Scalar], metrics: Mapping[str, float]) -> None:
        """Write the row of the run in the HParams tab: its hyper-parameters and, as curves `final/name`, final metrics.

        No experiment summary is written: TensorBoard reads only one for a whole log folder, and without it shows the
        hyper-parameters of every variant.
        """
        with self._writing(0):
            hparams_api.hparams(dict(hparams))
        self.scalars("final", metrics, step=0)

    def geometry(self, geometry: Mapping[str, object] | None) -> None:
        """Write the final geometry of embeddings as curves `final/<space>_<measure>` of one point."""
        spaces = {space: measures for space, measures in (geometry or {}).items() if isinstance(measures, Mapping)}
        values = {f"{space}_{name}": value for space, measures in spaces.items() for name, value in measures.items()}
        self.scalars("final", {name: value for name, value in values.items() if value is not None}, step=0)

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
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / "embeddings.tsv") as path:
            np.savetxt(path, embeddings, fmt="%.6g", delimiter="\t")
        rows = [f"{' '.join(class_names[label].split())}\t{label}" for label in labels]
        with atomic_path(self.folder / "metadata.tsv") as path:
            path.write_text("\n".join(["label\tclass", *rows]) + "\n", encoding="utf-8")
        pixels, height, width = _sprite(images)
        with atomic_path(self.folder / "sprite.png") as path:
            Image.fromarray(pixels).save(path)

        config = projector.ProjectorConfig()
        entry = config.embeddings.add(tensor_name="embeddings", tensor_path="embeddings.tsv")
        entry.tensor_shape.extend(embeddings.shape)
        entry.metadata_path = "metadata.tsv"
        entry.sprite.image_path = "sprite.png"
        entry.sprite.single_image_dim.extend([width, height])
        projector.visualize_embeddings(str(self.folder), config)

    def flush(self) -> None:
        """Write all buffered numbers.

        Raises:
            InvalidInputError: If they cannot be written.
        """
        with self._refusing():
            self._writer.flush()
            self._check_whole()

    def close(self) -> None:
        """Write all buffered numbers, and close the event file.

        Raises:
            InvalidInputError: If they cannot be written.
        """
        with self._refusing():
            self._writer.close()
            self._check_whole()

    def _check_whole(self) -> None:
        """Raise OSError if an event file ends within a record: TensorFlow does not report a write that failed there."""
        for path in self.folder.glob("events.out.tfevents.*"):
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
    def _writing(self, step: int):
        """Within this context summaries are written to the event file under a step."""
        with self._refusing(), self._writer.as_default(step=step):
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
