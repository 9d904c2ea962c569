"""Check of the reading: whether the model is given images as it was trained on them."""

from collections.abc import Callable

from keras_rcl.evaluation.checks.context import Context, Result, result
from keras_rcl.evaluation.input_range import INPUT_RANGES, Declared, find_input_range


def read_as_trained(context: Context) -> Result:
    """Whether clean accuracy and predictions look like those of a model that is given the images it was trained on.

    An audit of a model that is misread says nothing of the claim: with pixels of another range, another data set,
    other classes or other channels it classifies by chance, and is robust by chance.
    """
    doubts = context.subject.doubts
    if doubts is None:
        doubts = find_input_range(
            lambda name: _read_as(context.logits, name),
            context.images,
            context.labels,
            declared=Declared("0..1", "given", "as given"),
            name="the audited model",
        ).doubts
    clean = context.clean_accuracy
    because = "; ".join(doubts) or f"clean accuracy is {clean:.1%}, and no other range of pixels gives clearly more"
    return result(bool(doubts), because, clean_accuracy=clean)


def _read_as(logits: Callable, name: str) -> Callable:
    """The logits of images in [0, 1] if they are given to the model in another range."""
    scale, offset = INPUT_RANGES[name]
    return lambda images: logits(scale * images + offset)
