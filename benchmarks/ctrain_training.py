"""One certified training by CTRAIN, in an environment of its own: what `benchmarks.certified_training` starts.

    python benchmarks/ctrain_training.py TASK.json IMAGES.npz RESULT.npz

It imports PyTorch and CTRAIN alone. The result has the weights in the order of the layers, and the wall and processor
time of each epoch.
"""

import json
import sys
import time

import numpy as np
import torch
from CTRAIN import model_wrappers


class Batches:
    """Normalized images in memory, in an order of their own in each epoch: what CTRAIN reads of a loader.

    Args:
        images: uint8 [N, H, W, 1].
        labels: [N].
        task: Its `mean`, `std`, `batch_size` and `seed`.
    """

    normalised = True

    def __init__(self, images: np.ndarray, labels: np.ndarray, task: dict):
        self.mean, self.std = torch.tensor([task["mean"]]), torch.tensor([task["std"]])
        self.min, self.max = (((end - self.mean) / self.std).reshape(1, 1, 1) for end in (0.0, 1.0))
        pixels = torch.tensor(images.transpose(0, 3, 1, 2)).float() / 255
        self.images, self.labels = (pixels - task["mean"]) / task["std"], torch.tensor(labels).long()
        self.batch_size, self.order = task["batch_size"], torch.Generator().manual_seed(task["seed"])
        self.times = []

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def __iter__(self):
        self.mark()
        order = torch.randperm(len(self.labels), generator=self.order)
        for number in range(len(self)):
            rows = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield self.images[rows], self.labels[rows]

    def mark(self) -> None:
        """Note the wall and the processor time."""
        self.times.append((time.perf_counter(), time.process_time()))


def convex_small() -> torch.nn.Sequential:
    """The small network of Wong and Kolter 2018."""
    layers = torch.nn
    return layers.Sequential(
        layers.Conv2d(1, 16, 4, 2, 1),
        layers.ReLU(),
        layers.Conv2d(16, 32, 4, 2, 1),
        layers.ReLU(),
        layers.Flatten(),
        layers.Linear(32 * 7 * 7, 100),
        layers.ReLU(),
        layers.Linear(100, 10),
    )


def wrapped(network: torch.nn.Module, task: dict):
    """CTRAIN's wrapper of the method."""
    epochs = task["epochs"]
    schedule = dict(milestones=[round(epochs * share / 7) for share in (5, 6)], gamma=0.2)
    shared = dict(
        model=network,
        input_shape=(1, 28, 28),
        eps=task["epsilon"],
        num_epochs=epochs,
        lr=task["learning_rate"],
        warm_up_epochs=0,
        ramp_up_epochs=task["ramp_epochs"],
        lr_decay_kwargs=schedule,
        gradient_clip=task["clip_norm"],
        l1_reg_weight=None,
        device=torch.device("cpu"),
    )
    attack = dict(pgd_steps=task["num_steps"], pgd_alpha=task["step_share"], pgd_decay_milestones=())
    if task["method"] == "IBP":
        return model_wrappers.ShiIBPModelWrapper(**shared)
    if task["method"] == "CROWN-IBP":
        return model_wrappers.CrownIBPModelWrapper(**shared, end_beta=1)
    if task["method"] == "MTL-IBP":
        return model_wrappers.MTLIBPModelWrapper(**shared, **attack, mtl_ibp_alpha=task["alpha"])
    return model_wrappers.SABRModelWrapper(**shared, **attack, sabr_subselection_ratio=task["box_share"])


def main() -> None:
    task_file, images_file, result = sys.argv[1:]
    with open(task_file) as file:
        task = json.load(file)
    torch.set_num_threads(1)
    torch.manual_seed(task["seed"])
    with np.load(images_file) as data:
        batches = Batches(data["images"], data["labels"], task)
    network = convex_small()
    wrapped(network, task).train_model(batches)
    batches.mark()
    weights = {f"weight_{number}": value.detach().numpy() for number, value in enumerate(network.parameters())}
    np.savez(result, times=np.diff(batches.times, axis=0), **weights)


if __name__ == "__main__":
    main()
