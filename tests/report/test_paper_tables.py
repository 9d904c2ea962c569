"""Published beside measured: means, spreads and differences by hand, and a page that needs nothing beside it."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from keras_rcl.evaluation.intervals import interval
from keras_rcl.report.paper_page import paper_page
from keras_rcl.report.paper_tables import (
    Setup,
    captions,
    claims_grid,
    differences_grid,
    markdown_report,
    paper_report,
    setups_grid,
    table_data,
    table_grid,
)
from keras_rcl.report.verdicts import Measured, mean_and_spread
from keras_rcl.vocabulary.attacks import FGSM
from keras_rcl.vocabulary.paper import Claim, Clean, Column, Comparison, Paper, Robust, Row, Table, Verified

FGSM_PIXEL = Robust(attack=FGSM())
TABLE = Table(
    name="Table 1",
    caption="A & B",
    protocol="claf-repo",
    columns=(Column(title="clean", measures=(Clean(),)), Column(title="FGSM", measures=(FGSM_PIXEL,))),
    rows=(
        Row(label="Ours", config="ours", published=(90.0, 60.4)),
        Row(label="AT", config="at", published=(84.8, 44.7)),
        Row(label="New", config="new"),
    ),
    comparisons=(Comparison(row="Ours", against="AT"), Comparison(row="New", against="AT")),
    claims=(
        Claim(text="better", columns=("clean",), pairs=(Comparison(row="Ours", against="AT"),)),
        Claim(text="better in both", columns=("clean", "FGSM"), pairs=(Comparison(row="Ours", against="AT"),)),
        Claim(text="worse", columns=("clean",), pairs=(Comparison(row="AT", against="Ours"),)),
        Claim(
            text="better than both",
            columns=("clean",),
            pairs=(Comparison(row="Ours", against="AT"), Comparison(row="Ours", against="New")),
        ),
        Claim(
            text="worse than both",
            columns=("clean",),
            pairs=(Comparison(row="AT", against="Ours"), Comparison(row="New", against="Ours")),
        ),
        Claim(text="of what nobody published", columns=("FGSM",), pairs=(Comparison(row="New", against="AT"),)),
    ),
    notes=("a < b",),
)
MEASURED = {
    ("ours", Clean()): Measured({0: 70.0, 1: 72.0, 2: 74.0}, 1000),
    ("ours", FGSM_PIXEL): Measured({0: 30.0, 1: 33.0, 2: 36.0}, 1000),
    ("at", Clean()): Measured({0: 60.0, 1: 64.0, 2: 65.0}, 1000),
    ("at", FGSM_PIXEL): Measured({0: 31.0, 1: 32.0, 2: 36.0}, 1000),
    ("new", Clean()): Measured({1: 50.0}, 500),
}


def lookup(row, measure):
    return MEASURED.get((row, measure))


def test_means_spreads_images_and_what_is_not_measured():
    """72 +- 2 of 70, 72, 74; 63 +- sqrt(7) of 60, 64, 65; and half the images of the others."""
    grid = table_grid(table_data(TABLE, lookup))
    assert grid.groups == (("", 1), ("clean", 2), ("FGSM", 2), ("", 1))
    assert grid.header == ("", "published", "here", "published", "pixel", "seeds")
    assert grid.rows == (
        ("Ours", "90.0", "72.0 ± 2.0", "60.4", "33.0 ± 3.0", "3"),
        ("AT", "84.8", "63.0 ± 2.6", "44.7", "33.0 ± 2.6", "3"),
        ("New", "", "50.0 (500)", "", "—", "1"),
    )


def test_differences_are_of_the_seeds_that_both_have():
    """Clean: 10, 8 and 9, 9 +- 1. FGSM: -1, 1 and 0, 0 +- 1. `New` is on other images: not compared.

    Over images the standard errors are sqrt(0.72 * 0.28 + 0.63 * 0.37) / sqrt(1000) = 2.09 and 2.10 points, over seeds
    1 / sqrt(3) = 0.58, so 2.16 and 2.18 together; Student's t of some 400 degrees of freedom is 1.966.
    """
    grid = differences_grid(table_data(TABLE, lookup))
    assert grid.rows == (("Ours less AT", "+5.2", "+9.0 ± 1.0 [+4.7, +13.3]", "+15.7", "+0.0 ± 1.0 [−4.3, +4.3]"),)


def test_a_claim_holds_where_each_of_its_differences_is_decided():
    """Ours less AT: 9 +- 1 clean, 0 +- 1 under FGSM. `New` is compared with nothing: one that falls decides, one that
    holds does not."""
    rows = claims_grid(table_data(TABLE, lookup)).rows
    assert rows == (
        ("better", "+5.2", "holds (+9.0)"),
        ("better in both", "+5.2", "not decided (within its spread; within its sampling error)"),
        ("worse", "−5.2", "does not hold (−9.0)"),
        ("better than both", "+5.2", "not decided (not all measured)"),
        ("worse than both", "−5.2", "does not hold (−9.0)"),
        ("of what nobody published", "—", "—"),
    )


OTHER = Robust(attack=FGSM().with_protocol("claf-repo"))
SETUP = Setup(network="small_cnn", epochs=1, data="digits", images=9, versions=("0.1.0",), seeds=(0, 1, 2))


def under(**protocols) -> dict[str, Setup]:
    """Config -> a set-up whose networks were trained under a protocol, or under none."""
    return {row: dataclasses.replace(SETUP, protocols=(name,) if name else ()) for row, name in protocols.items()}


def of_two_protocols(setups, **rows) -> str:
    """The verdict of "Ours is above AT" with columns of two protocols, from percents by config at three seeds."""
    configs = {"ours": "Ours", "at": "AT", "ours_repo": "Ours, trained under claf-repo"}
    table = Table(
        name="Table 1",
        caption="",
        columns=(Column(title="FGSM", measures=(FGSM_PIXEL, OTHER)),),
        rows=tuple(
            Row(label=configs[row], config=row, in_place_of="Ours" if row == "ours_repo" else "") for row in rows
        ),
        claims=(Claim.above("above", ("FGSM",), "Ours", "AT"),),
    )

    def measured(row, measure):
        value = rows[row][measure is OTHER]
        return Measured({seed: value + 0.1 * seed for seed in range(3)}, 10_000)

    return claims_grid(table_data(table, measured, setups)).rows[0][1]


def test_a_claim_is_judged_for_each_protocol_on_rows_trained_under_it():
    """Ours is above in pixels, under which both were trained; under claf-repo no number decides."""
    both = of_two_protocols(under(ours="pixel", at="pixel"), ours=(40, 20), at=(30, 30))
    assert both == "pixel: holds (+10.0); claf-repo: not decided (trained under pixel: Ours, AT)"


def test_a_row_without_attack_is_judged_under_any_protocol():
    both = of_two_protocols(under(ours="", at=""), ours=(40, 20), at=(30, 30))
    assert both == "pixel: holds (+10.0); claf-repo: does not hold (−10.0)"


def test_a_row_trained_under_a_protocol_stands_for_its_system_there():
    """28 of the row that was trained under claf-repo counts there, not the 5 of the row trained in pixels."""
    rows = dict(ours=(40, 5), at=(30, 12), ours_repo=(0, 28))
    setups = under(ours="pixel", at="", ours_repo="claf-repo")
    assert of_two_protocols(setups, **rows) == "pixel: holds (+10.0); claf-repo: holds (+16.0)"


def test_rows_in_the_place_of_both_rows_are_compared_as_they_are():
    """Natural has no row in its place, so it is compared once."""
    labels = {"Ours": "", "AT": "", "Natural": "", "Ours, repo": "Ours", "AT, repo": "AT"}
    rows = tuple(Row(label=label, config=label, in_place_of=other) for label, other in labels.items())
    pairs = tuple(Comparison(row="Ours", against=other) for other in ("AT", "Natural"))
    column = Column(title="clean", measures=(Clean(),))
    table = Table(name="Table 1", caption="", columns=(column,), rows=rows, comparisons=pairs)
    found = [(one["row"], one["against"]) for one in table_data(table, lambda row, measure: None)["differences"]]
    assert found == [("Ours", "AT"), ("Ours", "Natural"), ("Ours, repo", "AT, repo")]


def test_clean_accuracy_is_compared_within_one_protocol_of_training():
    claims = claims_grid(table_data(TABLE, lookup, under(ours="claf-repo", at="pixel"))).rows
    assert claims[0][2] == "not decided (trained under claf-repo: Ours; trained under pixel: AT)"
    assert claims_grid(table_data(TABLE, lookup, under(ours="claf-repo", at=""))).rows[0][2] == "holds (+9.0)"


def test_a_claim_on_two_columns_of_each_row():
    """70, 72, 74 clean are 40, 39 and 38 above 30, 33, 36 under FGSM, for `Ours`; published 90.0 less 60.4."""
    pairs = (Comparison(row="Ours", against="Ours"),)
    claim = Claim(text="weaker under attack", columns=("clean",), pairs=pairs, above_column="FGSM")
    data = table_data(dataclasses.replace(TABLE, claims=(claim,)), lookup)
    assert claims_grid(data).rows == (("weaker under attack", "+29.6", "holds (+39.0)"),)


def test_of_one_seed_no_spread_is_told_and_nothing_is_decided():
    one = {("ours", Clean()): Measured({0: 70.0}, 10), ("at", Clean()): Measured({0: 20.0}, 10)}
    data = table_data(TABLE, lambda row, measure: one.get((row, measure)))
    # 1.96 sqrt((0.7 * 0.3 + 0.2 * 0.8) / 10) is 0.377
    assert differences_grid(data).rows == (("Ours less AT", "+5.2", "+50.0 [+12.3, +87.7]", "+15.7"),)
    assert claims_grid(data).rows[0] == ("better", "+5.2", "not decided (one seed)")


def test_nothing_measured_is_a_table_of_what_is_published():
    data = table_data(TABLE, lambda row, measure: None)
    assert differences_grid(data) is None
    assert table_grid(data).rows[0] == ("Ours", "90.0", "—", "60.4", "—", "")


def test_a_table_of_ours_has_no_published_column():
    """The differences of the seeds are 10, 8 and 9, and nobody published any."""
    rows = tuple(dataclasses.replace(row, published=()) for row in TABLE.rows)
    data = table_data(dataclasses.replace(TABLE, rows=rows, claims=TABLE.claims[:1], protocol=""), lookup)
    assert table_grid(data).header == ("", "here", "pixel", "seeds")
    assert differences_grid(data).rows[0][:2] == ("Ours less AT", "+9.0 ± 1.0 [+4.7, +13.3]")
    assert claims_grid(data).header == ("conclusion", "measured")
    assert claims_grid(data).rows == (("better", "holds (+9.0)"),)
    assert captions(data) == ["Measured on 1000 test images, or on the number in brackets.", "a < b"]


def test_counts_of_several_seeds_are_added():
    verified = Verified(epsilon=1 / 255)
    table = Table(
        name="Table 1",
        caption="",
        protocol="",
        columns=(Column(title="counts", measures=(verified,)),),
        rows=(Row(label="Normal", config="normal", published=("8 / 9 / 3",)),),
    )
    counts = {"timeout": 1, "safe": 2, "safe-incomplete": 3, "unsafe": 4, "unknown": 0}
    found = Measured({0: counts, 1: counts}, 20)
    grid = table_grid(table_data(table, lambda row, measure: found))
    assert grid.header == ("", "published", "at 1/255", "seeds")
    assert grid.rows == (("Normal", "8 / 9 / 3", "2 / 4 / 6 of 20", "2"),)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=5))
def test_the_spread_is_the_standard_deviation(values):
    mean, spread = mean_and_spread(values)
    assert (mean, spread) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1), abs=1e-6))


@pytest.fixture
def report():
    paper = Paper(name="p", title="P < Q", reference="A & B 2020", tables=(TABLE,), notes=("of all",))
    return paper_report(paper, "cpu", lookup, [{"row": "new", "command": "python cli.py fit --config new.yaml"}])


def test_markdown(report):
    text = markdown_report(report)
    assert "| Ours | 90.0 | 72.0 ± 2.0 | 60.4 | 33.0 ± 3.0 | 3 |" in text
    assert "|  | clean: published | clean: here | FGSM: published | FGSM: pixel | seeds |" in text
    assert "| better | +5.2 | holds (+9.0) |" in text
    assert "- Published under: claf-repo. Measured on 1000 test images" in text
    assert "# new\npython cli.py fit --config new.yaml" in text and "- a < b" in text and "- of all" in text


def test_the_page_holds_all_that_it_shows(report, tmp_path):
    picture = tmp_path / "figure.png"
    picture.write_bytes(b"\x89PNG")
    page = paper_page(report, [("a <b>", picture)], ["not drawn"])
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["data:image/png;base64,iVBORw=="]
    assert "P &lt; Q" in page and "A &amp; B" in page and "a &lt;b&gt;" in page and "<li>not drawn</li>" in page
    assert '<th colspan="2">clean</th>' in page and '<td class="published">90.0</td>' in page
    assert '<td>better</td><td class="published">+5.2</td><td>holds (+9.0)</td>' in page
    assert "python cli.py fit --config new.yaml" in page


SETUPS = {
    "ours": Setup(network="small_cnn", epochs=30, data="digits", images=900, versions=("0.1.0",), seeds=(0, 1)),
    "at": Setup("small_cnn", 10, "digits", 900, ("0.2.0",), protocols=("claf-repo", "pixel"), seeds=(0,)),
    "new": None,
}


def test_a_report_says_what_was_trained_here_when_and_by_what():
    """A published number is of the paper's network; the page says which network, epochs and images are beside it."""
    paper = Paper(name="p", title="P", reference="A 2020", tables=(TABLE,))
    report = paper_report(paper, "cpu", lookup, [], SETUPS)
    assert setups_grid(report["tables"][0]).rows == (
        ("Ours", "cpu", "small_cnn", "no attack", "0, 1", "30", "900", "digits", "0.1.0"),
        ("AT", "cpu", "small_cnn", "claf-repo, pixel", "0", "10", "900", "digits", "0.2.0"),
    )
    assert "| AT | cpu | small_cnn | claf-repo, pixel | 0 | 10 | 900 | digits | 0.2.0 |" in markdown_report(report)
    assert "<td>claf-repo, pixel</td>" in paper_page(report, [])
    assert "Made on" not in markdown_report(report)
    report["made"] = {"date": "2026-11-28", "version": "0.2.0", "commit": "0123456789abcdef"}
    for text in (markdown_report(report), paper_page(report, [])):
        assert "Made on 2026-11-28 by keras_rcl 0.2.0, commit 0123456789ab." in text
    report["made"]["commit"] = None
    assert "Made on 2026-11-28 by keras_rcl 0.2.0." in paper_page(report, [])


@pytest.mark.parametrize("setups", [None, {}, {"ours": None}])
def test_a_report_without_runs_says_nothing_of_them(setups):
    data = table_data(TABLE, lookup, setups)
    assert setups_grid(data) is None


@pytest.mark.parametrize(("percent", "images"), [(50.0, 500), (0.0, 1000), (100.0, 7), (14.4, 125)])
def test_the_page_has_the_interval_of_one_seed(percent, images):
    """That of SciPy's binomial test; several seeds have their spread instead, and counts nothing."""
    found = Measured({0: percent}, images)
    grid = table_grid(table_data(TABLE, lambda row, measure: found if row == "new" else None), interval)
    exact = binomtest(round(percent / 100 * images), images).proportion_ci(method="exact")
    assert grid.rows[2][2] == f"{percent:.1f} [{100 * exact.low:.1f}, {100 * exact.high:.1f}]"
    assert table_grid(table_data(TABLE, lookup), interval).rows[0][2] == "72.0 ± 2.0"


def test_a_page_is_dark_where_the_reader_wants_it_and_fits_a_phone(report):
    page = paper_page(report, [])
    dark = re.search(r"@media \(prefers-color-scheme: dark\) \{\s*:root \{([^}]*)\}", page)[1]
    light = re.search(r":root \{([^}]*)\}", page)[1]
    names = set(re.findall(r"(--[a-z-]+):", light))
    assert names == set(re.findall(r"(--[a-z-]+):", dark)) == set(re.findall(r"var\((--[a-z-]+)\)", page)) | {"--alarm"}
    assert 'content="width=device-width, initial-scale=1"' in page and "max-width: 40rem" in page
    tables, scrolled = page.count("<table>"), len(re.findall(r'<div class="wide[^"]*"><table>', page))
    assert tables == scrolled > 0
