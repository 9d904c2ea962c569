"""Two replicas in one process, and two processes, train and attack like one device."""

import numpy as np
import pytest
import replicas_program as program
from replicas_program import stepped, trained

from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime.distributed import ALONE
from keras_rcl.runtime.launcher import _free_ports
from keras_rcl.training.phase_runner import _check_replicas
from keras_rcl.vocabulary.compute import ComputeSettings
from keras_rcl.vocabulary.phase import Clean, CrossEntropy, Phase, WeightPerturbation, WorstCase
from tests import forked

BOUNDED = (Clean(), WorstCase(epsilon=1 / 255))
KINDS = ("replicas", "worker 0", "worker 1")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder with the results of two replicas, and of two workers."""
    folder = tmp_path_factory.mktemp("replicas")
    done = forked.run(program.__file__, folder, *_free_ports(2))
    assert done.stdout.splitlines()[-1:] == ["[0, 0, -9]"], done.stdout + done.stderr
    return folder


def result_of(folder, kind, stage):
    """The arrays of a stage."""
    name, index = kind.split() if " " in kind else (kind, "0")
    with np.load(folder / name / f"{stage}{index}.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def alone():
    """A step of one device."""
    return stepped(program.SUPCON, ALONE)


def assert_same_step(expected, found):
    """Loss, gradient (a step of rate 1), metrics, and the statistics of BatchNorm are equal."""
    assert found.keys() == expected.keys()
    assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-5 * max(1, np.abs(value).max()), err_msg=key)
    assert expected["traces"] == 1
    assert sum(np.abs(value).max() > 1e-3 for key, value in expected.items() if key.isdigit()) > 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_equals_the_step_of_one_device(ended, alone, kind):
    """In one process each replica compares only its own anchors with all others, by blocks."""
    assert_same_step(alone, result_of(ended, kind, "tiled" if kind == "replicas" else "supcon"))


@pytest.mark.parametrize(
    ("phase", "settings", "said"),
    [
        ({"batch_size": 15}, {}, "batches of 15 do not divide among 2 replicas; hint: give --set method.batch_size=14"),
        ({"batch_size": 1}, {}, "batches of 1 do not divide among 2 replicas; hint: give fewer of them"),
        ({}, {"micro_batch": 4}, "has --micro-batch, which is for one replica, and there are 2"),
        ({}, {"jit": True}, "has --jit, which is for one replica"),
        ({"awp": WeightPerturbation(gamma=0.01)}, {}, "has awp, which is for one replica"),
        ({"views": BOUNDED, "terms": (CrossEntropy(on="worst_case"),)}, {}, "has bounds, which is for one replica"),
    ],
)
def test_a_phase_that_needs_the_whole_batch_in_one_place_raises(phase, settings, said):
    fields = dict(name="short", epochs=1, views=(Clean(),), terms=(CrossEntropy(),), trains=("encoder",), batch_size=16)
    phase = Phase(**{**fields, **phase})
    with pytest.raises(InvalidInputError, match=said):
        _check_replicas(2, phase.batch_size, phase, ComputeSettings(**settings))
    _check_replicas(2, 16, Phase(**fields), ComputeSettings())


@pytest.mark.slow
def test_replicas_without_synchronized_batchnorm_train_differently(ended, alone):
    apart = result_of(ended, "replicas", "apart")
    changes = [np.abs(apart[key] - value).max() for key, value in alone.items() if key.isdigit()]
    assert np.isfinite(changes).all() and max(changes) > 1e-3


@pytest.fixture(scope="module")
def clafs(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("alone"), ALONE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_clafs_ends_with_the_weights_of_one_device(ended, clafs, kind):
    found = result_of(ended, kind, "clafs")
    assert found.keys() == clafs.keys()
    for number, weight in clafs.items():
        np.testing.assert_allclose(found[number], weight, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_workers_attack_bit_for_bit_like_one_process(ended, tmp_path):
    expected = program.evaluated(tmp_path, ALONE)
    assert 0 < (expected["predictions"] != expected["clean_predictions"]).mean() < 1
    for kind in KINDS[1:]:
        found = result_of(ended, kind, "evaluated")
        assert {key: value.tobytes() for key, value in found.items()} == {
            key: np.asarray(value).tobytes() for key, value in expected.items()
        }


@pytest.mark.slow
def test_workers_certify_bit_for_bit_like_one_process(ended, tmp_path):
    expected = program.certified(tmp_path, ALONE)
    assert len(np.unique(expected["counts"])) > 1
    for kind in KINDS[1:]:
        found = result_of(ended, kind, "certified")
        assert {key: value.tobytes() for key, value in found.items()} == {
            key: np.asarray(value).tobytes() for key, value in expected.items()
        }


@pytest.mark.slow
def test_workers_gather_messages(ended):
    for kind in KINDS[1:]:
        gathered = result_of(ended, kind, "gathered")
        assert {key: value.tolist() for key, value in gathered.items()} == {"0": [], "1": [0, 1, 2, 3, 4]}


@pytest.mark.slow
def test_a_lost_worker_is_noticed_and_one_process_resumes(ended, clafs):
    """The chief does not hang, and its snapshot of the second epoch is enough for another number of workers."""
    assert (ended / "worker/lost").exists()
    assert not (ended / "worker/run1/training").exists()
    cut = ended / "worker/cut"
    (line,) = (cut / "metrics.jsonl").read_text().splitlines()
    weights = trained(cut, ALONE)
    lines = (cut / "metrics.jsonl").read_text().splitlines()
    assert lines[0] == line and len(lines) == 3
    for number, weight in clafs.items():
        np.testing.assert_allclose(weights[number], weight, rtol=0, atol=1e-4)
