"""A paper's tables as values: what is refused, and that those that ship are whole."""

import numpy as np
import pytest

from keras_rcl.config import CONFIGS
from keras_rcl.errors import InvalidInputError
from keras_rcl.papers import PAPERS
from keras_rcl.papers.landsman import mean_probability
from keras_rcl.vocabulary.paper import Bars, Claim, Clean, Column, Comparison, Paper, Row, Table

COLUMNS = (Column(title="clean", measures=(Clean(),)),)


ROWS = (Row(label="A", config="a"), Row(label="B", config="b"))


def claim(other: str, *columns: str) -> Claim:
    return Claim(text="", columns=columns, pairs=(Comparison(row="A", against=other),))


def table(**changes) -> Table:
    rows = (Row(label="A", config="a", published=(1.0,)), Row(label="B", config="b"))
    return Table(**{"name": "Table 1", "caption": "", "protocol": "", "columns": COLUMNS, "rows": rows, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": (Row(label="A", config="a"), Row(label="A", config="b"))}, "two rows of one label"),
        ({"rows": (Row(label="A", config="a", published=(1.0, 2.0)),)}, "2 values for 1 columns"),
        ({"comparisons": (Comparison(row="A", against="C"),)}, "no row 'C'"),
        ({"claims": (claim("C", "clean"),)}, "no row 'C'"),
        ({"claims": (claim("B", "robust"),)}, "no column 'robust'"),
        ({"columns": (*COLUMNS, Column(title="x")), "claims": (claim("B", "clean", "x"),), "rows": ROWS}, "unlike"),
    ],
)
def test_a_table_that_is_not_whole_is_refused(changes, said):
    with pytest.raises(InvalidInputError, match=said):
        table(**changes)


def test_a_figure_names_a_table_of_its_paper():
    with pytest.raises(InvalidInputError, match="has no Table 2"):
        Paper(name="p", title="P", reference="", tables=(table(),), figures=(Bars(title="", table="Table 2"),))


def test_bars_are_of_a_column_of_their_table():
    with pytest.raises(InvalidInputError, match="has no column 'robust'"):
        figures = (Bars(title="", table="Table 1", column="robust"),)
        Paper(name="p", title="P", reference="", tables=(table(),), figures=figures)


def test_a_row_wants_each_measure_of_its_tables_once():
    other = table(name="Table 2", rows=(Row(label="A", config="a"),))
    paper = Paper(name="p", title="P", reference="", tables=(table(), other))
    assert list(paper.measures("a")) == [Clean()] and paper.configs == ("a", "b")


@pytest.mark.parametrize("paper", PAPERS.values(), ids=PAPERS)
def test_each_row_of_a_paper_has_its_file_and_each_file_its_row(paper):
    assert {path.stem for path in (CONFIGS / "papers" / paper.name).glob("*.yaml")} == set(paper.configs)
    panels = [panel for figure in paper.figures for panel in getattr(figure, "panels", ())]
    assert {panel[1] for panel in panels} <= set(paper.configs)
    lines = [(figure.table, label) for figure in paper.figures for label in getattr(figure, "rows", ())]
    assert all(any(row.label == label for row in paper.table(name).rows) for name, label in lines)


def test_landsmans_losses_are_mean_probabilities_of_the_right_class():
    """Cross-entropy of probabilities, computed for networks from uniform to certain; and the paper's PGD - CE."""
    rng = np.random.default_rng(0)
    for sharpness in (0.0, 1.0, 5.0, 50.0):
        logits = sharpness * rng.normal(size=(200, 1000))
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        loss = (np.log(np.exp(p).sum(1)) - p[:, 0]).mean()
        assert mean_probability(str(loss)) == pytest.approx(100 * p[:, 0].mean(), abs=0.1)
    (row,) = (row for row in PAPERS["landsman"].table("Table 2").rows if row.label == "PGD - CE Loss")
    assert row.published == ("6.2583", "6.2300", 65.1, 67.9)


def test_one_system_is_published_with_one_number():
    """CLAF's own row stands in six tables, where the paper has the same accuracies."""
    own = [
        (column.title, value)
        for table in PAPERS["claf"].tables
        for row in table.rows
        for column, value in zip(table.columns, row.published, strict=False)
        if row.config == "clafs" and value is not None
    ]
    assert len(dict(own)) == len(set(own)) == 6
