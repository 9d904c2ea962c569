"""Distances in pixels: written as the field writes them, and the 0-255 mistake."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import BIM, FGSM, PGD, AutoAttack, CarliniWagner, Stored, Transfer
from keras_rcl.vocabulary.claim import Claim
from keras_rcl.vocabulary.threat import Pixels, ThreatModel, format_pixels, parse_pixels

quick = settings(max_examples=300)


@quick
@given(st.floats(0, 1e6, allow_nan=False) | st.integers(0, 255).map(lambda n: n / 255))
def test_round_trip(value):
    assert parse_pixels(format_pixels(value)) == value
    pixels = TypeAdapter(Pixels)
    assert pixels.validate_json(pixels.dump_json(value)) == value


@quick
@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_fraction_is_its_quotient(numerator, denominator):
    assert parse_pixels(f"{numerator}/{denominator}") == numerator / denominator
    assert parse_pixels(f" {numerator} / {denominator} ") == numerator / denominator
    assert parse_pixels(f"{numerator}.5/{denominator}") == (2 * numerator + 1) / (2 * denominator)


def test_multiples_of_1_255_print_as_such():
    assert [format_pixels(n / 255) for n in range(1, 255)] == [f"{n}/255" for n in range(1, 255)]


@pytest.mark.parametrize(
    "value, text",
    [(0.0, "0"), (1.0, "1"), (0.031, "0.031"), (0.5, "0.5"), (1e-5, "1e-05"), (2.0, "510/255"), (0.05, "0.05")]
    + [(0.5 / 255, "0.5/255"), (2.25 / 255, "2.25/255"), (0.0123456789, "0.0123456789")],
)
def test_other_distances(value, text):
    assert format_pixels(value) == text


@pytest.mark.parametrize(
    "value",
    [
        "-1",
        "-1/255",
        "nan",
        "inf",
        "8/0",
        "abc",
        "",
        "8/255/2",
        "8/",
        "/255",
        "0.5/0.0",
        "1 0/255",
        "1e999",
        "1e99999999",
        "1e-99999999",
        -0.1,
        math.nan,
        math.inf,
        None,
        [8],
    ],
)
def test_no_distance(value):
    with pytest.raises(ValueError, match="is not a distance") as caught:
        parse_pixels(value)
    assert repr(value) in str(caught.value) and "8/255" in str(caught.value)


@pytest.mark.parametrize("epsilon", ["8", 8, 8.0, "16", 255, 1.0001])
@pytest.mark.parametrize("make", [ThreatModel, FGSM, BIM, PGD])
def test_an_epsilon_in_0_255_is_refused_with_its_cure(make, epsilon):
    with pytest.raises(InvalidInputError) as caught:
        make(epsilon=epsilon)
    (line,) = str(caught.value).splitlines()
    assert f"did you mean {float(epsilon):g}/255?" in line and "[0, 1]" in line


def test_the_radius_of_an_l2_ball_may_be_larger_than_1():
    assert ThreatModel(norm="l2", epsilon=2).epsilon == 2
    assert ThreatModel(epsilon=1).epsilon == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: ThreatModel(norm="l2", epsilon=128),
        lambda: Claim(robust_accuracy=0.6, norm="l2", epsilon=128),
        lambda: PGD(norm="l2", epsilon=128),
        lambda: CarliniWagner(epsilon=128),
        lambda: AutoAttack(norm="l2", epsilon=128),
        lambda: Stored(folder="adversarial", norm="l2", epsilon=128),
        lambda: PGD(norm="l2", epsilon="128/255", step_size=128),
    ],
)
def test_an_l2_distance_in_0_255_is_refused_with_its_cure(make):
    with pytest.raises(InvalidInputError) as caught:
        make()
    (line,) = str(caught.value).splitlines()
    assert "did you mean 128/255?" in line and "[0, 1]" in line


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (PGD(norm="l2", epsilon=9), "epsilon 9 in l2 is larger than 8"),
        (CarliniWagner(epsilon=64), "did you mean 64/255?"),
        (PGD(norm="l2", epsilon=1, step_size=9), "step_size 9 in l2 is larger than 8"),
        (Transfer(source="other", attack=PGD(norm="l2", epsilon=9)), "epsilon 9"),
    ],
)
def test_a_ball_wider_than_the_images_is_refused(attack, said):
    """The diagonal of the box of 8x8x1 pixels is sqrt(64) = 8."""
    with pytest.raises(InvalidInputError, match=re.escape(said)):
        attack.check_images((8, 8, 1))
    attack.check_images((None, None, 1))
    PGD(norm="l2", epsilon=8, step_size=8).check_images((8, 8, 1))
    PGD(norm="l2", epsilon=9, protocol="wang-minus1to1").check_images((8, 8, 1))


def test_equal_however_it_is_written():
    assert len({ThreatModel(epsilon="8/255"), ThreatModel(epsilon=8 / 255), ThreatModel(), PGD().threat_model}) == 1


def test_unknown_norm():
    with pytest.raises(InvalidInputError) as caught:
        ThreatModel(norm="l3")
    assert str(caught.value).startswith("norm: ") and "'l3'" in str(caught.value)
