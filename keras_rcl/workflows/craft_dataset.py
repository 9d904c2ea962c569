"""The `craft-dataset` command: a model, a data set and an attack become a store of adversarial examples."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from pydantic import TypeAdapter

from keras_rcl.attacks import craft
from keras_rcl.data import sources
from keras_rcl.data.adversarial_store import FORMAT, RECORD, shard_name, whole_levels, write_shard
from keras_rcl.data.splits import StreamedSplit
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
from keras_rcl.vocabulary.attacks import Attack, as_attack, describe
from keras_rcl.workflows.inputs import data_for, outputs_of, pixels, split_of, support_of


# One keyword per option of the command, as `attack` has them.
def craft_dataset(
    path: str | Path,
    attack: Attack | str,
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
        attack: Computes the examples, in pixels; or its text, such as `pgd-20`.
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
    attack = as_attack(attack)
    if attack.norm is None:
        raise InvalidInputError(
            f"{attack.label} has no epsilon, which what is stored needs; choose another, such as pgd"
        )
    if attack.protocol != "pixel":
        raise InvalidInputError(f"{describe(attack)} is not in pixels, and what is stored is; leave out the protocol")
    classifier = load_classifier(path, trust=trust, **foreign)
    data = data_for(classifier, dataset or {}, part)
    plan = _plan(data, part, batch_size, shard_size)
    outputs, hashes = outputs_of([attack], classifier.outputs, data, trust)
    support = support_of([attack], outputs, data)
    attacked = functools.partial(craft, attack, outputs(attack), seed=seed, support=support)
    compute = _batch_function(classifier, attacked, attack.targeted)
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
    fingerprint = Fingerprint.from_json({**inputs, "images": plan.hash, "batch_size": batch_size})
    workers.assert_same_inputs(fingerprint.to_json())
    progress, written, journal = progress or Silent(), None, None
    if workers.chief:
        default = Path("adversarial") / classifier.path.stem
        written, journal = output_and_journal(output_dir, default, fingerprint, overwrite, marker=RECORD)
        if done := len(journal):
            progress.say(f"resuming {journal.path}: {done} batches done")
    with contextlib.nullcontext() if journal is None else journal:
        results = _computed(plan, compute, describe(attack), progress, Pieces(workers, journal))
        if journal is None or written is None:  # Only the chief writes.
            return _record(inputs, plan, [batch._replace(examples=_NONE) for batch in results], ()), None
        if not plan.streamed:  # All in memory: nothing is written before the last batch is computed.
            results = iter(list(results))
        with atomic_folder(written, overwrite=overwrite) as folder:
            hits, sizes = _write_shards(folder, plan, results, part)
            record = _record(inputs, plan, hits, sizes)
            write_json(folder / RECORD, record)
        journal.discard()
    return record, written


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The batches of a split, and how their examples are divided among shards.

    Attributes:
        hash: Of the images.
        reads: The name of each batch and what reads it.
        sizes: Examples of each shard.
        streamed: The fields of the record of a streamed split; empty if the images are in memory.
    """

    hash: str
    reads: Sequence[tuple[bytes, Callable[[], sources.Split]]]
    sizes: Sequence[int]
    streamed: dict[str, Any]

    @property
    def shards(self) -> list[str]:
        return [shard_name(number, len(self.sizes)) for number in range(len(self.sizes))]


def _plan(data: sources.ImageData, part: str, batch_size: int, shard_size: int) -> _Plan:
    """A streamed split has one shard per piece, so that examples can be read beside its records."""
    chosen = getattr(data, part)
    if isinstance(chosen, StreamedSplit):
        reads = [
            (f"{number} {start}".encode(), functools.partial(chosen.read, number, start, batch_size))
            for number, piece in enumerate(chosen.pieces)
            for start in range(0, piece.take, batch_size)
        ]
        streamed = {"identity": chosen.identity, "image_shape": list(data.image_shape)}
        return _Plan(f"{chosen.identity} {data.image_shape}", reads, [p.take for p in chosen.pieces], streamed)
    split = split_of(data, part)
    count = len(split.labels)
    starts = range(0, count, batch_size)
    reads = [
        (str(start).encode(), functools.partial(_rows, split, slice(start, start + batch_size))) for start in starts
    ]
    sizes = [min(shard_size, count - start) for start in range(0, count, shard_size)]
    return _Plan(hash_arrays(split.images, split.labels, split.indices), reads, sizes, {})


class _Batch(NamedTuple):
    """Examples, and whether the model classifies each image correctly before (`clean`) and after the attack."""

    examples: sources.Split
    clean: np.ndarray
    stood: np.ndarray


def _record(inputs: dict[str, Any], plan: _Plan, batches: Sequence[_Batch], sizes: Sequence[int]) -> dict[str, Any]:
    """What `examples.json` holds; `sizes` are those of the shards in bytes."""
    clean, stood = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ("clean", "stood"))
    return {
        "format": FORMAT,
        "command": command_line(),
        **inputs,
        "examples": len(clean),
        "clean_accuracy": float(clean.mean()),
        "accuracy": float(stood.mean()),
        "shards": plan.shards,
        **({"streamed": {**plan.streamed, "sizes": list(sizes)}} if plan.streamed else {}),
    }


def _write_shards(folder: Path, plan: _Plan, batches: Iterator[_Batch], part: str) -> tuple[list[_Batch], list[int]]:
    """Write shards as their examples come, one in memory at a time.

    Returns:
        The batches without their examples, and the sizes of the files in bytes.
    """
    hits, sizes, waiting = [], [], _rows(_NONE, slice(0))
    for name, size in zip(plan.shards, plan.sizes, strict=True):
        parts, count = [waiting], len(waiting.labels)
        while count < size:
            batch = next(batches)
            hits.append(batch._replace(examples=_NONE))
            parts.append(batch.examples)
            count += len(batch.examples.labels)
        joined = _joined(parts)
        write_shard(folder / name, _rows(joined, slice(size)), part)
        sizes.append((folder / name).stat().st_size)
        waiting = _rows(joined, slice(size, None))
    next(batches, None)  # There is none: the progress ends.
    return hits, sizes


_NONE = sources.Split(np.zeros((0, 0, 0, 0), np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64))


def _joined(parts: Sequence[sources.Split]) -> sources.Split:
    parts = [part for part in parts if len(part.labels)]
    images, labels, indices = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels", "indices")
    )
    return sources.Split(images, labels, indices)


def _batch_function(
    classifier: Classifier, attacked: Callable, targeted: bool
) -> Callable[[Callable[[], sources.Split]], Result]:
    """Return a function that reads a batch and attacks it.

    Args:
        classifier: The model.
        attacked: Returns adversarial images, given images and targets.
        targeted: Whether the targets are the least likely classes instead of the labels.

    Returns:
        A function from what reads a batch to its `labels` and `indices`, the `images` in whole grey levels, and whether
        the model classifies each image correctly before (`clean`) and after the attack (`stood`).
    """

    @tf.function(autograph=False)
    def step(x, labels):
        logits = classifier.logits(x)
        targets = tf.argmin(logits, axis=1, output_type=tf.int32) if targeted else labels
        return logits, attacked(x, targets)

    def compute(read: Callable[[], sources.Split]) -> Result:
        split = read()
        labels = split.labels.astype(np.int32)
        logits, crafted = step(pixels(split.images), labels)
        images = whole_levels(split.images, crafted.numpy())
        after = classifier.logits(pixels(images))
        hits = [np.argmax(rows, axis=1) == labels for rows in (logits, after)]
        found = {"images": images, "clean": hits[0], "stood": hits[1]}
        return {**found, "labels": split.labels, "indices": split.indices}

    return compute


def _computed(
    plan: _Plan, compute: Callable[..., Result], label: str, progress: Progress, pieces: Pieces
) -> Iterator[_Batch]:
    """Compute all batches, or read them from the journal, one after another."""
    progress.start(label, len(plan.reads))
    tasks = [(name, functools.partial(compute, read)) for name, read in plan.reads]
    stood, count = 0, 0
    for number, (found, (_, read)) in enumerate(zip(pieces(tasks), plan.reads, strict=True), start=1):
        of = read() if "labels" not in found else None  # A journal of an earlier version has no labels.
        labels, indices = (of.labels, of.indices) if of else (found["labels"], found["indices"])
        stood, count = stood + int(found["stood"].sum()), count + len(labels)
        progress.update(number)
        yield _Batch(sources.Split(found["images"], labels, indices), found["clean"], found["stood"])
    progress.finish(f"accuracy {stood / max(1, count):.1%}")


def _rows(split: sources.Split, rows: slice) -> sources.Split:
    return sources.Split(split.images[rows], split.labels[rows], split.indices[rows])
