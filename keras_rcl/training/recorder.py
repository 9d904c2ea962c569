"""Where the numbers of a run are written: `metrics.jsonl` and TensorBoard."""

import json
import math
from pathlib import Path

import numpy as np

from keras_rcl.training.tensorboard import TensorBoardWriter


class Recorder:
    """Writes `metrics.jsonl`, one line per epoch, and TensorBoard's curves and pictures.

    Args:
        folder: The folder of the run.
        writer: Writes TensorBoard's event file.

    Attributes:
        step: How many epochs were recorded.
    """

    def __init__(self, folder: Path, writer: TensorBoardWriter):
        self.path, self.writer = Path(folder) / "metrics.jsonl", writer
        self.step = 0

    def epoch(self, phase: str, epoch: int, metrics: dict[str, float]) -> None:
        """Append the metrics of one epoch; a number that is not finite is written as null."""
        self.step += 1
        line = {"step": self.step, "phase": phase, "epoch": epoch, **metrics}
        finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in line.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
        self.writer.scalars(phase, metrics, self.step)

    def pictures(self, phase: str, grid: np.ndarray) -> None:
        """Write a grid of clean images, adversarial images and perturbations: uint8 RGB [h, w, 3]."""
        self.writer.images(phase, "clean, adversarial, perturbation", grid, self.step)

    def flush(self) -> None:
        """Hand all buffered numbers to the operating system."""
        self.writer.flush()
