"""The workflow of `audit`: a model, a claim or a record of it, and data become a verdict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.audit import Audit, Evidence, Subject, audit
from keras_rcl.evaluation.checks import CHECKS
from keras_rcl.evaluation.record import command_line, read_record, versions
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.report.audit_page import audit_page
from keras_rcl.report.figures import attack_pictures, loss_surface_plot
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.atomic import atomic_folder, write_json
from keras_rcl.storage.fingerprint import Fingerprint, hash_arrays
from keras_rcl.storage.output_folder import output_and_journal, report_resumed
from keras_rcl.storage.stored import read_arrays
from keras_rcl.vocabulary.attacks import describe
from keras_rcl.vocabulary.claim import AuditBudget, Claim, as_claim
from keras_rcl.vocabulary.record import index_ranges
from keras_rcl.vocabulary.threat import Norm, check_ball, format_epsilon
from keras_rcl.workflows.inputs import data_for, logits_through, pixels, positions_of_record, split_of

FORMAT = 1
PICTURED_IMAGES, KEPT_IMAGES = 16, 500


# One keyword per option of the command, so that a call in Python reads like the command line; they alone
# take a quarter of the lines.
def audit_model(
    path: str | Path,
    *,
    claim: Claim | None = None,
    record: str | Path | None = None,
    norm: Norm | None = None,
    epsilon: float | None = None,
    dataset: dict[str, Any] | None = None,
    part: str = "test",
    transfer_from: Sequence[str | Path] = (),
    budget: AuditBudget = AuditBudget(),  # noqa: B008  a frozen value
    output_dir: str | Path | None = None,
    batch_size: int = 250,
    seed: int = 0,
    overwrite: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
    **foreign,
) -> tuple[dict[str, Any], Path]:
    """Audit a claim about a SavedModel or `.keras`, or that of a result record.

    If the call is interrupted, the same call resumes it, as with `attack`.

    Args:
        path: The model, as for `attack`.
        claim: The claimed robust accuracy with its norm and epsilon. Either a claim or a record is given.
        record: A `record.json` that `attack` wrote. Its images are audited, outcome by outcome, and `adversarial.npz`
            beside it is checked if it is there.
        norm: With `epsilon`, the threat model of the record; needed if the record has several.
        epsilon: See `norm`.
        dataset: Fields of `Dataset`, as for `attack`.
        part: The split, as for `attack`; a record names its own.
        transfer_from: Models to craft transferred images on.
        budget: How much to spend.
        output_dir: The folder for `audit.json`, `audit.html`, pictures and `counterexamples.npz`; `audits/<model>`,
            numbered, if not given.
        batch_size: Images attacked at once.
        seed: The seed of all random draws.
        overwrite: Replace the output folder.
        trust: Skip the search for what could do harm in all models.
        progress: Where progress is shown.
        **foreign: `input_range`, `output` and `endpoint` of a model that was not exported here, see `load_classifier`.

    Returns:
        The content of `audit.json`, and the folder.

    Raises:
        InvalidInputError: If model, data or record cannot be read or do not fit each other.

    Example:
        >>> from pathlib import Path
        >>> import keras_rcl
        >>> claim = keras_rcl.Claim(robust_accuracy=0.6, epsilon="8/255")  # doctest: +SKIP
        >>> audit, folder = keras_rcl.audit_model(Path("saved_models/digits-at"), claim=claim)  # doctest: +SKIP
    """
    classifier = load_classifier(path, trust=trust, **foreign)
    stored = read_record(record) if record is not None else None
    if stored is not None:
        part = stored["data"]["part"]
    data = data_for(classifier, dataset or {}, part)
    others = {str(other): logits_through(str(other), data, trust) for other in transfer_from}
    chosen = split_of(data, part)
    kept, evidence = np.arange(len(chosen.labels)), None
    if record is not None and stored is not None:
        kept = positions_of_record(record, stored, data.name, chosen.indices)
        claim, evidence = _of_record(record, stored, classifier.model_hash, norm, epsilon, data.image_shape)
    claim = as_claim(claim)
    images, labels, indices = pixels(chosen.images[kept]), chosen.labels[kept], chosen.indices[kept]
    # Raise before anything is written.
    check_ball(claim.epsilon, claim.norm, images.shape[1:])
    budget.resolved_verifier(claim, randomised=False, num_classes=classifier.num_classes)
    classifier, input_range = classifier.as_trained(images, labels)
    progress, batch_size = progress or Silent(), min(batch_size, len(images))
    subject = Subject(
        logits=classifier.logits,
        embedding=classifier.outputs("embedding"),
        probabilities=classifier.gives_probabilities,
        others={name: logits for name, (logits, _) in others.items()},
        doubts=input_range.doubts,
    )
    fingerprint = Fingerprint(
        model={"hash": classifier.model_hash, **foreign, "input_range": input_range.name},
        sources={name: model_hash for name, (_, model_hash) in others.items()},
        images=hash_arrays(images, labels),
        seed=seed,
        versions=versions(),
        settings=_settings(claim, record, budget, batch_size),
    )
    default = Path("audits") / classifier.path.stem
    output_dir, journal = output_and_journal(output_dir, default, fingerprint, overwrite, marker="audit.json")
    with journal:
        report_resumed(journal, progress)
        result = audit(
            subject,
            images,
            labels,
            claim,
            evidence=evidence,
            budget=budget,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
            journal=journal,
        )
    found = _as_json(result, len(images), budget, seed)
    identity = classifier.identity()
    found["model"] = {"name": identity["name"], "hash": identity["hash"], "input_range": input_range.to_json()}
    found["record"] = None if record is None else str(record)
    found["data"] = {"name": data.name, "part": part, "indices": index_ranges(indices)}
    found["counterexamples"] = index_ranges(indices[result.counterexamples])
    with atomic_folder(output_dir, overwrite=overwrite) as folder:
        pictures = _draw(result, images, labels, classifier.class_names or data.class_names, folder)
        if len(result.counterexamples):
            _save_counterexamples(result, images, labels, indices, folder / "counterexamples.npz")
        write_json(folder / "audit.json", found)
        (folder / "audit.html").write_text(audit_page(found, pictures), encoding="utf-8")
    journal.discard()
    return found, output_dir


def _settings(claim: Claim, record: str | Path | None, budget: AuditBudget, batch_size: int) -> dict[str, Any]:
    """The settings of the fingerprint."""
    return {
        "claim": TypeAdapter(Claim).dump_python(claim, mode="json"),
        "record": None if record is None else Path(record).read_text(encoding="utf-8"),
        "budget": _budget_values(budget),
        "batch_size": batch_size,
    }


def _budget_values(budget: AuditBudget) -> dict[str, Any]:
    """The fields of a budget as JSON values; without `verdict_confidence` if all images are attacked."""
    values = TypeAdapter(AuditBudget).dump_python(budget, mode="json")
    return {name: value for name, value in values.items() if name != "verdict_confidence" or value is not None}


def _save_counterexamples(
    result: Audit, images: np.ndarray, labels: np.ndarray, indices: np.ndarray, path: Path
) -> None:
    """Write the first counterexamples, with their labels and positions in the data set."""
    which = result.counterexamples[:KEPT_IMAGES]
    np.savez_compressed(
        path,
        images=images[which],
        adversarial=result.adversarial[:KEPT_IMAGES],
        labels=labels[which],
        indices=indices[which],
    )


def _of_record(
    path: str | Path,
    stored: dict[str, Any],
    model_hash: str,
    norm: Norm | None,
    epsilon: float | None,
    image_shape: tuple[int, ...],
) -> tuple[Claim, Evidence]:
    """The claim of a record for one threat model, and what it reports of each image."""
    known = dict.fromkeys((attack.norm, attack.epsilon) for attack in stored["attacks"] if attack.norm is not None)
    wanted = [ball for ball in known if norm in (None, ball[0]) and epsilon in (None, ball[1])]
    if len(wanted) != 1:
        texts = ", ".join(f"{n} {format_epsilon(e, n)}" for n, e in known) or "no attack in a ball"
        raise InvalidInputError(f"{path} holds {texts}; choose one with --norm and --epsilon")
    ((norm, epsilon),) = wanted
    numbers = [i for i, attack in enumerate(stored["attacks"]) if (attack.norm, attack.epsilon) == (norm, epsilon)]
    protocols = [stored["attacks"][i].protocol for i in numbers]
    survived = stored["survival"]["clean"] & stored["survival"]["attacks"][numbers].all(axis=0)
    distances = [stored["rows"][i].get("largest_distance") for i in numbers]
    evidence = Evidence(
        clean=stored["survival"]["clean"],
        survived=survived,
        protocol=next((name for name in protocols if name != "pixel"), "pixel"),
        same_model=stored["model"]["hash"] == model_hash,
        attacked=_kept_images(path, stored, numbers, image_shape),
        largest_distance=max((d for d in distances if d is not None), default=None),
    )
    return Claim(robust_accuracy=float(survived.mean()), norm=norm, epsilon=epsilon), evidence


def _kept_images(
    path: str | Path, stored: dict[str, Any], numbers: list[int], image_shape: tuple[int, ...]
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """The adversarial images beside the record, attack by attack, and whether it counts each as robust."""
    archive, hint = Path(path).parent / "adversarial.npz", "move it away to audit the record alone"
    if not archive.is_file():
        return ()
    kept = read_arrays(archive, {"images": ("f", 5), "attacks": ("U", 1)}, hint)
    images, names = kept["images"], [str(name) for name in kept["attacks"]]
    wanted = [describe(attack) for attack in stored["attacks"]]
    if names != wanted or images.shape != (len(wanted), stored["images"], *image_shape):
        raise InvalidInputError(f"{archive} is of other attacks or images than {path}; hint: {hint}")
    if not np.isfinite(images).all():
        raise InvalidInputError(f"{archive} has pixels that are not finite; hint: {hint}")
    clean, outcomes = stored["survival"]["clean"], stored["survival"]["attacks"]
    return tuple((images[i].astype(np.float32), clean & outcomes[i]) for i in numbers)


def _as_json(result: Audit, count: int, budget: AuditBudget, seed: int) -> dict[str, Any]:
    """The audit of `count` images as JSON values."""
    return {
        "format": FORMAT,
        "command": command_line(),
        "verdict": result.verdict,
        "reason": result.reason,
        "claim": TypeAdapter(Claim).dump_python(result.claim, mode="json"),
        "findings": [
            {
                "check": finding.check,
                "status": finding.status,
                "because": finding.because,
                "meaning": CHECKS[finding.check].meaning,
                "remedy": CHECKS[finding.check].remedy,
                "figures": finding.figures,
            }
            for finding in result.findings
        ],
        "images": count,
        "attacked": len(result.attacked),
        "clean_accuracy": result.clean_accuracy,
        "robust_accuracy": result.robust_accuracy,
        "interval": list(result.interval),
        "images_needed": result.images_needed,
        "measured": result.measured.rows(),
        "checked": result.checked.rows(),
        "budget": _budget_values(budget),
        "seed": seed,
        "versions": versions(),
    }


def _draw(
    result: Audit, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], folder: Path
) -> list[tuple[str, str]]:
    """Draw the pictures of the audit; returns their captions and file names."""
    reach = format_epsilon(result.claim.epsilon, result.claim.norm)
    loss_surface_plot(result.surface, folder / "loss_surface.png", reach=reach, title="loss surface of one image")
    pictures = [("The logit margin around one image, which should be smooth", "loss_surface.png")]
    shown = result.counterexamples[:PICTURED_IMAGES]
    if len(shown):
        rows = [int(np.flatnonzero(result.attacked == position)[0]) for position in shown]
        attack_pictures(
            images[shown],
            result.adversarial[:PICTURED_IMAGES],
            labels[shown],
            result.measured.clean_predictions[rows],
            result.predictions[:PICTURED_IMAGES],
            class_names,
            folder / "counterexamples.png",
            epsilon_text=f"counter-examples, {result.claim.norm} {reach}",
        )
        pictures.append(("Images within the ball that the model gets wrong", "counterexamples.png"))
    return pictures
