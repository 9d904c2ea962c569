"""The `craft-dataset` command: a model, a data set and an attack become a store of adversarial examples."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from pydantic import TypeAdapter

from keras_rcl.attacks import craft
from keras_rcl.data import sources
from keras_rcl.data.adversarial_store import FORMAT, RECORD, shard_name, whole_levels, write_shard
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.record import command_line, versions
from keras_rcl.evaluation.sharding import Pieces
from keras_rcl.model_io.classifier import Classifier, load_classifier
from keras_rcl.runtime.distributed import ALONE, Workers
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.atomic import atomic_folder, write_json
from keras_rcl.storage.fingerprint import Fingerprint, hash_arrays
from keras_rcl.storage.journal import Result
from keras_rcl.storage.output_folder import output_and_journal
from keras_rcl.vocabulary.attacks import Attack, describe
from keras_rcl.workflows.inputs import data_for, outputs_of, pixels, split_of, support_of


# One keyword per option of the command, as `attack` has them; one composition in 64 lines.
def craft_dataset(
    path: str | Path,
    attack: Attack,
    output_dir: str | Path | None = None,
    *,
    dataset: dict[str, Any] | None = None,
    part: str = "train",
    batch_size: int = 250,
    shard_size: int = 5000,
    seed: int = 0,
    overwrite: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
    workers: Workers = ALONE,
    **foreign,
) -> tuple[dict[str, Any], Path | None]:
    """Compute one adversarial example per image of a split, in whole grey levels, and store them.

    Every batch is written to `.<name>.partial` beside the folder as soon as it is computed; the same call, made again
    after an interruption, resumes. Misclassified images are attacked too. A targeted attack aims at the least likely
    class of each image.

    Args:
        path: The model that is attacked, as for `attack`.
        attack: Computes the examples, in pixels.
        output_dir: The folder; receives `examples.json` and `adversarial-<number>-of-<count>.tfrecord`. None:
            `adversarial/<model>`, numbered.
        dataset: Fields of `Dataset`, as for `attack`.
        part: The split; only examples of `train` can be trained on.
        batch_size: Images attacked at once.
        shard_size: Examples per file.
        seed: Of the attack.
        overwrite: Replace the folder, and an interrupted computation with another fingerprint.
        trust: As for `attack`.
        progress: Shows progress. None: nothing is shown.
        workers: As for `attack`.
        **foreign: As for `attack`.

    Returns:
        The record: attack, model, data and split, and the model's accuracy on the images and on the stored examples;
        and the folder, None except on the chief.

    Raises:
        InvalidInputError: If the model, the data or the folder does not fit, or the attack's unit is not the pixel.

    Example:
        >>> from pathlib import Path
        >>> import keras_rcl
        >>> keras_rcl.craft_dataset(Path("saved_models/digits-at"), keras_rcl.PGD())  # doctest: +SKIP
    """
    if attack.protocol != "pixel":
        raise InvalidInputError(f"{describe(attack)} is not in pixels, and what is stored is; leave out the protocol")
    classifier = load_classifier(path, trust=trust, **foreign)
    data = data_for(classifier, dataset or {})
    chosen = split_of(data, part)
    outputs, hashes = outputs_of([attack], classifier.outputs, data, trust)
    support = support_of([attack], outputs, data)
    attacked = functools.partial(craft, attack, outputs(attack), seed=seed, support=support)
    compute = _batch_function(classifier, attacked, attack.targeted, chosen)
    inputs = {
        "attack": TypeAdapter(Attack).dump_python(attack, mode="json"),
        "model": {
            "name": classifier.identity()["name"],
            "hash": classifier.model_hash,
            **foreign,
        },
        "sources": hashes,
        "data": {"name": data.name, "part": part},
        "seed": seed,
        "versions": versions(),
    }
    images_hash = hash_arrays(chosen.images, chosen.labels, chosen.indices)
    fingerprint = Fingerprint.from_json({**inputs, "images": images_hash, "batch_size": batch_size})
    workers.assert_same_inputs(fingerprint.to_json())
    progress, written, journal = progress or Silent(), None, None
    if workers.chief:
        default = Path("adversarial") / classifier.path.stem
        written, journal = output_and_journal(output_dir, default, fingerprint, overwrite, marker=RECORD)
        if done := len(journal):
            progress.say(f"resuming {journal.path}: {done} batches done")
    with contextlib.nullcontext() if journal is None else journal:
        slices = [slice(start, start + batch_size) for start in range(0, len(chosen.labels), batch_size)]
        results = _computed(slices, compute, describe(attack), progress, Pieces(workers, journal))
        starts = range(0, len(chosen.labels), shard_size)
        record = {
            "format": FORMAT,
            "command": command_line(),
            **inputs,
            "examples": len(chosen.labels),
            "clean_accuracy": float(results["clean"].mean()),
            "accuracy": float(results["stood"].mean()),
            "shards": [shard_name(number, len(starts)) for number in range(len(starts))],
        }
        if journal is None or written is None:  # Only the chief writes.
            return record, None
        with atomic_folder(written, overwrite=overwrite) as folder:
            examples = sources.Split(results["images"], chosen.labels, chosen.indices)
            for name, start in zip(record["shards"], starts, strict=True):
                write_shard(folder / name, _rows(examples, slice(start, start + shard_size)), part)
            write_json(folder / RECORD, record)
        journal.discard()
    return record, written


def _batch_function(
    classifier: Classifier, attacked: Callable, targeted: bool, split: sources.Split
) -> Callable[[slice], Result]:
    """Return a function that attacks a slice of a split.

    Args:
        classifier: The model.
        attacked: Returns adversarial images, given images and targets.
        targeted: Whether the targets are the least likely classes instead of the labels.
        split: The images and their labels.

    Returns:
        A function from a slice to the `images` in whole grey levels, and whether the model classifies each image
        correctly before (`clean`) and after the attack (`stood`).
    """

    @tf.function(autograph=False)
    def step(x, labels):
        logits = classifier.logits(x)
        targets = tf.argmin(logits, axis=1, output_type=tf.int32) if targeted else labels
        return logits, attacked(x, targets)

    def compute(taken: slice) -> Result:
        labels = split.labels[taken].astype(np.int32)
        logits, crafted = step(pixels(split.images[taken]), labels)
        images = whole_levels(split.images[taken], crafted.numpy())
        after = classifier.logits(pixels(images))
        hits = [np.argmax(rows, axis=1) == labels for rows in (logits, after)]
        return {"images": images, "clean": hits[0], "stood": hits[1]}

    return compute


def _computed(
    slices: Sequence[slice], compute: Callable[[slice], Result], label: str, progress: Progress, pieces: Pieces
) -> Result:
    """Compute all slices, or read them from the journal; returns their results in one."""
    progress.start(label, len(slices))
    tasks = [(str(taken.start).encode(), functools.partial(compute, taken)) for taken in slices]
    results = []
    for number, result in enumerate(pieces(tasks), start=1):
        results.append(result)
        progress.update(number)
    joined = {name: np.concatenate([result[name] for result in results]) for name in results[0]}
    progress.finish(f"accuracy {joined['stood'].mean():.1%}")
    return joined


def _rows(split: sources.Split, rows: slice) -> sources.Split:
    return sources.Split(split.images[rows], split.labels[rows], split.indices[rows])
