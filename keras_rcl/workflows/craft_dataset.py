"""The composition of a store of adversarial examples: a model on disk, data and an attack become TFRecords."""

import contextlib
import functools
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
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.runtime.distributed import ALONE, Workers
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.atomic import atomic_folder, write_json
from keras_rcl.storage.fingerprint import Fingerprint, hash_arrays
from keras_rcl.storage.journal import Result
from keras_rcl.storage.output_folder import output_and_journal
from keras_rcl.vocabulary.attacks import Attack, describe
from keras_rcl.workflows.inputs import data_for, outputs_of, pixels, split_of, support_of


def craft_dataset(
    path: Path,
    attack: Attack,
    output_dir: Path | None = None,
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
    """Make one adversarial example of every image of a part, in whole grey levels, and store them.

    Every batch is written to `.<name>.partial` beside the folder as soon as it is finished; the same call, made again
    after it was broken off, goes on from there. Images that are wrong before the attack are attacked too. A targeted
    attack aims at each image's least likely class.

    Args:
        path: the model that is attacked, as for `attack`.
        attack: what makes the examples, in pixels.
        output_dir: the folder: receives `examples.json` and `adversarial-<number>-of-<count>.tfrecord`;
            `adversarial/<model>`, numbered, where not given.
        dataset: fields of `Dataset`, as for `attack`.
        part: whose images; only those of `train` can be trained on.
        batch_size: images attacked at once.
        shard_size: examples a file.
        seed: of the attack.
        overwrite: replace the folder, and an interrupted crafting of something else.
        trust: as for `attack`.
        progress: where progress is shown.
        workers: as for `attack`.
        **foreign: as for `attack`.

    Returns:
        The record: attack, model, data and part; and the model's accuracy on the images and on what is stored. And
        the folder, on the chief.

    Raises:
        InvalidInputError: if the model, the data or the folder does not fit, or the attack runs in other units than
            pixels.

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

    @tf.function(autograph=False)
    def step(x, labels):
        logits = classifier.logits(x)
        targets = tf.argmin(logits, axis=1, output_type=tf.int32) if attack.targeted else labels
        return logits, craft(attack, outputs(attack), x, targets, seed=seed, support=support)

    def batch(start: int) -> Result:
        taken = slice(start, start + batch_size)
        labels = chosen.labels[taken].astype(np.int32)
        logits, crafted = step(pixels(chosen.images[taken]), labels)
        images = whole_levels(chosen.images[taken], crafted.numpy())
        after = classifier.logits(pixels(images))
        hits = [np.argmax(rows, axis=1) == labels for rows in (logits, after)]
        return {"images": images, "clean": hits[0], "stood": hits[1]}

    made_by = {
        "attack": TypeAdapter(Attack).dump_python(attack, mode="json"),
        "model": {"name": classifier.contract.get("name", path.stem), "hash": classifier.model_hash, **foreign},
        "sources": hashes,
        "data": {"name": data.name, "part": part},
        "seed": seed,
        "versions": versions(),
    }
    images_hash = hash_arrays(chosen.images, chosen.labels, chosen.indices)
    fingerprint = Fingerprint.from_json({**made_by, "images": images_hash, "batch_size": batch_size})
    progress, count = progress or Silent(), len(chosen.labels)
    batches = range(0, count, batch_size)
    default = Path("adversarial") / path.stem
    workers.assert_same_inputs(fingerprint.to_json())
    journal = None
    if workers.chief:
        output_dir, journal = output_and_journal(output_dir, default, fingerprint, overwrite, marker=RECORD)
        if done := len(journal):
            progress.say(f"resuming {journal.path}: {done} batches done")
    with contextlib.nullcontext() if journal is None else journal:
        progress.start(describe(attack), len(batches))
        pieces, wanted = [], [(str(start).encode(), functools.partial(batch, start)) for start in batches]
        for number, piece in enumerate(Pieces(workers, journal)(wanted), start=1):
            pieces.append(piece)
            progress.update(number)
        images, clean, stood = (
            np.concatenate([piece[key] for piece in pieces]) for key in ("images", "clean", "stood")
        )
        progress.finish(f"accuracy {stood.mean():.1%}")
        starts = range(0, count, shard_size)
        shards = [shard_name(number, len(starts)) for number in range(len(starts))]
        record = {
            "format": FORMAT,
            "command": command_line(),
            **made_by,
            "examples": count,
            "clean_accuracy": float(clean.mean()),
            "accuracy": float(stood.mean()),
            "shards": shards,
        }
        if journal is None or output_dir is None:  # Only the chief writes.
            return record, None
        with atomic_folder(output_dir, overwrite=overwrite) as folder:
            for name, start in zip(shards, starts, strict=True):
                taken = slice(start, start + shard_size)
                examples = sources.Split(images[taken], chosen.labels[taken], chosen.indices[taken])
                write_shard(folder / name, examples, part)
            write_json(folder / RECORD, record)
        journal.discard()
    return record, output_dir
