"""The figures are PNGs of a sane size, show what they are given, and leave nothing half-written."""

import numpy as np
import pytest
from matplotlib import font_manager, pyplot
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from keras_rcl.errors import InvalidInputError
from keras_rcl.report import figures
from keras_rcl.report.figures import (
    RIGHT,
    WRONG,
    accuracy_epsilon_plot,
    attack_pictures,
    bars_plot,
    embeddings_plot,
    loss_curves_plot,
)

CURVES = {
    "PGD-40": [(8 / 255, 0.4), (0.0, 0.9), (16 / 255, 0.1)],
    "worst case": [(0.0, 0.9), (8 / 255, 0.35), (16 / 255, 0.05)],
}


@pytest.fixture
def saved(monkeypatch) -> list[Figure]:
    """The figures that were saved, to look into."""
    caught, save = [], figures._save
    monkeypatch.setattr(figures, "_save", lambda figure, path: (caught.append(figure), save(figure, path)))
    return caught


def size(path) -> tuple[int, int]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.size


def attacked(count: int, path, class_names=tuple("0123456789"), **predictions) -> None:
    rng = np.random.default_rng(0)
    clean = rng.random((count, 8, 8, 1), dtype=np.float32)
    labels = np.arange(count) % 10
    attack_pictures(
        clean,
        np.clip(clean + rng.choice([-0.1, 0.1], clean.shape), 0, 1),
        labels,
        predictions.get("clean", labels),
        predictions.get("adversarial", labels),
        class_names,
        path,
        epsilon_text="PGD-40 linf 8/255",
    )


def test_accuracy_against_epsilon(tmp_path, saved):
    path = tmp_path / "deep" / "curve.png"
    accuracy_epsilon_plot(CURVES, path, title="$clafs")
    assert size(path) == (900, 600)
    assert [file.name for file in path.parent.iterdir()] == ["curve.png"]
    (axes,) = saved[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "8/255", "16/255"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(CURVES)
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0, 8 / 255, 16 / 255])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [90, 40, 10])
    assert axes.lines[1].get_color() == "black"


def test_epsilons_of_l2_are_decimals(tmp_path, saved):
    accuracy_epsilon_plot({"PGD-40": [(0.0, 1.0), (0.25, 0.5)]}, tmp_path / "l2.png", norm="l2")
    assert [label.get_text() for label in saved[0].axes[0].get_xticklabels()] == ["0", "0.25"]


def test_pictures_say_what_was_predicted(tmp_path, saved):
    path = tmp_path / "pictures.png"
    names = ["cat", "a name that is longer than a column", "$dog"]
    attacked(3, path, names, adversarial=np.array([0, 2, 1]))
    captions = {text.get_text(): text.get_color() for text in saved[0].axes[0].texts}
    assert captions["true cat"] == "black"
    assert captions["clean a name that i…"] == RIGHT
    assert captions["adv. cat"] == RIGHT
    assert captions["adv. $dog"] == WRONG
    assert len(saved[0].axes[0].texts) == 9


@pytest.mark.parametrize("count", [1, 8, 11])
def test_any_number_of_pictures(tmp_path, saved, count):
    path = tmp_path / "pictures.png"
    attacked(count, path)
    width, height = size(path)
    assert 600 < width < 1600 and 500 < height < 1400
    assert len(saved[0].axes) == -(-count // 8)


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot write to"):
        accuracy_epsilon_plot(CURVES, tmp_path / "file" / "curve.png")


def test_pyplot_keeps_no_state(tmp_path):
    accuracy_epsilon_plot(CURVES, tmp_path / "curve.png")
    assert pyplot.get_fignums() == []


def test_loss_curves(tmp_path, saved):
    """A panel a training, each term a line where the panel has it, and a rule between phases."""
    one = [
        {"phase": "train", "epoch": epoch, "loss": loss, "cross_entropy": loss} for epoch, loss in ((1, 3.0), (2, 2.0))
    ]
    two = [
        {"phase": "baseline", "epoch": 1, "loss": 4.0, "cross_entropy": 4.0},
        {"phase": "refinement", "epoch": 1, "loss": 5.0, "cross_entropy": 2.0, "supcon": 8.0},
    ]
    loss_curves_plot([("one", one), ("two", two), ("three", one)], tmp_path / "losses.png", columns=2)
    first, second, third, left = saved[0].axes
    assert [axes.get_title() for axes in (first, second, third)] == ["one", "two", "three"]
    assert not left.get_visible()
    assert [line.get_label() for line in first.lines] == ["cross_entropy", "loss, all terms"]
    np.testing.assert_array_equal(first.lines[1].get_ydata(), [3, 2])
    by_name = {line.get_label(): line for line in second.lines}
    np.testing.assert_array_equal(by_name["supcon"].get_ydata(), [np.nan, 8])
    assert any(list(line.get_xdata()) == [1.5, 1.5] for line in second.lines)


def test_bars(tmp_path, saved):
    bars_plot(
        {"A": {"published": 60.4, "measured": None}, "B": {"published": 1.0, "measured": 20.0}}, tmp_path / "b.png"
    )
    (axes,) = saved[0].axes
    published, measured = axes.containers
    assert [bar.get_height() for bar in published] == [60.4, 1.0]
    assert np.isnan(measured[0].get_height()) and measured[1].get_height() == 20.0
    assert [text.get_text() for text in axes.texts] == ["60", "1", "", "20"]


def test_embeddings(tmp_path, saved):
    points, labels = np.arange(12.0).reshape(6, 2), np.array([0, 1, 2, 0, 1, 2])
    embeddings_plot([("plain", points, labels), ("ours", points, labels)], "abc", tmp_path / "e.png", title="t-SNE")
    panels = saved[0].axes
    assert [axes.get_title() for axes in panels] == ["plain", "ours"]
    np.testing.assert_array_equal(panels[0].collections[1].get_offsets(), points[labels == 1])
    assert [text.get_text() for text in saved[0].legends[0].get_texts()] == ["a", "b", "c"]


def test_characters_that_no_font_has_are_escaped(tmp_path, saved, monkeypatch):
    """matplotlib's warning about a missing glyph would be an error here."""
    known = figures._characters
    monkeypatch.setattr(figures, "_characters", lambda font: known(font) if "DejaVu" in font else frozenset())
    figures._families_with.cache_clear()
    attacked(2, tmp_path / "cats.png", class_names=("猫", "Häuser", *"23456789"))
    drawn = [text.get_text() for text in saved[0].findobj(Text)]
    assert r"true \u732b" in drawn and "true Häuser" in drawn


def test_a_font_that_has_the_characters_is_taken(tmp_path, saved, monkeypatch):
    """Another font than the default that has a character of the name, or what stands for one."""
    default = font_manager.findfont("DejaVu Sans")
    monkeypatch.setattr(
        figures, "_characters", lambda font: frozenset("true a") if font == default else frozenset("猫")
    )
    figures._families_with.cache_clear()
    text = Figure().text(0, 0, "true 猫")
    figures._make_drawable(text)
    assert text.get_text() == "true 猫" and len(text.get_fontfamily()) == 2
    figures._families_with.cache_clear()
