"""Robustness as VNN-LIB, for verifiers from elsewhere, and the results of one of them.

The files are laid out as in the competition VNN-COMP and as alpha-beta-CROWN reads them (Wang et al. 2021):
`network.onnx`, one file per property, and `instances.csv` with one line per property.
"""

import math
import pickle
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.onnx import to_channels_first
from keras_rcl.vocabulary.threat import format_pixels

STATUSES = ("timeout", "safe", "safe-incomplete", "unsafe")
"""The results of a property: undecided, proved by branching, proved by bounds alone, or refuted."""


def vnnlib_property(image: np.ndarray, label: int, epsilon: float, num_classes: int) -> str:
    """The search for a counter-example as VNN-LIB text: satisfiable where the network is not robust.

    The inputs X are the image's values, channels first, each within epsilon and [0, 1]; the outputs Y are the logits,
    of which some wrong class's is to be at least the label's: a disjunction over the other classes.

    Args:
        image: float32 [H, W, C] or [F], in [0, 1].
        label: y.
        epsilon: of the L-inf ball, in pixels.
        num_classes: K.

    References:
        Demarchi et al. 2023, "Supporting standardization of neural networks verification with VNNLIB and CoCoNet".
    """
    values = to_channels_first(np.asarray(image, np.float64)[None]).ravel()
    lower, upper = np.maximum(values - epsilon, 0.0), np.minimum(values + epsilon, 1.0)
    lines = [f"; class {label} within {epsilon!r} of an image, L-inf"]
    lines += [f"(declare-const X_{i} Real)" for i in range(len(values))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(num_classes)]
    for i, ball in enumerate(zip(lower, upper, strict=True)):
        low, high = (np.format_float_positional(bound, trim="0") for bound in ball)  # all digits, and no exponent
        lines += [f"(assert (>= X_{i} {low}))", f"(assert (<= X_{i} {high}))"]
    lines += ["(assert (or", *(f"    (and (>= Y_{j} Y_{label}))" for j in range(num_classes) if j != label), "))"]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, eq=False)
class Instance:
    """A property: the image keeps its class within a radius.

    Attributes:
        image: float32 [H, W, C] or [F], in [0, 1].
        label: its class.
        epsilon: of the L-inf ball, in pixels.
        index: of the image in its data set.
    """

    image: np.ndarray
    label: int
    epsilon: float
    index: int


ABCROWN = """\
# In this folder: python PATH/TO/alpha-beta-CROWN/complete_verifier/abcrown.py --config abcrown.yaml
general:
  device: cuda  # or cpu
  root_path: .
  csv_name: instances.csv
  results_file: {results}
model:
  input_shape: [-1, {shape}]
data:
  num_outputs: {num_classes}
attack:
  pgd_order: before
"""
"""The settings of alpha-beta-CROWN: its defaults, except for the paths of the files; it attacks before it verifies."""

RESULTS = "results.pkl"
"""The file to which it writes, by `ABCROWN`."""


def write_instances(folder: Path, model, instances: Sequence[Instance], timeout: float) -> None:
    """Write `network.onnx`, one file per property, `instances.csv` and `abcrown.yaml` into an empty folder.

    Args:
        folder: The folder.
        model: The network, from `onnx_network`.
        instances: The properties to verify.
        timeout: seconds for each.
    """
    (shape,), (num_classes,) = (
        [[size.dim_value for size in value.type.tensor_type.shape.dim[1:]] for value in values]
        for values in (model.graph.input, model.graph.output)
    )
    (folder / "network.onnx").write_bytes(model.SerializeToString())
    (folder / "vnnlib").mkdir()
    lines = []
    for instance in instances:
        radius = format_pixels(instance.epsilon).replace("/", "_")
        name = f"vnnlib/image{instance.index}_epsilon{radius}.vnnlib"
        text = vnnlib_property(instance.image, instance.label, instance.epsilon, *num_classes)
        (folder / name).write_text(text, encoding="utf-8")
        lines.append(f"network.onnx,{name},{timeout:g}\n")
    (folder / "instances.csv").write_text("".join(lines), encoding="utf-8")
    settings = ABCROWN.format(results=RESULTS, shape=", ".join(map(str, shape)), num_classes=num_classes[0])
    (folder / "abcrown.yaml").write_text(settings, encoding="utf-8")


def read_results(path: Path) -> list[tuple[str, float]]:
    """Return the results of alpha-beta-CROWN: one of `STATUSES` and the seconds per instance, in the order of the CSV.

    A result that came after the time limit is a `timeout`.

    Raises:
        InvalidInputError: if there is no such file, or it is not one that alpha-beta-CROWN writes of a CSV.
    """
    try:
        with Path(path).open("rb") as file:
            results = _PlainUnpickler(file).load()["results"]
        found = [(_status(said), float(seconds)) for said, seconds in results]
        if wrong := [seconds for _, seconds in found if not 0 <= seconds < math.inf]:
            raise InvalidInputError(f"has the time {wrong[0]!r} of a result; give the file of its CSV mode")
        return found
    except FileNotFoundError:
        raise InvalidInputError(f"there is no {path}; run alpha-beta-CROWN there first, as abcrown.yaml says") from None
    except InvalidInputError as error:
        raise InvalidInputError(f"{path} {error}") from None
    except Exception as error:  # what an unpickler raises of other bytes is anything
        raise InvalidInputError(
            f"{path} is not a result file of alpha-beta-CROWN: {type(error).__name__}; give the one of its CSV mode"
        ) from None


def _status(said: object) -> str:
    """alpha-beta-CROWN's word as one of `STATUSES`."""
    text = said if isinstance(said, str) else ""
    if "timed out" in text or text.startswith(("unknown", "timeout")):
        return "timeout"
    if text.startswith("unsafe"):
        return "unsafe"
    if text.startswith("safe"):
        return "safe-incomplete" if text == "safe-incomplete" else "safe"
    raise InvalidInputError(
        f"has the result {said!r}, which alpha-beta-CROWN does not write; give the file of its CSV mode"
    )


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dicts, texts and numbers, and nothing else, so that it runs no code of the file."""

    def find_class(self, module: str, name: str):
        return {"collections.defaultdict": defaultdict, "builtins.list": list}.get(f"{module}.{name}", _Unread)


class _Unread:
    """In the place of an object of another package."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass
