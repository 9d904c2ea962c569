"""The composition of a verification: a model on disk and data become a record of what is proved."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.certification import ATTACKS, Certification, Certifier
from keras_rcl.evaluation.record import make_verification, versions
from keras_rcl.folding import fold
from keras_rcl.folding.numpy_forward import evaluate
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.model_io.loading import LoadedModel
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.atomic import atomic_folder, write_json
from keras_rcl.storage.output_folder import output_and_journal
from keras_rcl.vocabulary.attacks import describe
from keras_rcl.workflows.inputs import data_for, pixels, split_of

_TOLERANCE = 1e-3
"""Of logits in float32 against the folded layers in float64."""


def verify_model(
    path: Path,
    epsilons: Sequence[float],
    *,
    method: str = "branch-and-bound",
    timeout: float = 180.0,
    no_attack: bool = False,
    count: int | None = None,
    float64: bool = False,
    dataset: dict[str, Any] | None = None,
    part: str = "test",
    output_dir: Path | None = None,
    batch_size: int = 250,
    seed: int = 0,
    overwrite: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Path]:
    """Verify a model's images in L-inf balls; broken off at any instant, the same call goes on from there.

    Args:
        path: a folder that `export` made, or a `.keras` file.
        epsilons: radii in pixels.
        method: see `Certifier`.
        timeout: likewise.
        no_attack: attack nothing first.
        count: see `Certifier`.
        float64: see `Certifier`.
        dataset: which images, as for `attack`.
        part: likewise.
        output_dir: the folder for `record.json` and `counterexamples.npz`; `verifications/<model>`, numbered, where not
            given.
        batch_size: images attacked at once.
        seed: of the attacks.
        overwrite: replace the output folder, and an interrupted verification of something else.
        trust: load the model without looking for what could do harm.
        progress: where progress is shown.

    Returns:
        The record, and the folder that holds it.

    Raises:
        InvalidInputError: if model or data cannot be read or do not fit one another, or a layer has no bounds.

    Example:
        >>> from pathlib import Path
        >>> import keras_rcl
        >>> record, folder = keras_rcl.verify_model(Path("saved_models/digits-certified"), [2 / 255])  # doctest: +SKIP
    """
    model = LoadedModel(path, trust=trust)
    network, classifier = model.layers, load_classifier(model)
    if classifier.gives_probabilities:
        raise InvalidInputError(
            f"{path} gives probabilities, and margins are of logits; save it without its last softmax"
        )
    data = data_for(classifier, dataset or {})
    chosen = split_of(data, part)
    images, progress = pixels(chosen.images), progress or Silent()
    attacks = () if no_attack else tuple(attack for attack in ATTACKS if attack.min_classes <= data.num_classes)
    certifier = Certifier(
        network,
        epsilons,
        method=method,
        timeout=timeout,
        attacks=attacks,
        batch_size=min(batch_size, len(images)),
        count=count,
        seed=seed,
        float64=float64,
    )
    fingerprint = dataclasses.replace(
        certifier.fingerprint(images, chosen.labels), model={"hash": classifier.model_hash}, versions=versions()
    )
    served, folded = classifier.logits(images[:10]), evaluate(fold(network, dtype="float64"), images[:10])
    if not np.allclose(folded, served, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise InvalidInputError(f"the layers in {path} give other logits than it serves; export it again")
    output_dir, journal = output_and_journal(output_dir, Path("verifications") / path.stem, fingerprint, overwrite)
    with journal:
        if len(journal):
            progress.say(f"resuming {journal.path}: {len(journal)} pieces done")
        found = certifier(images, chosen.labels, progress=progress, journal=journal)
    record = make_verification(
        found,
        model=classifier.identity(),
        data={"name": data.name, "part": part, "indices": chosen.indices},
        seed=seed,
        attacks=[describe(attack) for attack in attacks],
        method=method,
        timeout=timeout,
        count=count,
        dtype="float64" if float64 else "float32",
    )
    with atomic_folder(output_dir, overwrite=overwrite) as folder:
        write_json(folder / "record.json", record)
        if found.counterexamples:
            _keep(found, images, chosen.indices, folder / "counterexamples.npz")
    journal.discard()
    return record, output_dir


def _keep(found: Certification, images: np.ndarray, indices: np.ndarray, path: Path) -> None:
    """One entry a counter-example: of which image and at which epsilon."""
    numbers, which = (np.array(column) for column in zip(*found.counterexamples, strict=True))
    np.savez_compressed(
        path,
        images=images[which],
        adversarial=np.stack(list(found.counterexamples.values())),
        labels=found.labels[which],
        indices=indices[which],
        epsilons=np.array(found.epsilons)[numbers],
    )
