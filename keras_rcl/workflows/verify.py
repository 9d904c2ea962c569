"""The workflow of `verify`: a model and data become a record of what is proved."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_rcl.data.splits import Split
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.certification import ATTACKS, Certification, Certifier, attack_within
from keras_rcl.evaluation.record import make_verification, read_record, versions
from keras_rcl.folding.fold import ROUNDING, fold, least_precise_dtype
from keras_rcl.folding.numpy_forward import evaluate
from keras_rcl.model_io.classifier import Classifier, load_classifier
from keras_rcl.model_io.loading import LoadedModel
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.atomic import atomic_folder, write_json
from keras_rcl.storage.output_folder import output_and_journal
from keras_rcl.vocabulary.attacks import describe
from keras_rcl.vocabulary.record import VerificationRecord
from keras_rcl.vocabulary.threat import Norm
from keras_rcl.workflows.inputs import data_for, pixels, positions_of_record, split_of


# One keyword per option of the command, so that a call in Python reads like the command line; they alone
# take a quarter of the lines.
def verify_model(
    path: str | Path,
    epsilons: Sequence[float],
    *,
    norm: Norm = "linf",
    input_range: str | None = None,
    method: str = "branch-and-bound",
    timeout: float = 180.0,
    no_attack: bool = False,
    count: int | None = None,
    survivors_of: str | Path | None = None,
    float64: bool = False,
    sound: bool = False,
    dataset: dict[str, Any] | None = None,
    part: str = "test",
    output_dir: str | Path | None = None,
    batch_size: int = 250,
    seed: int = 0,
    overwrite: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> tuple[VerificationRecord, Path]:
    """Verify images of a model in the balls around them.

    If the call is interrupted at any instant, the same call resumes it.

    Args:
        path: A folder that `export` made, or a `.keras` file.
        epsilons: Radii in units of pixels in [0, 1].
        norm: Of the balls, `linf`, `l2` or `l1`.
        input_range: The range of the images that the model reads, see `load_classifier`.
        method: The most expensive method that is tried, see `Certifier`.
        timeout: Seconds of branch and bound per image.
        no_attack: Run no attack first.
        count: Bound at most this many images per radius, see `Certifier`.
        survivors_of: The `record.json` of an `attack` on the same model: only images that were classified correctly
            under all its attacks are verified.
        float64: Compute bounds in float64.
        sound: Widen every bound by a proven bound of its rounding error, see `Certifier`.
        dataset: Fields of `Dataset`, as for `attack`.
        part: The split, as for `attack`.
        output_dir: The folder for `record.json` and `counterexamples.npz`; `verifications/<model>`, numbered, if not
            given.
        batch_size: Images attacked at once.
        seed: The seed of the attacks.
        overwrite: Replace the output folder, and an interrupted verification with other settings.
        trust: Skip the search for what could do harm in the model.
        progress: Where progress is shown.

    Returns:
        The record, and the folder that holds it.

    Raises:
        InvalidInputError: If model or data cannot be read or do not fit each other, a layer has no bounds, or a radius
            cannot be one in the norm.

    Example:
        >>> from pathlib import Path
        >>> import keras_rcl
        >>> record, folder = keras_rcl.verify_model(Path("saved_models/digits-certified"), [2 / 255])  # doctest: +SKIP
    """
    model = LoadedModel(path, trust=trust)
    _ = model.layers  # before the SavedModel of an export: verification needs the layers
    classifier = load_classifier(model, input_range=input_range)
    if classifier.gives_probabilities:
        raise InvalidInputError(
            f"{path} gives probabilities, and margins are of logits; save it without its last softmax"
        )
    data = data_for(classifier, dataset or {}, part)
    chosen, selection = split_of(data, part), dict[str, list[str]]()
    if survivors_of is not None:
        chosen, selection["survivors_of"] = _survivors(survivors_of, classifier, data.name, part, chosen)
    images, progress = pixels(chosen.images), progress or Silent()
    classifier, found_range = classifier.as_trained(images, chosen.labels)
    network = classifier.pixel_network(images.shape[1:], linear=True)  # linear: one output becomes two
    settings: dict[str, Any] = {"method": method, "timeout": timeout, "count": count}
    attacks = () if no_attack else tuple(attack for attack in ATTACKS if attack.min_classes <= data.num_classes)
    certifier = Certifier(
        network,
        epsilons,
        norm=norm,
        attacks=attacks,
        batch_size=min(batch_size, len(images)),
        seed=seed,
        float64=float64,
        sound=sound,
        **settings,
    )
    fingerprint = dataclasses.replace(
        certifier.fingerprint(images, chosen.labels),
        model={"hash": classifier.model_hash}
        | ({} if found_range.name == "0..1" else {"input_range": found_range.name}),
        versions=versions(),
    )
    _check_layers(path, network, classifier, images[:10])
    if note := half_precision_note(path, network):
        progress.say(note)
    output_dir, journal = output_and_journal(
        output_dir, Path("verifications") / model.path.stem, fingerprint, overwrite
    )
    with journal:
        if len(journal):
            progress.say(f"resuming {journal.path}: {len(journal)} pieces done")
        found = certifier(images, chosen.labels, progress=progress, journal=journal)
    record = make_verification(
        found,
        model={**classifier.identity(), "input_range": found_range.to_json()},
        data={"name": data.name, "part": part, "indices": chosen.indices},
        seed=seed,
        attacks=[describe(attack_within(attack, norm, epsilon)) for attack in attacks for epsilon in epsilons],
        **settings,
        **selection,
        dtype="float64" if float64 else "float32",
        sound=sound,
    )
    with atomic_folder(output_dir, overwrite=overwrite) as folder:
        write_json(folder / "record.json", record)
        if found.counterexamples:
            _save_counterexamples(found, images, chosen.indices, folder / "counterexamples.npz")
    journal.discard()
    return record, output_dir


def _survivors(
    path: str | Path, classifier: Classifier, data_name: str, part: str, split: Split
) -> tuple[Split, list[str]]:
    """The images of a split that survived all attacks of a record, and the labels of these attacks.

    Raises:
        InvalidInputError: If the record is of another model or of other images, or no image survived.
    """
    stored = read_record(path)
    if stored["model"]["hash"] != classifier.model_hash:
        raise InvalidInputError(
            f"{path} is a record of another model, {stored['model']['name']}; hint: attack {classifier.path} first"
        )
    if stored["data"]["part"] != part:
        raise InvalidInputError(f"{path} is of the {stored['data']['part']} split, not {part}; hint: give --split")
    robust = stored["survival"]["clean"] & stored["survival"]["attacks"].all(axis=0)
    if not robust.any():
        raise InvalidInputError(f"no image survived the attacks of {path}; hint: attack with a smaller epsilon")
    positions = positions_of_record(path, stored, data_name, split.indices)
    return split.at(positions[robust]), [describe(attack) for attack in stored["attacks"]]


def _check_layers(path: str | Path, network: keras.Model, classifier: Classifier, images: np.ndarray) -> None:
    """Raise InvalidInputError if the layers do not give the served logits, up to the rounding of their dtype."""
    served, folded = np.asarray(classifier.logits(images)), evaluate(fold(network, dtype="float64"), images)
    dtype = least_precise_dtype(network)
    largest = 1.0 if dtype == "float32" else max(1.0, np.abs(served).max(initial=0))
    if not np.allclose(folded, served, rtol=ROUNDING[dtype], atol=ROUNDING[dtype] * largest):
        raise InvalidInputError(f"the layers in {path} give other logits than it serves; export it again")


def half_precision_note(path: str | Path, network: keras.Model) -> str:
    """What is said of a network that does not compute in float32; nothing of another one."""
    dtype = least_precise_dtype(network)
    if dtype == "float32":
        return ""
    return (
        f"note: {path} computes in {dtype}, and its weights are verified as if it computed exactly; the rounding of "
        f"{dtype} can change the class of an image with a small margin"
    )


def _save_counterexamples(found: Certification, images: np.ndarray, indices: np.ndarray, path: Path) -> None:
    """Write one entry per counterexample, with its image and its epsilon."""
    numbers, which = (np.array(column) for column in zip(*found.counterexamples, strict=True))
    np.savez_compressed(
        path,
        images=images[which],
        adversarial=np.stack(list(found.counterexamples.values())),
        labels=found.labels[which],
        indices=indices[which],
        epsilons=np.array(found.epsilons)[numbers],
    )
