"""Figures of a report: curves, bars, embeddings, and attacked images, as PNG with 150 dots per inch."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from keras_rcl.data.pictures import GAP, picture_grid, to_rgb
from keras_rcl.storage.atomic import atomic_path
from keras_rcl.vocabulary.threat import Norm, format_pixels

WORST_CASE = "worst case"
"""The name of the curve that is drawn black and thick."""

# Okabe and Ito's colours, which colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
RIGHT, WRONG = "#0072B2", "#D55E00"
MARKERS = "os^Dv<>"
DPI = 150
COLUMNS = 8
NAME_LENGTH = 14


def _save(figure: Figure, path: str | Path) -> None:
    for text in figure.findobj(Text):
        _make_drawable(text)
    figure.set_dpi(DPI)
    if (layout := figure.get_layout_engine()) is not None:  # which `savefig` would draw the figure once more for
        layout.execute(figure)
        figure.set_layout_engine(None)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")


def _make_drawable(text: Text) -> None:
    """Give a text that the font lacks characters of a font that has them; what no font has is escaped, as in Python."""
    missing = frozenset(text.get_text()) - _characters(font_manager.findfont(text.get_fontproperties())) - {"\n"}
    if not missing:
        return
    families, lacking = _families_with(missing)
    text.set_fontfamily([*text.get_fontfamily(), *families])
    escaped = (letter.encode("unicode_escape").decode() if letter in lacking else letter for letter in text.get_text())
    text.set_text("".join(escaped))


@functools.cache
def _characters(font: str) -> frozenset[str]:
    """The characters of a font file; none if it cannot be read."""
    try:
        return frozenset(map(chr, font_manager.get_font(font).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


@functools.cache
def _families_with(missing: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """The installed font families that have some of these characters, and the characters that no font has."""
    families = []
    for font in font_manager.fontManager.ttflist:
        if not missing:
            break
        if font.style == "normal" and (found := missing & _characters(font.fname)):
            families.append(font.name)
            missing -= found
    return tuple(families), missing


def accuracy_epsilon_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]], path: str | Path, *, norm: Norm = "linf", title: str = ""
) -> None:
    """Write the figure of `accuracy_epsilon_figure`.

    Args:
        curves: see `accuracy_epsilon_figure`, as for `norm` and `title`.
        path: the PNG to write; its folder is made when absent.
        norm: see `curves`.
        title: see `curves`.

    Raises:
        InvalidInputError: if the file cannot be written.
    """
    _save(accuracy_epsilon_figure(curves, norm=norm, title=title), path)


def accuracy_epsilon_figure(
    curves: Mapping[str, Sequence[tuple[float, float]]], *, norm: Norm = "linf", title: str = ""
) -> Figure:
    """Robust accuracy against epsilon, one line per attack; the curve called `worst case` is drawn over the others.

    Args:
        curves: attack -> (epsilon in pixel units, accuracy in [0, 1]); epsilon 0 is the clean accuracy.
        norm: the ball's norm; epsilons of `linf` are written as fractions of 255.
        title: written above.
    """
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for index, (name, points) in enumerate(curves.items()):
        epsilons, accuracies = zip(*sorted(points), strict=True)
        if name == WORST_CASE:
            style = dict(color="black", linewidth=2.2, linestyle="--", zorder=3)
        else:
            style = dict(color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)], markersize=5)
        axes.plot(epsilons, 100 * np.asarray(accuracies), label=name, clip_on=False, **style)

    ticks = sorted({epsilon for points in curves.values() for epsilon, _ in points})
    labels = [format_pixels(tick) if norm == "linf" else f"{tick:g}" for tick in ticks]
    axes.set_xticks(ticks, labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_xlim(0, ticks[-1] or 1)
    axes.set_ylim(0, 100)
    axes.set_xlabel("$\\epsilon$ ($\\ell_" + {"linf": "\\infty", "l2": "2", "l1": "1"}[norm] + "$)")
    axes.set_ylabel("robust accuracy (%)")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def certified_accuracy_plot(radii: np.ndarray, path: str | Path, *, title: str = "") -> None:
    """Write the figure of `certified_accuracy_figure`.

    Args:
        radii: see `certified_accuracy_figure`, as for `title`.
        path: the PNG to write; its folder is made when absent.
        title: see `radii`.

    Raises:
        InvalidInputError: if the file cannot be written.
    """
    _save(certified_accuracy_figure(radii, title=title), path)


def certified_accuracy_figure(radii: np.ndarray, *, title: str = "") -> Figure:
    """The share of images that are certified at each L2 radius, as a staircase.

    Args:
        radii: the certified radii in pixel units, [N]; below 0 for an image that counts as wrong at every radius.
        title: written above.
    """
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    steps = np.unique(radii[radii >= 0])
    ends = np.concatenate([[0.0], steps, steps[-1:] * 1.05])
    shares = [100 * float(np.mean(radii >= 0)), *(100 * float(np.mean(radii >= step)) for step in steps)]
    axes.step(ends, [*shares, *([0.0] * (len(ends) - len(shares)))], where="pre", color=COLOURS[0], clip_on=False)
    axes.set_xlim(0, ends[-1] or 1)
    axes.set_ylim(0, 100)
    axes.set_xlabel("radius ($\\ell_2$)")
    axes.set_ylabel("certified accuracy (%)")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def attack_pictures(
    clean: np.ndarray,
    adversarial: np.ndarray,
    labels: np.ndarray,
    clean_predictions: np.ndarray,
    adversarial_predictions: np.ndarray,
    class_names: Sequence[str],
    path: str | Path,
    *,
    epsilon_text: str,
) -> None:
    """Clean images, adversarial images and amplified perturbations, with the true and the predicted classes above.

    A prediction is blue where it is right, orange where it is wrong.

    Args:
        clean: [N, H, W, C] in [0, 1].
        adversarial: [N, H, W, C] in [0, 1], of the same images.
        labels: true classes, integers [N].
        clean_predictions: classes of the clean images, integers [N].
        adversarial_predictions: classes of the adversarial images, integers [N].
        class_names: name of each class.
        path: the PNG to write; its folder is made when absent.
        epsilon_text: the attack, for the title, such as `PGD-40 linf 8/255`.

    Raises:
        InvalidInputError: if the file cannot be written.
    """
    starts = range(0, len(clean), COLUMNS)
    columns = max(min(len(clean), COLUMNS), 4)  # room for the title
    figure = Figure(figsize=(1.1 + 1.05 * columns, 0.4 + 3.75 * len(starts)), layout="constrained")
    figure.suptitle(epsilon_text, fontsize=10, parse_math=False)
    for start, axes in zip(starts, figure.subplots(len(starts), squeeze=False).flat, strict=True):
        chosen = slice(start, start + COLUMNS)
        grid = picture_grid(clean[chosen], adversarial[chosen], columns=COLUMNS)
        tile_height, tile_width = (grid.shape[0] + GAP) / 3, (grid.shape[1] + GAP) / len(clean[chosen])
        axes.imshow(grid, interpolation="nearest")
        axes.set_xlim(-0.5, tile_width * columns - GAP - 0.5)
        axes.set_yticks(tile_height * (np.arange(3) + 0.5), ["clean", "adversarial", "perturbation"], fontsize=8)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        predicted = zip(labels[chosen], clean_predictions[chosen], adversarial_predictions[chosen], strict=True)
        for column, (label, before, after) in enumerate(predicted):
            lines = (("true", label, "black"), ("clean", before, None), ("adv.", after, None))
            for row, (head, value, colour) in enumerate(lines):
                text = axes.annotate(
                    f"{head} {_short(class_names[value] if value >= 0 else 'not finite')}",
                    (tile_width * (column + 0.5), 0),
                    xytext=(0, 4 + 9 * (2 - row)),
                    textcoords="offset points",
                    ha="center",
                    fontsize=6.5,
                    color=colour or (RIGHT if value == label else WRONG),
                    parse_math=False,
                )
                text.set_in_layout(column == 0)  # the others are beside it
    _save(figure, path)


def corruption_pictures(
    clean: np.ndarray, corrupted: Mapping[tuple[str, int], np.ndarray], path: str | Path, *, title: str = ""
) -> None:
    """One image under corruptions: one row per kind, with the clean image first and then one tile per severity.

    Args:
        clean: [H, W, C] in [0, 1].
        corrupted: (kind, severity) -> [H, W, C] in [0, 1].
        path: the PNG to write; its folder is made when absent.
        title: written above.

    Raises:
        InvalidInputError: if the file cannot be written.
    """
    kinds, severities = list(dict.fromkeys(kind for kind, _ in corrupted)), sorted({number for _, number in corrupted})
    blank = np.ones_like(clean)
    tiles = [[clean, *(corrupted.get((kind, number), blank) for number in severities)] for kind in kinds]
    figure = Figure(figsize=(2.2 + 0.8 * (1 + len(severities)), 0.8 + 0.8 * len(kinds)), layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)
    grid = figure.subplots(len(kinds), 1 + len(severities), squeeze=False)
    for kind, row, axes in zip(kinds, tiles, grid, strict=True):
        for tile, one in zip(to_rgb(np.stack(row)), axes, strict=True):
            one.imshow(tile, interpolation="nearest")
            one.set_xticks([])
            one.set_yticks([])
            one.spines[:].set_visible(False)
        axes[0].set_ylabel(kind.replace("_", " "), fontsize=7, rotation=0, ha="right", va="center")
    for one, head in zip(grid[0], ["clean", *map(str, severities)], strict=True):
        one.set_title(head, fontsize=8)
    _save(figure, path)


def loss_surface_plot(surface: np.ndarray, path: str | Path, *, reach: str, title: str = "") -> None:
    """The logit margin around an image: of a smooth model a slope along the gradient, and level across it.

    Args:
        surface: [R, S] margins max_{j != y} z_j - z_y, positive where the model is wrong; rows along the gradient's
            sign, columns along a random sign, from -1 to 1 times `reach`.
        path: the PNG to write; its folder is made when absent.
        reach: how far the axes go, such as `8/255`.
        title: written above.

    Raises:
        InvalidInputError: if the file cannot be written.
    """
    figure = Figure(figsize=(4.6, 3.8), layout="constrained")
    axes = figure.subplots()
    limit = float(np.abs(surface).max()) or 1.0
    shown = axes.imshow(surface, cmap="PuOr", vmin=-limit, vmax=limit, origin="lower", extent=(-1, 1, -1, 1))
    if surface.min() < 0 < surface.max():
        axes.contour(surface, levels=[0], colors="black", linewidths=1.2, extent=(-1, 1, -1, 1))
    axes.set_xlabel(f"along a random sign, × {reach}", parse_math=False)
    axes.set_ylabel(f"along the gradient's sign, × {reach}", parse_math=False)
    axes.set_title(title, fontsize=10, parse_math=False)
    figure.colorbar(shown, label="logit margin (positive: wrong)")
    _save(figure, path)


def loss_curves_plot(
    panels: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], path: str | Path, *, columns: int = 4
) -> None:
    """The loss of each epoch and its terms, with one panel per training.

    Args:
        panels: title -> the `losses` of a record, one line per epoch, in order; a vertical line separates phases.
        path: the PNG to write; its folder is made when absent.
        columns: panels side by side.

    Raises:
        InvalidInputError: if the file cannot be written.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    terms = (name for _, lines in panels for line in lines for name in line if name not in ("phase", "epoch", "loss"))
    named = list(dict.fromkeys(terms))
    for (title, lines), axes in zip(panels, grid, strict=False):
        for name in [*named, "loss"]:
            shown = [line.get(name) for line in lines]
            if all(value is None for value in shown):
                continue
            style = dict(color="black", linewidth=1.8, zorder=3, label="loss, all terms")
            if name != "loss":
                style = dict(color=COLOURS[named.index(name) % len(COLOURS)], linewidth=1.2, label=name)
            marker = "o" if len(lines) == 1 else ""
            values = np.array([np.nan if value is None else value for value in shown], float)
            axes.plot(np.arange(1, len(lines) + 1), values, marker=marker, **style)
        for change in (i for i in range(1, len(lines)) if lines[i]["phase"] != lines[i - 1]["phase"]):
            axes.axvline(change + 0.5, color="0.8", linewidth=0.8, zorder=0)
        axes.set_title(title, fontsize=9, parse_math=False)
        axes.set_xlabel("epoch", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.tick_params(labelsize=8)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid:  # panels without a training
        axes.set_visible(False)
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    _save(figure, path)


def bars_plot(bars: Mapping[str, Mapping[str, float | None]], path: str | Path, *, label: str = "accuracy (%)") -> None:
    """Bars in groups: one group per system, one bar per source, such as `published`; no bar for None.

    Args:
        bars: system -> source -> percent, in order; every system has the same sources.
        path: the PNG to write; its folder is made when absent.
        label: the label of the axis.

    Raises:
        InvalidInputError: if the file cannot be written.
    """
    sources = list(next(iter(bars.values())))
    figure = Figure(figsize=(max(6.0, 0.75 * len(bars)), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(sources)
    for number, source in enumerate(sources):
        at = np.arange(len(bars)) + (number - (len(sources) - 1) / 2) * width
        heights = np.array([np.nan if group[source] is None else group[source] for group in bars.values()], float)
        drawn = axes.bar(at, heights, width, label=source, color=COLOURS[number % len(COLOURS)])
        axes.bar_label(drawn, ["" if np.isnan(h) else f"{h:.0f}" for h in heights], fontsize=7)
    axes.set_xticks(np.arange(len(bars)), list(bars), rotation=35, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_ylim(0, 100)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def embeddings_plot(
    panels: Sequence[tuple[str, np.ndarray, np.ndarray]],
    class_names: Sequence[str],
    path: str | Path,
    *,
    title: str = "",
) -> None:
    """Points in the plane, coloured by class, with one panel per network.

    Args:
        panels: (title, points [N, 2], classes [N]).
        class_names: name of each class.
        path: the PNG to write; its folder is made when absent.
        title: written above all.

    Raises:
        InvalidInputError: if the file cannot be written.
    """
    figure = Figure(figsize=(3.6 * len(panels) + 1.2, 3.9), layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)
    colours = colormaps["tab10" if len(class_names) <= 10 else "tab20"]
    for axes, (name, points, labels) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        for number, label in enumerate(class_names):
            here = labels == number
            axes.scatter(*points[here].T, s=16, color=colours(number % colours.N), label=_short(label), linewidths=0)
        axes.set_title(name, fontsize=9, parse_math=False)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    _save(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
