"""The workflow of `certify`: certificates of the smoothed version of a model, by Gaussian noise on its images."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from keras_rcl.evaluation.record import make_smoothing, versions
from keras_rcl.evaluation.smoothing import Smoothed, Smoother, Smoothing
from keras_rcl.evaluation.warnings import randomness
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.report.figures import certified_accuracy_figure, certified_accuracy_plot
from keras_rcl.report.tables import smoothing_table
from keras_rcl.runtime.distributed import ALONE, Workers
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.atomic import atomic_folder, write_json
from keras_rcl.storage.output_folder import output_and_journal, report_resumed
from keras_rcl.workflows.inputs import data_for, model_values, pixels, split_of
from keras_rcl.workflows.own_model import Model, read_model_and_data


@dataclasses.dataclass(frozen=True)
class SmoothingReport:
    """The certified accuracy of a smoothed model; printed, it is a table.

    Attributes:
        smoothed: The certificate of each image.
        record: What the command `certify` writes to `record.json`.
        notes: What was assumed of model and images, one line each.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import keras_rcl
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> model.layers[-1].set_weights([np.zeros((16, 2)), np.array([1.0, 0.0])])  # always class 0
        >>> images, labels = np.full((2, 4, 4, 1), 128, np.uint8), np.array([0, 1])
        >>> report = keras_rcl.certify(model, images, labels, sigma=0.5, n=1000)
        >>> report.certified_accuracy(1.0), report.smoothed.predictions.tolist()
        (0.5, [0, 0])
    """

    smoothed: Smoothed
    record: dict[str, Any]
    notes: tuple[str, ...]

    def certified_accuracy(self, radius: float = 0.0) -> float:
        """Return the share of images that are classified correctly with a certified L2 radius of at least this.

        Args:
            radius: In pixel units, [0, 1]. At 0 it is the accuracy of the smoothed classifier.
        """
        return self.smoothed.certified_accuracy(radius)

    def __str__(self) -> str:
        warnings = [f"warning: {line}" for line in self.record["warnings"]]
        return "\n".join([smoothing_table(self.record), *(f"note: {note}" for note in self.notes), *warnings])

    def plot(self) -> Any:
        """Return the figure of certified accuracy against the L2 radius."""
        return certified_accuracy_figure(self.smoothed.correct_radii, title=self.record["model"]["name"])


# Each of the keyword arguments is an independent choice with a default.
def certify(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    sigma: float = 0.25,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    input_range: str | None = None,
    output: str | None = None,
    batch_size: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> SmoothingReport:
    """Certify L2 balls of the smoothed version of one's own classifier.

    The smoothed classifier gives the class that the model gives most often if Gaussian noise is added to the image. It
    is another classifier than the model. Around each image its class is constant within the certified radius, except
    with probability alpha. Train the model with such noise.

    Args:
        model: As for `keras_rcl.evaluate`; it need not be differentiable.
        x: As for `keras_rcl.evaluate`.
        y: As for `keras_rcl.evaluate`.
        sigma: Standard deviation of the noise in units of [0, 1], whatever range the images have.
        n0: Noisy copies of each image that choose its class.
        n: Noisy copies that bound the probability of that class; the largest radius is about 3.8 sigma for 100,000.
        alpha: The certificate of an image is wrong with at most this probability.
        input_range: As for `keras_rcl.evaluate`.
        output: As for `keras_rcl.evaluate`.
        batch_size: Noisy copies classified at once; it changes no result.
        seed: The seed of the noise.
        progress: Where progress is shown.

    Returns:
        The report; `certified_accuracy(radius)` counts an abstention as wrong.

    Raises:
        InvalidInputError: If sigma, n0, n or alpha cannot be used, or model, images or labels cannot.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import keras_rcl
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> model.layers[-1].set_weights([np.zeros((16, 2)), np.array([1.0, 0.0])])  # always class 0
        >>> images, labels = np.full((2, 4, 4, 1), 128, np.uint8), np.array([0, 1])
        >>> keras_rcl.certify(model, images, labels, sigma=0.25, n=1000).certified_accuracy(0.5)
        0.5

    References:
        Cohen, Rosenfeld and Kolter 2019, "Certified adversarial robustness via randomized smoothing".
    """
    smoothing = Smoothing(sigma, n0, n, alpha)
    read = read_model_and_data(model, x, y, input_range=input_range, output=output)
    smoother = Smoother(read.classifier.logits, smoothing, batch_size=batch_size, seed=seed)
    smoothed = smoother(read.images, read.labels, progress=progress)
    record = make_smoothing(
        smoothed,
        model=model_values(read.classifier, read.input_range),
        data={"name": "arrays", "part": "test", "indices": np.arange(len(read.labels))},
        seed=seed,
    )
    record["warnings"] = [*read.input_range.doubts, *_randomness(read.classifier.logits, read.images)]
    return SmoothingReport(smoothed=smoothed, record=record, notes=read.notes)


# One keyword per option of the command, so that a call in Python reads like the command line.
def certify_model(
    path: str | Path,
    *,
    sigma: float = 0.25,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    dataset: dict[str, Any] | None = None,
    part: str = "test",
    output_dir: str | Path | None = None,
    batch_size: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
    workers: Workers = ALONE,
    **foreign,
) -> tuple[dict[str, Any], Path | None]:
    """Certify the smoothed version of a model on disk. If the call is interrupted, the same call resumes it.

    Args:
        path: A SavedModel or `.keras` file from images to logits or probabilities.
        sigma: As of `certify`, like `n0`, `n` and `alpha`.
        n0: See `sigma`.
        n: See `sigma`.
        alpha: See `sigma`.
        dataset: Fields of `Dataset`, as for `attack`.
        part: The split, as for `attack`.
        output_dir: The folder for `record.json` and the plot; `certificates/<model>`, numbered, if not given.
        batch_size: Noisy copies classified at once; it changes no result.
        seed: The seed of the noise.
        overwrite: Replace the output folder, and an interrupted certification with other settings.
        trust: Skip the search for what could do harm in the model.
        progress: Where progress is shown.
        workers: All of them call this with the same arguments; they share the images, and the chief writes.
        **foreign: `input_range`, `output` and `endpoint` of a model that was not exported here, see `load_classifier`.

    Returns:
        The record, and the folder that holds it; None instead of the folder on workers other than the chief.

    Raises:
        InvalidInputError: If the model or the data cannot be read or do not fit each other, or a number cannot be used.

    Example:
        >>> import keras_rcl
        >>> record, folder = keras_rcl.certify_model("saved_models/digits-at", sigma=0.25)  # doctest: +SKIP
    """
    smoothing = Smoothing(sigma, n0, n, alpha)
    classifier = load_classifier(path, trust=trust, **foreign)
    data = data_for(classifier, dataset or {}, part)
    chosen = split_of(data, part)
    images, progress = pixels(chosen.images), progress or Silent()
    classifier, input_range = classifier.as_trained(images, chosen.labels)
    smoother = Smoother(classifier.logits, smoothing, batch_size=batch_size, seed=seed)
    fingerprint = dataclasses.replace(
        smoother.fingerprint(images, chosen.labels),
        model={"hash": classifier.model_hash, **foreign, "input_range": input_range.name},
        versions=versions(),
    )
    workers.assert_same_inputs(fingerprint.to_json())
    if not workers.chief:
        smoothed, written = smoother(images, chosen.labels, workers=workers), None
    else:
        default = Path("certificates") / classifier.path.stem
        written, journal = output_and_journal(output_dir, default, fingerprint, overwrite)
        report_resumed(journal, progress)
        with journal:
            smoothed = smoother(images, chosen.labels, progress=progress, journal=journal, workers=workers)
    record = make_smoothing(
        smoothed,
        model=model_values(classifier, input_range),
        data={"name": data.name, "part": part, "indices": chosen.indices},
        seed=seed,
    )
    record["warnings"] = _randomness(classifier.logits, images)
    if written is not None:
        with atomic_folder(written, overwrite=overwrite) as folder:
            write_json(folder / "record.json", record)
            title = record["model"]["name"]
            certified_accuracy_plot(smoothed.correct_radii, folder / "certified_accuracy.png", title=title)
        journal.discard()
    return record, written


def _randomness(logits_fn, images: np.ndarray) -> list[str]:
    """What to say of a model that is random itself, which smoothing allows."""
    if (change := randomness(logits_fn, images)) == 0:
        return []
    return [
        f"the model is random: outputs for the same images differ by {change:.1%} of the largest logit; certificates "
        "hold for the class that is most likely under the noise and the randomness of the model together"
    ]
