"""SavedModels that try to do harm: a part of the list that `benchmarks.red_team` runs."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.model_io.loading import LoadedModel
from tests.security import harness
from tests.security.payloads import BARE, PAYLOADS
from tests.security.saved_models import LIES, PLACES, lying, planted, save_grounds

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


def test_payloads_name_operations_that_the_allow_list_leaves_out():
    from keras_rcl.model_io.allowed_operations import ALLOWED_OPERATIONS

    assert not {name.split()[0] for name in (*PAYLOADS, *BARE)} & ALLOWED_OPERATIONS
    assert all(hasattr(tf.raw_ops, name.split()[0]) for name in PAYLOADS)
