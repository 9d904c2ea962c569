"""Ramps by hand arithmetic."""

import numpy as np
import pytest

from keras_rcl.training.ramps import value_at
from keras_rcl.vocabulary.phase import Ramp


@pytest.mark.parametrize(("epochs", "value"), [(0, 0.5), (2, 0.5), (2.5, 0.4375), (4, 0.25), (6, 0.0), (60, 0.0)])
def test_a_linear_ramp_waits_moves_and_stays(epochs, value):
    assert float(value_at(Ramp(start=0.5, stop=0, epochs=4, after=2), epochs)) == pytest.approx(value)


@pytest.mark.parametrize(("epochs", "value"), [(0.9, 1), (1, 3), (5, 3)])
def test_a_ramp_of_no_epochs_jumps(epochs, value):
    assert float(value_at(Ramp(start=1, stop=3, epochs=0, after=1), epochs)) == value


@pytest.mark.parametrize(
    ("share", "value"),
    # a u^4 up to 1/4 with a = 1 / (4 * 3/4 * (1/4)^3 + (1/4)^4) = 256 / 13, so 1/13 there and then slope 16/13
    [(0, 0), (1 / 8, 1 / 208), (1 / 4, 1 / 13), (1 / 2, 5 / 13), (3 / 4, 9 / 13), (1, 1), (2, 1)],
)
def test_the_smooth_ramp(share, value):
    ramp = Ramp(start=0, stop=0.3, epochs=20, after=1, shape="smooth")
    np.testing.assert_allclose(value_at(ramp, 1 + 20 * share), 0.3 * value, atol=1e-7)


def test_a_number_stands_still():
    assert value_at(0.5, 3) == 0.5
