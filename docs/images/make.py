"""Draws the pictures of README and the documentation: `python docs/images/make.py [--work FOLDER]`.

The robustness figure needs three small models. They are trained and attacked by the commands of the README, in a folder
that is kept with `--work`; outputs that are already there are used again. The other figures are drawn from the code.
"""

import argparse
import configparser
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from sklearn.datasets import load_digits, load_sample_image

from keras_rcl.papers import PAPERS
from keras_rcl.report.records import Results, experiment
from keras_rcl.report.verdicts import SEEDS, mean_and_spread
from keras_rcl.vocabulary.threat import PROTOCOLS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODELS = {"baseline": "plain training", "clafs": "CLAF", "at": "adversarial training"}
COLORS = {"baseline": "#D55E00", "clafs": "#009E73", "at": "#0072B2"}
RIGHT, WRONG = "#0072B2", "#D55E00"
EPSILONS = ("2/255", "4/255", "8/255", "16/255", "24/255", "32/255")
SHOWN = "PGD-40 linf 16/255"
COLUMNS = 6
CIFAR_IMAGES = 50_000
INK, BOX, LIGHT = "#263238", "#CFD8DC", "#ECEFF1"


def run(work: Path, *arguments: str) -> None:
    """Run one command of the package in a folder."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from keras_rcl.cli.app import cli; cli()"
    subprocess.run([sys.executable, "-c", program, *arguments], cwd=work, check=True)


def attacked_models(work: Path) -> dict[str, tuple[dict, dict[str, np.ndarray]]]:
    """Train and attack the three models.

    Returns:
        Variant -> the record of `attack` and its adversarial images.
    """
    if not all((work / f"saved_models/digits-{name}").exists() for name in MODELS):
        run(work, "fit", "--variant", "clafs")
    found = {}
    for name in MODELS:
        folder = work / f"attacks/digits-{name}"
        if not folder.exists():
            attacks = ["--attack", "fgsm", "--attack", "pgd-40", "--epsilon", ",".join(EPSILONS)]
            run(work, "attack", f"saved_models/digits-{name}", *attacks, "--save-images")
        with np.load(folder / "adversarial.npz") as stored:
            found[name] = json.loads((folder / "record.json").read_text()), {key: stored[key] for key in stored}
    return found


def robustness(found: dict[str, tuple[dict, dict[str, np.ndarray]]]) -> Figure:
    """A clean / adversarial / perturbation grid beside robust accuracy against epsilon."""
    figure = Figure(figsize=(10.0, 3.7), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.25, 1))
    _grid(left, found)
    axes = right.subplots()
    for name, (record, _) in found.items():
        survived: dict[float, float] = {0.0: record["clean_accuracy"]}
        for row in record["rows"]:
            survived[row["epsilon"]] = min(survived.get(row["epsilon"], 1.0), row["robust_accuracy"])
        epsilons, accuracies = zip(*sorted(survived.items()), strict=True)
        style = dict(color=COLORS[name], marker="o", markersize=4, clip_on=False)
        axes.plot(np.multiply(epsilons, 255), np.multiply(accuracies, 100), label=MODELS[name], **style)
    axes.set(xlim=(0, 32), ylim=(0, 100), xlabel="epsilon (L-inf, in 255ths of the pixel range)")
    axes.set_ylabel("robust accuracy (%)")
    axes.set_title("539 test images, FGSM and PGD-40", fontsize=10)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    return figure


def _grid(figure, found: dict[str, tuple[dict, dict[str, np.ndarray]]]) -> None:
    """Images that break plain training and not adversarial training, at one epsilon."""
    plain, robust = found["baseline"][1], found["at"][1]
    row = list(plain["attacks"]).index(SHOWN)
    labels, clean = plain["labels"], load_digits().images[plain["indices"]] / 16
    chosen = np.flatnonzero((plain["predictions"][row] != labels) & (robust["predictions"][row] == labels))
    chosen = chosen[np.unique(labels[chosen], return_index=True)[1]][:COLUMNS]
    adversarial = plain["images"][row, ..., 0]
    rows = {
        "clean": (clean, "gray", 0, 1),
        "adversarial": (adversarial, "gray", 0, 1),
        "perturbation": (adversarial - clean, "RdBu", -16 / 255, 16 / 255),
    }
    grid = figure.subplots(3, COLUMNS)
    for axes_row, (title, (images, colors, low, high)) in zip(grid, rows.items(), strict=True):
        for axes, index in zip(axes_row, chosen, strict=True):
            axes.imshow(images[index], cmap=colors, vmin=low, vmax=high)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        axes_row[0].set_ylabel(title, fontsize=9)
    for axes, index in zip(grid[0], chosen, strict=True):
        axes.set_title(f"“{labels[index]}”", color=RIGHT, fontsize=9, pad=3)
    for axes, index in zip(grid[1], chosen, strict=True):
        axes.set_title(f"“{plain['predictions'][row][index]}”", color=WRONG, fontsize=9, pad=3)
    figure.suptitle("PGD-40 at 16/255 on the plainly trained model, with its predictions", fontsize=10)


def _box(axes, x: float, y: float, width: float, height: float, title: str, text: str = "", color: str = BOX) -> None:
    """A rounded box with a title and smaller lines below."""
    style = dict(boxstyle="round,pad=0,rounding_size=0.08", facecolor=color, edgecolor=INK, linewidth=0.8)
    axes.add_patch(FancyBboxPatch((x, y), width, height, **style))
    lines = text.count("\n") + 1 if text else 0
    top = y + height / 2 + 0.09 * lines
    axes.text(x + width / 2, top, title, ha="center", va="center", fontsize=10, weight="bold", color=INK)
    if text:
        axes.text(x + width / 2, top - 0.13, text, ha="center", va="top", fontsize=8.5, color=INK, linespacing=1.35)


def _canvas(width: float, height: float) -> tuple[Figure, object]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return figure, axes


def _arrow(axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0, style: str = "-") -> None:
    shape = dict(arrowstyle="-|>", mutation_scale=11, linewidth=1.1, color=INK, linestyle=style)
    axes.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", **shape))


def batch() -> Figure:
    """The five stages of a batch."""
    figure, axes = _canvas(9.0, 3.1)
    stages = {
        "data": "uint8 images\nand labels,\nby (seed, epoch, step)",
        "views": "V versions of\neach image: clean,\naugmented, attacked",
        "attack": "images in the ball,\nthe network in\ninference mode",
        "network": "one joint pass of\nV·N images:\nencoder, heads",
        "losses": "weighted terms on\nembedding, projection\nand logits",
    }
    width, gap = 1.5, 0.3
    for index, (title, text) in enumerate(stages.items()):
        x = 0.15 + index * (width + gap)
        _box(axes, x, 1.0, width, 1.25, title, text)
        if index:
            _arrow(axes, (x - gap, 1.63), (x, 1.63))
    center = [0.15 + i * (width + gap) + width / 2 for i in range(5)]
    _arrow(axes, (center[3], 2.25), (center[2], 2.25), bend=0.45, style="--")
    axes.text((center[2] + center[3]) / 2, 2.76, "logits and input gradients", ha="center", fontsize=8.5, color=INK)
    _arrow(axes, (center[4], 1.0), (center[3], 1.0), bend=-0.45, style="--")
    axes.text((center[3] + center[4]) / 2, 0.4, "weight gradients", ha="center", fontsize=8.5, color=INK)
    axes.text(0.15, 0.4, "A phase names the parts that train, the views and the losses;", fontsize=8.5, color=INK)
    axes.text(0.15, 0.2, "a method is a list of phases.", fontsize=8.5, color=INK)
    return figure


def layers() -> Figure:
    """The packages and their layers, as the import contract in setup.cfg lists them."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    contract = next(config[name] for name in config.sections() if config[name].get("type") == "layers")
    rows = [[name.strip() for name in line.split("|")] for line in contract["layers"].split("\n") if line.strip()]
    rows = [row for row in rows if row != ["__main__"]]
    height, gap, width = 0.34, 0.08, 7.0
    figure, axes = _canvas(width + 1.2, len(rows) * (height + gap) + 0.35)
    for index, row in enumerate(rows):
        y = 0.2 + (len(rows) - 1 - index) * (height + gap)
        each = (width - 0.12 * (len(row) - 1)) / len(row)
        for column, name in enumerate(row):
            _box(axes, 0.15 + column * (each + 0.12), y, each, height, name, color=BOX if index % 2 else LIGHT)
    _arrow(axes, (width + 0.5, len(rows) * (height + gap)), (width + 0.5, 0.25))
    axes.text(
        width + 0.72, len(rows) * (height + gap) / 2, "imports", rotation=270, va="center", ha="center", fontsize=9
    )
    return figure


def clamp() -> Figure:
    """What the clamp to [0, 1] in normalised units does to an image, before any perturbation."""
    image = load_sample_image("flower.jpg")[60:380, 130:450].reshape(32, 10, 32, 10, 3).mean(axis=(1, 3)) / 255
    map_ = PROTOCOLS["claf-repo"]
    shift, scale = np.array(map_.shift), np.array(map_.scale)
    clamped = np.clip((image - shift) / scale, *map_.box) * scale + shift
    figure = Figure(figsize=(8.0, 2.75), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].imshow(image)
    axes[0].set_title("an image in [0, 1]", fontsize=10)
    axes[1].imshow(clamped)
    axes[1].set_title("after CLAF's clamp, epsilon 0", fontsize=10)
    shown = axes[2].imshow(np.abs(clamped - image).max(axis=2) * 255, cmap="magma", vmin=0, vmax=128)
    axes[2].set_title("largest change (255ths)", fontsize=10)
    figure.colorbar(shown, ax=axes[2], shrink=0.75)
    for each in axes:
        each.set(xticks=[], yticks=[])
    return figure


def contrast() -> Figure:
    """The trials of both searches, beside the robust accuracy on test images at each budget of passes."""
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    trials, budgets = figure.subplots(1, 2)
    _trials(trials)
    _budgets(budgets)
    for axes in (trials, budgets):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _trials(axes) -> None:
    """The measured trials, the best first, by what they contrast."""
    kinds = [
        ("at", None, "at", INK),
        ("at_scl", "false", "at_scl, adversarial views only", RIGHT),
        ("at_scl", "true", "at_scl, with a clean view", WRONG),
    ]
    for variant, clean_view, label, color in kinds:
        study = json.loads((ROOT / f"results/studies/contrast-{variant}/study.json").read_text(encoding="utf-8"))
        done = [trial for trial in study["trials"] if trial["state"] == "done"]
        shown = [trial["objective"] for trial in done if trial["settings"].get("method.clean_view") == clean_view]
        axes.plot(
            1 + np.arange(len(shown)),
            100 * np.sort(shown)[::-1],
            "o-",
            color=color,
            markersize=4,
            linewidth=1,
            label=label,
        )
    axes.set(
        xlabel="measured trials, the best first",
        ylabel="robust accuracy (AutoAttack), %",
        title="Search: 1,000 validation images",
    )


def _budgets(axes) -> None:
    """Mean and spread on test images at each budget at which all seeds are measured."""
    paper, found = PAPERS["contrast"], Results(ROOT / "results")
    table = paper.table("Table 2")
    (measure,) = table.columns[-1].measures
    for row, color in zip(table.rows, ("#78909C", INK, RIGHT), strict=True):
        points = []
        for scale in ("small", "cpu", "large"):
            trained = experiment(f"{paper.name}/{row.config}", scale)
            if (one := found.measured(trained, measure)) and len(one.values) >= SEEDS:
                images = CIFAR_IMAGES * (1 - trained.dataset.validation_fraction)
                passes = images * sum(phase.total_cost for phase in trained.method.phases())
                points.append((passes / 1e6, *mean_and_spread([float(value) for value in one.values.values()])))
        if points:
            passes, mean, spread = zip(*points, strict=True)
            axes.errorbar(passes, mean, spread, fmt="o-", color=color, capsize=3, label=row.label)
    axes.set(
        xlabel="passes of all images, millions",
        ylabel="robust accuracy (AutoAttack), %",
        title=f"Test images, {SEEDS} seeds",
        xlim=(0, None),
    )


def main() -> None:
    """Draw all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="keep runs, models and attacks in this folder")
    parser.add_argument(
        "--only", nargs="*", default=["robustness", "batch", "layers", "clamp", "contrast"], help="figures to draw"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name in arguments.only:
            figure = robustness(attacked_models(work)) if name == "robustness" else globals()[name]()
            figure.savefig(HERE / f"{name}.png", dpi=150, facecolor="white")


if __name__ == "__main__":
    main()
