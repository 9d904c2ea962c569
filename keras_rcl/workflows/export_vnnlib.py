"""The workflows of `export-vnnlib` and `read-verifier-results`: files for another verifier, and rows of its results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_rcl.data import sources
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.record import command_line, versions
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.model_io.loading import LoadedModel
from keras_rcl.model_io.onnx import onnx_network
from keras_rcl.model_io.vnnlib import RESULTS, STATUSES, Instance, read_results, write_instances
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.atomic import atomic_folder, check_writable, write_json
from keras_rcl.storage.kinds import INSTANCES
from keras_rcl.storage.output_folder import check_replaceable, free_name
from keras_rcl.vocabulary.attacks import Attack, describe
from keras_rcl.workflows.inputs import data_for, outputs_of, pixels, split_of, support_of
from keras_rcl.workflows.verify import half_precision_note


# One keyword per option of the command, so that a call in Python reads like the command line.
def export_vnnlib(
    path: str | Path,
    epsilons: Sequence[float],
    *,
    count: int = 20,
    attacks: Sequence[Attack] = (),
    timeout: float = 180,
    dataset: dict[str, Any] | None = None,
    part: str = "test",
    output_dir: str | Path | None = None,
    batch_size: int = 250,
    seed: int = 0,
    overwrite: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Path]:
    """Write a network and its robustness around images for alpha-beta-CROWN, and other verifiers that read VNN-LIB.

    A misclassified image has no robustness to prove and is left out, as in VNN-COMP.

    Args:
        path: an export made here, or a `.keras` file.
        epsilons: radii of the L-inf balls, in pixels.
        count: At most this many images per radius: the first that are classified correctly, under the attacks too.
        attacks: Run at each radius; images that they break are left out, as in Cusin (2026).
        timeout: seconds for each image.
        dataset: which images, as for `attack`.
        part: The split, as for `attack`.
        output_dir: the folder to write; `interchange/<model>`, numbered, where not given.
        batch_size: images attacked at once.
        seed: of the attacks.
        overwrite: replace the output folder.
        trust: as for `attack`.
        progress: where progress is shown.

    Returns:
        What `instances.json` says, and the folder.

    Raises:
        InvalidInputError: if model or data cannot be read, a layer cannot be written, or no image is left.
    """
    loaded = LoadedModel(path, trust=trust)
    network, classifier = loaded.layers, load_classifier(loaded)
    data = data_for(classifier, dataset or {}, part)
    chosen = split_of(data, part)
    default = Path("interchange") / free_name(loaded.path.stem, (Path("interchange"),), overwrite)
    output_dir = Path(output_dir or default)
    check_replaceable(output_dir, "instances.json", overwrite)
    model = onnx_network(network)
    if (note := half_precision_note(path, network)) and progress:
        progress.say(note)
    check_writable(output_dir.parent)
    instances, rows = [], []
    for epsilon in dict.fromkeys(epsilons):
        words = [word.with_epsilon(epsilon) for word in attacks]
        outputs, _ = outputs_of(words, classifier.outputs, data, trust)
        support = support_of(words, outputs, data)
        evaluator = Evaluator(
            classifier.logits, words, batch_size=batch_size, seed=seed, outputs=outputs, support=support
        )
        robust, looked_at = _robust_images(evaluator, chosen, count, progress or Silent())
        rows.append({"epsilon": epsilon, "left_out": looked_at - len(robust)})
        for i in robust:
            image = pixels(chosen.images[i])
            instances.append(Instance(image, int(chosen.labels[i]), epsilon, int(chosen.indices[i])))
    if not instances:
        raise InvalidInputError(
            f"{path} gets none of {len(chosen.labels)} images right, so nothing is left to verify; choose another"
        )
    exported = {
        "format": 1,
        "command": command_line(),
        "model": classifier.identity(),
        "data": {"name": data.name, "part": part},
        "attacks": [describe(word.with_epsilon(epsilon)) for word in attacks for epsilon in dict.fromkeys(epsilons)],
        "timeout": timeout,
        "epsilons": rows,
        "instances": [{"index": one.index, "label": one.label, "epsilon": one.epsilon} for one in instances],
        "versions": versions(),
    }
    with atomic_folder(output_dir, overwrite=overwrite) as folder:
        write_instances(folder, model, instances, timeout)
        write_json(folder / "instances.json", exported)
    return exported, output_dir


def _robust_images(evaluator: Evaluator, part: sources.Split, count: int, progress: Progress) -> tuple[np.ndarray, int]:
    """The positions of the first `count` robust images, and the number of images that were tried to find them."""
    found, size = np.empty(0, int), evaluator.batch_size
    for start in range(0, len(part.labels), size):
        chosen = slice(start, start + size)
        survival = evaluator(pixels(part.images[chosen]), part.labels[chosen], progress=progress)
        found = np.append(found, start + np.flatnonzero(survival.clean & survival.survived.all(axis=0)))
        if len(found) >= count:
            return found[:count], int(found[count - 1]) + 1
    return found, len(part.labels)


def read_verifier_results(folder: str | Path) -> dict[str, Any]:
    """Read the results of alpha-beta-CROWN in a folder that `export_vnnlib` wrote.

    Returns:
        The content of `instances.json`, each instance with its `status` and `seconds`; and `rows`, one per epsilon:
        `counts` of images by status, the `seconds` of all of them, and the number of images that were `left_out`.

    Raises:
        InvalidInputError: If the folder was not written by `export_vnnlib`, or its result file is missing, damaged or
            incomplete.
    """
    exported: dict[str, Any] = dict(INSTANCES.read(Path(folder) / "instances.json"))
    instances, radii = exported["instances"], exported.pop("epsilons")
    results = read_results(Path(folder) / RESULTS)
    if len(results) != len(instances):
        raise InvalidInputError(
            f"{Path(folder) / RESULTS} has {len(results)} results of {len(instances)} instances; run all of them"
        )
    for instance, (status, seconds) in zip(instances, results, strict=True):
        instance.update(status=status, seconds=round(seconds, 3))
    rows = []
    for row in radii:
        found = [instance for instance in instances if instance["epsilon"] == row["epsilon"]]
        counts = {status: sum(one["status"] == status for one in found) for status in STATUSES}
        rows.append({**row, "counts": counts, "seconds": round(sum(one["seconds"] for one in found), 1)})
    return {**exported, "rows": rows}
