"""SavedModels that try to do harm, and what is seen of models: a part of the list that `benchmarks.red_team` runs."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.model_io.loading import LoadedModel
from tests.security import harness, keras_files
from tests.security.payloads import BARE, PAYLOADS
from tests.security.saved_models import LIES, PLACES, lying, planted, save_grounds, sound

RUNNING = [place for place in PLACES if place.runs]
OTHERS = [place for place in PLACES if not place.runs]
RUNS = r"runs the operation '\w*' .*hint: --skip-safety-check"


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    with harness.Canary(tmp_path_factory.mktemp("canary")) as canary:
        yield canary


@pytest.fixture(scope="module")
def grounds(tmp_path_factory, canary):
    return save_grounds(tmp_path_factory.mktemp("grounds"), canary)


def written(makes, folder):
    for number, (name, make) in enumerate(makes.items()):
        (place := folder / str(number)).mkdir()
        yield name, make(place)


@pytest.mark.parametrize("place", RUNNING, ids=lambda place: place.name)
def test_an_operation_in_what_a_signature_runs_is_refused(grounds, canary, tmp_path, place):
    """Where it would run, whatever leads to it: two operations in each place."""
    operations = list(PAYLOADS)
    start = RUNNING.index(place)
    makes = {o: planted(grounds, canary, o, place) for o in operations[start :: len(operations) // 2 + 1]}
    for _, path in written(makes, tmp_path):
        with pytest.raises(InvalidInputError, match=RUNS):
            LoadedModel(path).function("embed" if "embed" in place.name else "serve")


@pytest.mark.slow_after(8)
@pytest.mark.parametrize("place", OTHERS, ids=lambda place: place.name)
def test_what_no_signature_runs_is_not_run(grounds, canary, tmp_path, place):
    path = planted(grounds, canary, "WriteFile", place)(tmp_path)
    canary.planted.unlink(missing_ok=True)
    assert load_classifier(path, endpoint="serve").num_classes == 3
    assert not canary.planted.exists()


FAULTS = {
    "01, a table's initialiser is the function of the saver": "SaveV2 in initialiser of a table, named",
    "02, a local variable's initialiser is the saver": "SaveV2 in local variables of TF 1",
    "03, the checkpoint is a second output of the fed node": "checkpoint from a second output",
}


@pytest.mark.parametrize("lie", [name for name in LIES if name.startswith("checkpoint")])
def test_another_checkpoint_is_not_read(grounds, canary, tmp_path, lie):
    """Fault 3 and its siblings: whatever path the saver names, the variables are those in the folder of the model."""
    images = np.random.default_rng(0).random((2, 4, 4, 1), np.float32)
    path = lying(grounds, canary, lie)(tmp_path)
    expected = load_classifier(grounds[LIES[lie][0]]).logits(images)
    np.testing.assert_array_equal(load_classifier(path).logits(images), expected)


UNREAD = ("asset is a pipe", "contract is a pipe", "keras file is a pipe", "loop of links")


@pytest.mark.slow_after(10)
@pytest.mark.parametrize("link", [name for name in LIES if "link" in name or "pipe" in name])
def test_links_and_pipes_are_not_followed(grounds, canary, tmp_path, link):
    path = lying(grounds, canary, link)(tmp_path)
    if link in UNREAD:
        assert load_classifier(path).num_classes == 3
        return
    with pytest.raises(InvalidInputError, match="out of its folder|not a regular file|holds no SavedModel|link"):
        load_classifier(path)


@pytest.mark.slow
def test_nothing_is_seen_of_any_attempt(grounds, canary, tmp_path):
    """The core of the long list, `.keras` files among it, in a child process that is watched."""
    planting = [*list(PAYLOADS)[::6], *BARE[:10:3]]
    makes = {f"sound {name}": sound(grounds, name) for name in grounds}
    makes |= {f"{o} in {RUNNING[0].name}": planted(grounds, canary, o, RUNNING[0]) for o in planting}
    makes |= {f"SaveV2 in {p.name}": planted(grounds, canary, "SaveV2", p) for p in OTHERS}
    makes |= {name: lying(grounds, canary, name) for name in LIES}
    keras = keras_files.attempts(keras_files.sound_model(tmp_path / "sound.keras"), canary)
    makes |= {f".keras: {n}": keras[n] for k, n in enumerate(keras) if k % 20 == 0 or " as " not in n}
    assert len(makes) > 200 and set(FAULTS.values()) <= makes.keys()
    outcomes = harness.run(written(makes, tmp_path), canary)
    assert not [o for o in outcomes if o.events or o.result not in ("loaded", "refused") or "\n" in o.message]
    assert all(o.result == "loaded" for o in outcomes if o.name.startswith("sound"))
    assert all(o.result == "refused" for o in outcomes if o.name.endswith(" in signature"))


LIVE = {
    "WriteFile in function of the signature": "/planted",
    "ReadFile in nested function": "/secret.txt",
    "SaveV2 in function of the signature": "/planted.index",
    "WriteFile in initialiser of a table": "/planted",
    "WriteFile in initialiser of a table, named": "/planted",
    "WriteFile in creator of a table": "/planted",
    "WriteFile in saver of TF 1": "/planted",
    "WriteFile in initialiser of TF 1": "/planted",
    "WriteFile in local variables of TF 1": "/planted",
    "DataServiceDatasetV2 in function of the signature": "canary socket connected to",
}
"""Attempts that TensorFlow's own loader carries out when a model is loaded or called, and what is seen of each."""


@pytest.mark.slow
def test_the_watch_sees_what_the_ordinary_loader_does(grounds, canary, tmp_path):
    """Without the check, attempts do harm, and each kind of it is seen."""
    places = {place.name: place for place in PLACES}
    parts = {name: name.split(" in ", 1) for name in LIVE}
    makes = {name: planted(grounds, canary, operation, places[place]) for name, (operation, place) in parts.items()}
    outcomes = harness.run(written(makes, tmp_path), canary, trust=True, seconds=8)
    unseen = [o for o in outcomes if not any(LIVE[o.name] in event for event in o.events)]
    assert len(outcomes) == len(LIVE) and not unseen


def test_payloads_name_operations_that_the_allow_list_leaves_out():
    from keras_rcl.model_io.allowed_operations import ALLOWED_OPERATIONS

    assert not {name.split()[0] for name in (*PAYLOADS, *BARE)} & ALLOWED_OPERATIONS
    assert all(hasattr(tf.raw_ops, name.split()[0]) for name in PAYLOADS)
