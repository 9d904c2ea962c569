"""The twelve published networks of Cusin and Serafini: import, attack, AutoAttack and verification.

    python -m benchmarks.published_cusin WEIGHTS [--stage attack|autoattack|corruptions|verify|pixel] [--images N]

WEIGHTS is a folder of their files, named `<folder>__<file>.pt` as in their repository. Records are written to
`results/published/`; a network that has its record is left out, and an interrupted attack resumes.
"""

import functools
from pathlib import Path

import click

from keras_rcl.data import sources
from keras_rcl.papers.cusin import PUBLISHED_EPSILONS, PUBLISHED_FILES, published_attack
from keras_rcl.runtime.progress import StderrProgress
from keras_rcl.runtime.tensorflow import start_tensorflow
from keras_rcl.storage.atomic import read_json, write_json
from keras_rcl.vocabulary.attacks import PGD, AutoAttack, Corruptions

RESULTS = Path("results/published")
STAGES = {
    "attack": [published_attack(epsilon) for epsilon in PUBLISHED_EPSILONS],
    "pixel": [PGD(epsilon=epsilon / 255, num_steps=10) for epsilon in PUBLISHED_EPSILONS],
    "autoattack": [AutoAttack(), AutoAttack(epsilon=2 / 255)],
    "corruptions": [Corruptions()],
}
"""What each network is attacked by: by the authors' attack on all test images, by PGD in pixels, by AutoAttack, by
common corruptions."""

TIMEOUT = 180
RADIUS = 1 / 255
"""The radius of the paper's Table 1 in pixels."""
SELECTION = published_attack(4)
"""The attack that chooses the images of Table 1: the first 20 that survive it are verified, at half of its radius."""


def run(name: str, paths: list[Path], stage: str, images: int | None, timeout: int, progress: StderrProgress) -> None:
    """Run one stage on one network and write its record."""
    from keras_rcl.workflows.attack import attack
    from keras_rcl.workflows.import_weights import import_weights
    from keras_rcl.workflows.verify import verify_model

    record = RESULTS / f"{name}-{stage}.json"
    if record.is_file():
        return
    export = Path("saved_models") / name
    if not (export / "model.json").is_file():
        import_weights(paths, "cusin_cnn", dataset={"name": "cifar10"}, name=name)
    dataset = {"limit": images} if images else {}
    written = Path("attacks" if stage != "verify" else "verifications") / f"{name}-{stage}"
    if (written / "record.json").is_file():
        pass
    elif stage == "verify":
        dataset = {"limit": images or 1000}
        chosen = Path("attacks") / f"{name}-selection"
        if not (chosen / "record.json").is_file():
            attack(export, [SELECTION], dataset=dataset, output_dir=chosen, progress=progress)
        settings = {"count": 20, "timeout": float(timeout), "survivors_of": chosen / "record.json", "no_attack": True}
        verify_model(export, [RADIUS], dataset=dataset, output_dir=written, progress=progress, **settings)
    else:
        attack(export, STAGES[stage], dataset=dataset, output_dir=written, progress=progress)
    RESULTS.mkdir(parents=True, exist_ok=True)
    command = f"python -m benchmarks.published_cusin WEIGHTS --stage {stage}" + (
        f" --images {images}" if images else ""
    )
    if stage == "verify" and timeout != TIMEOUT:
        command += f" --timeout {timeout}"
    write_json(record, {**read_json(written / "record.json"), "command": command})


@click.command()
@click.argument("weights", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--stage", type=click.Choice([*STAGES, "verify"]), default="attack", show_default=True)
@click.option("--images", type=click.IntRange(min=1), help="Use at most N test images; all by default.")
@click.option("--timeout", type=click.IntRange(min=1), default=TIMEOUT, show_default=True, help="Seconds per image.")
@click.option("--network", "names", type=click.Choice([*PUBLISHED_FILES]), multiple=True, help="All by default.")
def main(weights: Path, stage: str, images: int | None, timeout: int, names: tuple[str, ...]) -> None:
    start_tensorflow()
    sources.load = functools.cache(sources.load)  # twelve networks, one data set
    for name in names or PUBLISHED_FILES:
        files = PUBLISHED_FILES[name]
        with StderrProgress() as progress:
            progress.say(name)
            run(f"cusin-{name}", [weights / file for file in files], stage, images, timeout, progress)


if __name__ == "__main__":
    main()
