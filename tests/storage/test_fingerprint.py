"""Fingerprints: equal where the results would be, and stored so that older ones are still read."""

import json

import pytest

from keras_rcl.storage.atomic import FolderInUse
from keras_rcl.storage.fingerprint import Fingerprint

STORED = Fingerprint(model="a", seed=3, versions={"keras": "3"}, settings={"batch_size": 5, "method": {"epochs": 2}})


def test_diff_names_what_differs():
    other = Fingerprint(model="a", seed=4, settings={"batch_size": 6, "method": {"epochs": 2}, "jit": True})
    assert STORED.diff(STORED) == [] and STORED.diff(other) == ["seed", "versions", "batch_size", "jit"]
    assert sorted(other.diff(STORED)) == sorted(STORED.diff(other))


def test_a_stored_fingerprint_is_equal():
    assert Fingerprint.from_json(json.loads(json.dumps(STORED.to_json()))) == STORED
    tuples = Fingerprint(attacks=({"members": ("a", "b")},))
    assert Fingerprint.from_json(json.loads(json.dumps(tuples.to_json()))) == tuples


def test_a_fingerprint_of_an_earlier_version_is_equal():
    """Evaluations wrote "batch size" where stored examples wrote "batch_size"."""
    earlier = {
        "attacks": [],
        "images": "f",
        "batch size": 5,
        "seed": 3,
        "kept images": False,
        "craft dtype": "float32",
    }
    settings = {"batch_size": 5, "kept_images": False, "attack_dtype": "float32"}
    assert Fingerprint.from_json(earlier) == Fingerprint(attacks=[], images="f", seed=3, settings=settings)


def test_texts_of_one_number_are_equal():
    """0.5/255 was written as a decimal before; 1.8/255 in the settings of a method too."""
    earlier = Fingerprint(attacks=[{"step_size": "0.00196078431372549"}], settings={"method": {"epsilon": "1/255"}})
    later = Fingerprint(attacks=[{"step_size": "0.5/255"}], settings={"method": {"epsilon": "1.0/255"}})
    assert earlier == later and later.diff(earlier) == []
    other = Fingerprint(attacks=[{"step_size": "0.6/255"}], settings={"method": {"epsilon": "1/255"}})
    assert other != earlier and other.diff(earlier) == ["attacks"]


def test_versions_are_no_numbers():
    one, another = (Fingerprint(versions={"keras": version}) for version in ("3.1", "3.10"))
    assert one != another and one.diff(another) == ["versions"]


def test_another_fingerprint_is_refused():
    with pytest.raises(FolderInUse, match=r"^runs/a holds a run with other seed; .* or another --name$"):
        STORED.check_equal(Fingerprint.from_json({**STORED.to_json(), "seed": 4}), "runs/a holds a run", "--name")
    with pytest.raises(ValueError, match="not a mapping"):
        Fingerprint.from_json([1])
