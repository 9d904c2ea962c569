"""The workflow of `attack`: a model and a data set become a record, a plot and pictures."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_rcl.evaluation.record import make_record, versions
from keras_rcl.evaluation.robustness import SAMPLES, Evaluator, Survival
from keras_rcl.evaluation.warnings import attack_warnings, model_warnings
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.report.figures import accuracy_epsilon_plot, attack_pictures, corruption_pictures
from keras_rcl.runtime.distributed import ALONE, Workers
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.atomic import atomic_folder, write_json
from keras_rcl.storage.output_folder import output_and_journal, report_resumed
from keras_rcl.vocabulary.attacks import Attack, Corruptions, as_attacks, describe
from keras_rcl.vocabulary.record import Record
from keras_rcl.vocabulary.threat import PROTOCOLS, Norm
from keras_rcl.workflows.inputs import data_for, geometry_of, model_values, outputs_of, pixels, split_of, support_of


# One keyword per option of the command, so that a call in Python reads like the command line; they alone
# take a quarter of the lines.
def attack(
    path: str | Path,
    attacks: Attack | str | Sequence[Attack | str],
    *,
    dataset: dict[str, Any] | None = None,
    part: str = "test",
    output_dir: str | Path | None = None,
    batch_size: int = 250,
    seed: int = 0,
    save_images: bool = False,
    geometry: bool = False,
    overwrite: bool = False,
    trust: bool = False,
    attack_dtype: str = "float32",
    progress: Progress | None = None,
    workers: Workers = ALONE,
    **foreign,
) -> tuple[Record, Path | None]:
    """Attack a SavedModel or `.keras` on a data set.

    Every batch is written to `.<name>.partial` beside the output folder as soon as it is finished. If the call is
    interrupted at any instant, the same call resumes it and returns the same record.

    Args:
        path: A folder that `export` made, or any SavedModel or `.keras` file from images to logits or probabilities.
        attacks: One or several attacks, or their texts, such as `pgd-20`. Each is run on every image that the model
            classifies correctly.
        dataset: Fields of `Dataset`. Without a `name` they change the data set that the model was trained with, which
            its `model.json` names.
        part: The split: `test`, `validation` or `train`.
        output_dir: The folder for the record and the pictures; `attacks/<model>`, numbered, if not given.
        batch_size: Images attacked at once.
        seed: The seed of the attacks.
        save_images: Also write `adversarial.npz`.
        geometry: Also measure the geometry of the embeddings, clean and attacked, of at most 256 images.
        overwrite: Replace the output folder, and an interrupted evaluation with other settings.
        trust: Skip the search for what could do harm in the model and in those that attacks read.
        attack_dtype: The dtype that attacks on the model's own logits are computed in, `float32` or `bfloat16`.
            Outcomes are always of the model itself.
        progress: Where progress is shown.
        workers: All of them call this with the same arguments; they share the batches, and the chief writes.
        **foreign: `input_range`, `output` and `endpoint` of a model that was not exported here, see `load_classifier`.

    Returns:
        The record, and the folder that holds it; None instead of the folder on workers other than the chief.

    Raises:
        InvalidInputError: If the model or the data cannot be read, or do not fit each other or the attacks.

    Example:
        >>> from pathlib import Path
        >>> import keras_rcl
        >>> attacks = [keras_rcl.PGD(epsilon="8/255", num_steps=40)]  # doctest: +SKIP
        >>> record, folder = keras_rcl.attack(Path("saved_models/digits-at"), attacks)  # doctest: +SKIP
    """
    attacks = as_attacks(attacks)
    classifier = load_classifier(path, trust=trust, **foreign)
    data = data_for(classifier, dataset or {}, part)
    chosen = split_of(data, part)
    images, progress = pixels(chosen.images), progress or Silent()
    classifier, input_range = classifier.as_trained(images, chosen.labels)
    outputs, hashes = outputs_of(attacks, classifier.outputs, data, trust)
    evaluator = Evaluator(
        classifier.logits,
        attacks,
        batch_size=min(batch_size, len(images)),
        seed=seed,
        outputs=outputs,
        support=support_of(attacks, outputs, data),
        gradient_fn=classifier.gradient_fn(images[:32], attack_dtype),
    )
    evaluation = evaluator.fingerprint(images, chosen.labels, keep_images=save_images)
    fingerprint = dataclasses.replace(
        evaluation,
        model={"hash": classifier.model_hash, **foreign, "input_range": input_range.name},
        sources=hashes,
        versions=versions(),
        settings={**evaluation.settings, "attack_dtype": attack_dtype},
    )
    workers.assert_same_inputs(fingerprint.to_json())
    written, journal = None, None
    if workers.chief:
        default = Path("attacks") / classifier.path.stem
        written, journal = output_and_journal(output_dir, default, fingerprint, overwrite)
        report_resumed(journal, progress)
    with contextlib.nullcontext() if journal is None else journal:
        survival = evaluator(
            images, chosen.labels, keep_images=save_images, progress=progress, journal=journal, workers=workers
        )
    record = make_record(
        survival,
        model=model_values(classifier, input_range),
        data={"name": data.name, "part": part, "indices": chosen.indices},
        seed=seed,
        sources=hashes,
        attack_dtype=attack_dtype,
    )
    record["warnings"] = [*model_warnings(classifier.logits, images), *attack_warnings(survival)]
    if journal is None or written is None:  # not the chief
        return record, None
    if geometry:
        record["geometry"] = geometry_of(classifier.outputs, chosen, attacks, seed)
    class_names = classifier.class_names or data.class_names
    with atomic_folder(written, overwrite=overwrite) as folder:
        write_json(folder / "record.json", record)
        draw(evaluator, survival, images, class_names, record["model"]["name"], folder)
        if save_images:
            _save_images(survival, chosen.indices, folder / "adversarial.npz")
    journal.discard()
    return record, written


def _save_images(survival: Survival, indices: np.ndarray, path: Path) -> None:
    """Write the adversarial images, with what the survival table says of them."""
    assert survival.adversarial is not None
    np.savez_compressed(
        path,
        images=survival.adversarial,
        predictions=survival.predictions,
        labels=survival.labels,
        indices=indices,
        attacks=np.array([describe(spec) for spec in survival.attacks]),
    )


def curves_by_norm(survival: Survival) -> dict[Norm, dict[str, list[tuple[float, float]]]]:
    """Norm -> attack -> (epsilon, robust accuracy), for `accuracy_epsilon_figure`."""
    curves: dict[Norm, dict[str, list[tuple[float, float]]]] = {}
    for row in survival.rows():
        norm, epsilon, protocol = row["norm"], row["epsilon"], row["protocol"]
        if norm is None or epsilon is None:
            continue
        curve = row["attack"].split(f" {norm}")[0] + (f" {protocol}" if protocol != "pixel" else "")
        # Where a protocol's box is not that of pixels, epsilon 0 changes images too.
        start = [] if PROTOCOLS[protocol].box else [(0.0, survival.clean_accuracy)]
        curves.setdefault(norm, {}).setdefault(curve, start).append((epsilon, row["robust_accuracy"]))
    return curves


def draw(
    evaluator: Evaluator,
    survival: Survival,
    images: np.ndarray,
    class_names: Sequence[str],
    title: str,
    folder: Path,
) -> None:
    """Draw one accuracy-epsilon plot per norm, pictures of the strongest attack, and an image under each corruption."""
    _draw_corruptions(evaluator, survival, images, title, folder)
    for norm, curves in curves_by_norm(survival).items():
        accuracy_epsilon_plot(curves, folder / f"accuracy_epsilon_{norm}.png", norm=norm, title=title)
    numbers = [number for number, attack in enumerate(survival.attacks) if not isinstance(attack, Corruptions)]
    if not numbers:
        return
    strongest = numbers[int(np.argmin(survival.survived[numbers].mean(axis=1)))]
    broken = np.flatnonzero(survival.clean & ~survival.survived[strongest])
    robust = np.flatnonzero(survival.survived[strongest])
    chosen = np.concatenate([broken, robust])[:SAMPLES]
    if len(chosen):
        attack_pictures(
            images[chosen],
            evaluator.adversarial_images(survival, strongest, chosen, images),
            survival.labels[chosen],
            survival.clean_predictions[chosen],
            survival.predictions[strongest][chosen],
            class_names,
            folder / "pictures.png",
            epsilon_text=describe(survival.attacks[strongest]),
        )


def _draw_corruptions(evaluator: Evaluator, survival: Survival, images: np.ndarray, title: str, folder: Path) -> None:
    """Draw the first image that is classified correctly under each corruption of the evaluation, if it has any."""
    first = np.array([int(np.argmax(survival.clean))])
    tiles = {
        (str(attack.kind), attack.severity or 0): evaluator.adversarial_images(survival, number, first, images)[0]
        for number, attack in enumerate(survival.attacks)
        if isinstance(attack, Corruptions)
    }
    if tiles:
        corruption_pictures(images[first[0]], tiles, folder / "corruptions.png", title=title)
