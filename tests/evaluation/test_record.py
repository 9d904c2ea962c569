"""A record is JSON, and what it says can be read back."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from keras_rcl.evaluation.record import command_line, make_record
from keras_rcl.evaluation.robustness import Survival
from keras_rcl.vocabulary.attacks import FGSM, PGD, Attack

quick = settings(max_examples=50)
ATTACKS = (FGSM(epsilon="4/255"), PGD(epsilon="128/255", norm="l2", num_steps=20, step_size=0.01, num_restarts=2))
# Right before any attack: images 0, 1, 2, 4. Image 1 falls to the first attack, 0 and 1 to the second.
SURVIVAL = Survival(
    attacks=ATTACKS,
    labels=np.array([3, 1, 4, 1, 5], np.int32),
    clean_predictions=np.array([3, 1, 4, 0, 5], np.int32),
    predictions=np.array([[3, 2, 4, 0, 5], [0, 2, 4, 0, 5]], np.int32),
    distances=np.array([[0.01, 0.01, 0.01, np.nan, 0.01], [0.5, 0.4, 0.5, np.nan, 0.5]]),
    zero_gradients=np.array([0.0, 0.25], np.float32),
    forwards=np.array([8, 172]),
    backwards=np.array([4, 160]),
    seconds=np.array([0.1234567, 2.0]),
)


def record(indices=(7, 8, 9, 12, 3)):
    data = {"name": "digits", "part": "test", "indices": np.array(indices, np.int64)}
    return make_record(SURVIVAL, model={"name": "tiny", "hash": "ab"}, data=data, seed=5)


def test_what_a_notebook_shows_of_a_survival_table():
    shares = "{'FGSM linf 4/255': 0.6, 'PGD-20x2 l2 128/255': 0.4}"
    assert repr(SURVIVAL) == f"Survival(images=5, clean_accuracy=0.8, robust_accuracy={shares})"


def test_json_and_per_image_outcomes():
    found = record()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["survival"] == {"clean": "11101", "attacks": ["10101", "00101"]}
    assert found["data"] == {"name": "digits", "part": "test", "indices": [[7, 9], [12, 12], [3, 3]]}
    assert (found["format"], found["protocol"], found["images"], found["seed"]) == (1, "pixel", 5, 5)
    assert found["model"] == {"name": "tiny", "hash": "ab"}
    assert found["clean_accuracy"] == 0.8
    assert [row["robust_accuracy"] for row in found["rows"]] == pytest.approx([0.6, 0.4])
    assert [(row["forwards"], row["backwards"], row["seconds"]) for row in found["rows"]] == [
        (8, 4, 0.123),
        (172, 160, 2.0),
    ]
    assert set(found["versions"]) >= {"python", "tensorflow", "keras", "numpy", "keras_rcl"}


def test_rows_follow_from_the_outcomes():
    """Whoever has the record can check its rows."""
    found = record()
    for row, bits in zip(found["rows"], found["survival"]["attacks"], strict=True):
        assert row["robust_accuracy"] == pytest.approx(bits.count("1") / found["images"])
        assert row["attack_success_rate"] == pytest.approx(1 - bits.count("1") / found["survival"]["clean"].count("1"))


def test_attacks_read_back():
    text = json.dumps(record()["attacks"])
    assert '"4/255"' in text
    assert TypeAdapter(tuple[Attack, ...]).validate_json(text) == ATTACKS


@quick
@given(st.lists(st.integers(0, 50)) | st.sets(st.integers(0, 50)).map(sorted))
def test_indices_read_back(indices):
    runs = record(indices)["data"]["indices"]
    assert [index for first, last in runs for index in range(first, last + 1)] == indices
    assert all(later[0] != earlier[1] + 1 for earlier, later in zip(runs, runs[1:], strict=False))


@pytest.mark.parametrize(
    "argv, says",
    [
        (["cli.py", "attack", "a b", "--limit", "5"], "python cli.py attack 'a b' --limit 5"),
        (["/usr/bin/keras-rcl", "fit"], "keras-rcl fit"),
        (["/usr/lib/keras_rcl/__main__.py", "fit"], "python -m keras_rcl fit"),
    ],
)
def test_the_command_can_be_typed_again(monkeypatch, argv, says):
    monkeypatch.setattr("sys.argv", argv)
    assert command_line() == record()["command"] == says
