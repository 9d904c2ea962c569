"""Ranges as they are written, and where a method's settings are looked for when nothing is said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_rcl import config
from keras_rcl.errors import InvalidInputError
from keras_rcl.methods import VARIANTS
from keras_rcl.vocabulary.search import Choice, Interval, default_search, parse_range, parse_search


@given(st.sampled_from(["uniform", "log"]), st.integers(1, 99), st.integers(1, 99))
def test_fractions_are_what_they_say(name, numerator, denominator):
    found = parse_range(f"{name}({numerator}/{denominator}, {numerator + 1}/{denominator})")
    assert found == Interval(name=name, low=numerator / denominator, high=(numerator + 1) / denominator)
    assert [float(end) for end in found.ends] == [found.low, found.high]


def test_choices_may_hold_commas_of_their_own():
    found = parse_range("choice([encoder, classifier], {name: simclr, min_area: 0.6}, none)")
    assert found == Choice(values=("[encoder, classifier]", "{name: simclr, min_area: 0.6}", "none"))


def test_whole_numbers_stay_whole():
    assert parse_range("int(2, 20)").ends == ("2", "20")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3", "'3' is not a range"),
        ("lgo(1, 2)", "did you mean 'log'"),
        ("log(0, 1)", "no logarithm"),
        ("log(1)", "has 1 ends"),
        ("uniform(2, 1)", "is empty"),
        ("uniform(a, 1)", "must be numbers"),
        ("uniform(1/0, 2)", "must be numbers"),
        ("uniform(1, 1e999)", "must be numbers"),
        ("int(1.5, 3)", "whole numbers"),
        ("choice(64)", "at least 2"),
        ("choice(64, 64)", "twice"),
    ],
)
def test_what_is_no_range_is_refused(text, said):
    with pytest.raises(InvalidInputError, match=said.replace("(", r"\(")):
        parse_range(text)


def test_a_search_names_its_setting():
    assert parse_search("method.temperature = log(0.05, 0.5)")[0] == "method.temperature"
    for text in ("log(0.05, 0.5)", "=log(0.05, 0.5)"):
        with pytest.raises(InvalidInputError, match="SETTING=RANGE"):
            parse_search(text)


def test_the_settings_that_the_papers_tuned():
    assert set(default_search(_fields("margin_scl"))) == {
        "method.batch_size",
        "method.alpha",
        "method.beta",
        "method.positive_margin",
        "method.negative_margin",
        "method.optimizer.learning_rate",
    }
    assert "method.contrast.temperature" in default_search(_fields("at_scl"))
    trades = default_search(_fields("trades"))
    assert trades["method.beta"] == Interval(name="log", low=1.5, high=24)
    assert not any("attack" in setting for setting in trades)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_takes_the_ends_of_its_default_ranges(variant):
    found = default_search(_fields(variant))
    assert any(setting.endswith("learning_rate") for setting in found)
    for setting, values in found.items():
        for end in values.ends:
            config.load(None, variant, [f"{setting}={end}"])


def _fields(variant: str) -> dict:
    return config.to_dict(config.load(None, variant))["method"]
