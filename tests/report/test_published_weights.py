"""Rows of a paper that are measured on the authors' own weights: records are found by the hash of their file."""

import dataclasses
import json
from pathlib import Path

import pytest

from keras_rcl.papers import PAPERS
from keras_rcl.papers.cusin import PUBLISHED_FILES, published_attack
from keras_rcl.report.paper_tables import table_data, table_grid
from keras_rcl.report.records import Results
from keras_rcl.vocabulary.paper import Row

ROOT = Path(__file__).parents[2]
CUSIN = PAPERS["cusin"]


def write(path, weights, attack, images=10_000, robust=0.4):
    shares = {"clean_accuracy": 0.8, "adversarial_accuracy": 0.4, "attack_failure_rate": 0.5}
    row = {"attack": "any", "norm": "linf", "epsilon": 1 / 255, "robust_accuracy": robust, **shares}
    record = {
        **dict(format=1, command="", protocol="cusin-repo", seed=0, versions={}, clean_accuracy=0.8),
        "model": {"name": "any", "hash": "h", "weights": weights},
        "data": {"name": "cifar10", "part": "test", "indices": [[0, images - 1]]},
        "images": images,
        "attacks": [attack],
        "rows": [{**row, "attack_success_rate": 1 - robust / 0.8}],
        "survival": {"clean": "1" * images, "attacks": ["0" * images]},
    }
    path.write_text(json.dumps(record))


def test_records_of_imported_weights_stand_in_their_row(tmp_path):
    table = CUSIN.table("Published networks")
    row = table.rows[0]
    write(tmp_path / "a.json", row.weights, dataclasses.asdict(published_attack(1)))
    write(tmp_path / "b.json", row.weights, {"name": "autoattack", "epsilon": 2 / 255}, images=1000, robust=0.2)
    write(tmp_path / "c.json", "of something else", dataclasses.asdict(published_attack(2)))
    grid = table_grid(table_data(table, Results(tmp_path).lookup({})))
    found = dict(zip(grid.header, grid.rows[0], strict=False))
    assert found["here"] == "80.0"
    cells = grid.rows[0]
    assert cells[:6] == ("Normal", "67.71", "80.0", "34.6", "50.0", "64.3") and "20.0" in cells
    assert {cell for line in grid.rows[1:] for cell in line[2:3]} == {"—"}


def test_both_labellings_of_figure_4():
    """The products of the paper's plot and of the weights' order, by hand for the normal network at 1/255."""
    rows = {row.label: row.published for row in CUSIN.table("Figure 4, both labellings").rows}
    plotted, corrected = 79.70 * (1 - 0.346182), 79.70 * (1 - 0.162338)
    assert rows["Normal, augmented"][:2] == (round(plotted, 1), round(corrected, 1)) == (52.1, 66.8)


def test_the_committed_records_reproduce_the_log_as_the_notes_say():
    """Accuracies within 0.04 points, 59 of 60 success rates within 0.2, the first group that of `augmentation`."""
    table, found = CUSIN.table("Published networks"), Results(ROOT / "results")
    measures = [column.measures[0] for column in table.columns[:6]]
    apart = [
        [
            abs(found.measured_weights(row.weights, m).values[0] - x)
            for m, x in zip(measures, row.published, strict=False)
        ]
        for row in table.rows
    ]
    accuracies, rates = [row[0] for row in apart], [value for row in apart for value in row[1:]]
    assert max(accuracies) < 0.041 and len(rates) == 60
    assert sum(value <= 0.2 + 0.05 for value in rates) == 59 and max(rates) < 0.6  # the log is rounded to 0.1 here
    normal = {row.label: found.measured_weights(row.weights, measures[1]).values[0] for row in table.rows}
    assert (round(normal["Normal, augmented"], 1), round(normal["Normal"], 1)) == (16.2, 34.7)


def test_bars_of_figure_4_have_both_labellings():
    bars = [figure for figure in CUSIN.figures if figure.kind == "bars" and figure.beside]
    assert [(figure.column, figure.beside) for figure in bars] == [
        (f"{epsilon}/255", f"{epsilon}/255 plotted") for epsilon in (1, 2, 4, 8, 16)
    ]


def test_twelve_networks_have_files_and_hashes():
    rows = CUSIN.table("Published networks").rows
    assert len(PUBLISHED_FILES) == len({row.weights for row in rows}) == 12
    assert not set(CUSIN.configs) & {row.weights for row in rows}


def test_a_row_has_a_config_or_weights():
    with pytest.raises(ValueError, match="has a config and weights, or none of them"):
        Row(label="a")
