"""Weights on disk: written completely or not at all."""

import os
import warnings
from pathlib import Path
from typing import BinaryIO

import keras

from keras_rcl.errors import InvalidInputError, did_you_mean
from keras_rcl.storage.atomic import atomic_path

_HEADER, _PREAMBLE = 4096, 2**18
"""More bytes than HDF5 adds: per weight, and in total."""


class Checkpoints:
    """The named checkpoints of one run: one per phase, `last`, and `best` by robust accuracy on held-out images.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def path(self, name: str) -> Path:
        """Return the file of a checkpoint."""
        return self.folder / f"{name}.weights.h5"

    def save(self, network: keras.Model, name: str) -> None:
        """Write the network's weights and statistics; an earlier file of this name is replaced once they are complete.

        Raises:
            InvalidInputError: If the file cannot be written.
        """
        with atomic_path(self.path(name)) as temporary:
            # HDF5 does not survive a failed write, so the room is reserved before.
            with temporary.open("wb") as file:
                sizes = [weight.nbytes + _HEADER for weight in network.get_weights()]
                _reserve(file, sum(sizes) + _PREAMBLE)
            network.save_weights(temporary)

    def names(self) -> list[str]:
        """Return the names of the checkpoints that exist, sorted."""
        return sorted(path.name.removesuffix(".weights.h5") for path in self.folder.glob("*.weights.h5"))

    def load(self, network: keras.Model, name: str) -> None:
        """Read weights into a network of the same architecture.

        Raises:
            InvalidInputError: If there is no such checkpoint, or it does not fit or cannot be read.
        """
        if name not in self.names():
            held = ", ".join(self.names()) or "none"
            raise InvalidInputError(
                f"no checkpoint {name!r} in {self.folder}{did_you_mean(name, self.names())}; it holds {held}"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # Keras only warns about weights that it does not load
                network.load_weights(self.path(name))
        except Exception as error:  # HDF5 and Keras raise many kinds for damaged or edited files
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InvalidInputError(
                f"checkpoint {self.path(name)} cannot be read: {reason}; hint: choose another checkpoint, or repeat "
                "the run"
            ) from None


def _reserve(file: BinaryIO, size: int) -> None:
    """Reserve room on the disk; raises OSError if there is too little. macOS and Windows lack `posix_fallocate`."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, 2**20):
        file.write(bytes(min(2**20, size - start)))
    file.flush()
