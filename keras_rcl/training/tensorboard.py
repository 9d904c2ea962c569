"""What a run leaves for TensorBoard: scalars, picture grids, texts, hyper-parameters, the embedding projector."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.plugins import projector
from tensorboard.plugins.hparams import api as hparams_api

from keras_rcl.data.pictures import to_rgb
from keras_rcl.errors import InvalidInputError
from keras_rcl.storage.atomic import atomic_path

Scalar = bool | int | float | str

SPRITE_SIDE = 8192
"""The largest sprite that the projector's WebGL takes, in screen pixels a side."""


def flatten(config: Mapping) -> dict[str, Scalar]:
    """A nested configuration as hyper-parameters: dotted names; lists and nulls as JSON.

    >>> flatten({"method": {"name": "clafs", "views": [1, 2]}, "seed": 0})
    {'method.name': 'clafs', 'method.views': '[1, 2]', 'seed': 0}
    """
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": scalar for inner, scalar in flatten(value).items()}
        else:
            flat[name] = value if isinstance(value, Scalar) else json.dumps(value)
    return flat


class TensorBoardWriter:
    """Writes a run's event file and projector to `folder/tensorboard`; to be closed, or used in a `with`.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder) / "tensorboard"
        self._writer = tf.summary.create_file_writer(str(self.folder), flush_millis=10_000)

    def scalars(self, phase: str, values: Mapping[str, float], step: int) -> None:
        """One value for each curve `phase/name`."""
        with self._writing(step):
            for name, value in values.items():
                tf.summary.scalar(f"{phase}/{name}", float(value))

    def images(self, phase: str, name: str, grid: np.ndarray, step: int) -> None:
        """A picture `phase/name`: uint8 RGB [h, w, 3]."""
        with self._writing(step):
            tf.summary.image(f"{phase}/{name}", grid[None])

    def text(self, name: str, markdown: str) -> None:
        """A page in the Text tab."""
        with self._writing(0):
            tf.summary.text(name, markdown)

    def hparams(self, hparams: Mapping[str, Scalar], metrics: Mapping[str, float]) -> None:
        """The run's row in the HParams tab: its hyper-parameters and, as curves `final/name`, its final metrics.

        No experiment summary is written: TensorBoard takes only one for a whole log folder, and without it shows the
        hyper-parameters of every variant.
        """
        with self._writing(0):
            hparams_api.hparams(dict(hparams))
        self.scalars("final", metrics, step=0)

    def geometry(self, geometry: Mapping[str, object] | None) -> None:
        """A run's final geometry of embeddings, as curves `final/<space>_<measure>` of one point."""
        spaces = {space: found for space, found in (geometry or {}).items() if isinstance(found, Mapping)}
        told = {f"{space}_{name}": value for space, found in spaces.items() for name, value in found.items()}
        self.scalars("final", {name: value for name, value in told.items() if value is not None}, step=0)

    def projector(
        self, embeddings: np.ndarray, labels: np.ndarray, class_names: Sequence[str], images: np.ndarray
    ) -> None:
        """The Projector tab: points coloured by label and drawn as their images.

        The metadata has the class name, which TensorBoard offers as a colour up to 50 classes, and the class number,
        which it offers always.

        Args:
            embeddings: [N, E].
            labels: integers [N].
            class_names: name of each class.
            images: [N, H, W, C] in [0, 1], thinned out where their sprite would be too large to be shown.
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
        """Write what is still held back."""
        with self._refusing():
            self._writer.flush()

    def close(self) -> None:
        """Write what is still held back, and close the event file."""
        with self._refusing():
            self._writer.close()

    @contextlib.contextmanager
    def _writing(self, step: int):
        """Summaries of the body go to the event file, under this step."""
        with self._refusing(), self._writer.as_default(step=step):
            yield

    @contextlib.contextmanager
    def _refusing(self):
        """What TensorFlow says of a write that failed, in one line."""
        try:
            yield
        except tf.errors.OpError as error:
            reason = error.message.splitlines()[0].rpartition("; ")[2].lower()
            raise InvalidInputError(
                f"cannot write to {self.folder}: {reason}; make room there or choose another folder"
            ) from None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def _sprite(images: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Images [N, H, W, C] row by row in a square of squares: uint8 RGB, with the height and width of one of them."""
    side = int(np.ceil(np.sqrt(len(images))))
    stride = -(-side * max(images.shape[1:3]) // SPRITE_SIDE)
    tiles = to_rgb(images[:, ::stride, ::stride])
    count, height, width, _ = tiles.shape
    tiles = np.pad(tiles, ((0, side * side - count), (0, 0), (0, 0), (0, 0)), constant_values=255)
    square = tiles.reshape(side, side, height, width, 3).transpose(0, 2, 1, 3, 4)
    return square.reshape(side * height, side * width, 3), height, width
