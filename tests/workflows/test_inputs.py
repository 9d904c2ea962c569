"""Images of a data set that do not fit a model: the hint is one that helps."""

from types import SimpleNamespace

import pytest

from keras_rcl.errors import InvalidInputError
from keras_rcl.workflows.inputs import _check_fit


@pytest.mark.parametrize(
    ("model", "data", "hint"),
    [
        ((8, 8, 3), (8, 8, 1), "trained on, with images of 3 channels$"),
        ((32, 32, 1), (8, 8, 3), "trained on, with images of 1 channels$"),
        ((32, 32, 1), (8, 8, 1), "trained on, or --image-size 32 to resize$"),
        ((None, None, 3), (8, 8, 1), "trained on, with images of 3 channels$"),
        ((32, 24, 1), (8, 8, 1), "trained on; --image-size makes square images$"),
    ],
)
def test_image_size_is_advised_only_where_the_size_differs(model, data, hint):
    classifier = SimpleNamespace(image_shape=model, num_classes=10, path="my.keras")
    with pytest.raises(InvalidInputError, match=f"my.keras takes images .*; give the --dataset that it was {hint}"):
        _check_fit(classifier, SimpleNamespace(name="digits", image_shape=data, num_classes=10))
