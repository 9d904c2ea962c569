"""SavedModels that must load: a part of the list of `benchmarks.exports`, against TensorFlow's own loader."""

import pytest
import tensorflow as tf

from benchmarks.exports import EXPORTS
from benchmarks.sound_models import compare, gradient_of, ours
from keras_rcl.errors import InvalidInputError

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")

FIRST = [
    ("modules", "custom gradients"),
    ("tf1", "partitioned variable, table"),
    ("keras3", "StringLookup of the classes"),
    ("keras3", "int8 layers"),
    ("keras3", "tf.saved_model.save of a Keras model"),
]
OTHERS = [(family, name) for family in ("modules", "tf1") for name in EXPORTS[family]]
LONG = ("bidirectional GRU", "RNN of a cell, ConvLSTM2D", "augmentation layers")
"""Those that take the longest to save; `benchmarks.sound_models` has them too."""
OTHERS += [("keras3", name) for name in EXPORTS["keras3"] if " " in name and name not in LONG]


WITHOUT_GRADIENT = {
    ("tf1", "while_loop"): (InvalidInputError, "loops of TensorFlow 1, which have no gradients; hint: .*square"),
    ("tf1", "cond within while_loop"): (InvalidInputError, "loops of TensorFlow 1, which have no gradients"),
    ("keras3", "resize layers"): (LookupError, "No gradient defined for .*ResizeArea"),
}
"""Models for which TensorFlow has no gradient, with either loader, and what this package's loader raises."""


@pytest.mark.slow_after(len(FIRST))
@pytest.mark.parametrize(("family", "name"), [*FIRST, *(case for case in OTHERS if case not in FIRST)])
def test_outputs_and_gradients_are_those_of_the_ordinary_loader(tmp_path, family, name):
    path = tmp_path / "model"
    try:
        EXPORTS[family][name](path)
    except NotImplementedError as error:
        pytest.skip(str(error))
    row = compare(path, repeats=1)
    assert not set(row["findings"]) - {"slow"}
    if (family, name) not in WITHOUT_GRADIENT:
        assert row["gradient"] < 1e-6
        return
    error, message = WITHOUT_GRADIENT[family, name]
    assert row["gradient"] == "none"
    with pytest.raises(error, match=message):
        gradient_of(ours(path), tf.random.uniform([4, 16, 16, 3] if family == "keras3" else [4, 8, 8, 1]))
