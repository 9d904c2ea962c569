"""An evaluation that was interrupted, at any batch and any byte, ends as an uninterrupted one."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.robustness import Evaluator, Survival
from keras_rcl.storage.atomic import CannotWrite, FolderInUse
from keras_rcl.storage.fingerprint import Fingerprint
from keras_rcl.storage.journal import Journal
from keras_rcl.vocabulary.attacks import FAB, PGD, AutoAttack, AutoPGD, Square

FINGERPRINT = Fingerprint(model="a", seed=3)


class Killed(Exception):
    """Breaks off where a process would be killed: nothing is tidied up."""


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Waiting for the disk a thousand times would test the disk."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def piece_of(number):
    return {"numbers": np.arange(number) / 3, "seconds": np.array(0.1 * number)}


def three(journal):
    """Which of three pieces had to be computed."""
    computed = []

    def compute(number):
        computed.append(number)
        return piece_of(number)

    pieces = [journal.result(f"piece {number}".encode(), lambda number=number: compute(number)) for number in (1, 2, 3)]
    for number, piece in enumerate(pieces, 1):
        assert set(piece) == {"numbers", "seconds"} and piece["seconds"] == 0.1 * number
        assert piece["numbers"].tobytes() == (np.arange(number) / 3).tobytes()
    return computed


def reopened(path, content, fingerprint=FINGERPRINT):
    """Which of three results are computed again if the file has this content; afterwards it holds all of them."""
    path.write_bytes(content)
    journal = Journal(path, fingerprint)
    held = len(journal)
    computed = three(journal)
    assert len(journal) == 3
    journal.close()
    return held, computed


def test_results_are_read_back(tmp_path):
    path = tmp_path / "folder" / ".run.partial"
    with Journal(path, FINGERPRINT) as journal:
        assert len(journal) == 0
        assert three(journal) == [1, 2, 3]
        assert len(journal) == 3
    journal.close()
    assert reopened(path, path.read_bytes()) == (3, [])
    journal = Journal(path, FINGERPRINT)
    journal.discard()
    assert list(path.parent.iterdir()) == []


def test_cut_short_anywhere(tmp_path):
    path, ends = tmp_path / ".run.partial", []
    journal = Journal(path, FINGERPRINT)
    for number in (1, 2, 3):
        ends.append(path.stat().st_size)
        journal.result(f"piece {number}".encode(), lambda number=number: piece_of(number))
    journal.close()
    whole = path.read_bytes()
    assert reopened(path, whole) == (3, [])
    for size in {*range(0, len(whole), 7), *(end + by for end in ends for by in (-1, 0, 1, 11, 12))}:
        done = max(sum(end <= size for end in ends) - 1, 0)
        assert reopened(path, whole[:size]) == (done, [1, 2, 3][done:])
        assert path.read_bytes() == whole


def test_other_bytes_than_were_written(tmp_path):
    """A byte of the last piece changed, or zeros in place of its end, as a power failure leaves them."""
    path = tmp_path / ".run.partial"
    journal = Journal(path, FINGERPRINT)
    header = path.stat().st_size
    three(journal)
    journal.close()
    whole = path.read_bytes()
    for position in range(header, len(whole), 7):
        changed = bytearray(whole)
        changed[position] ^= 1
        _, computed = reopened(path, bytes(changed))
        assert computed and path.read_bytes() == whole
    for size in range(header, len(whole), 50):
        _, computed = reopened(path, whole[:size].ljust(len(whole), b"\0"))
        assert computed and path.read_bytes() == whole


def test_a_result_is_not_confused_with_another(tmp_path):
    journal = Journal(tmp_path / ".run.partial", FINGERPRINT)
    journal.result(b"round 1", lambda: {"a": np.zeros(1)})
    journal.close()
    journal = Journal(tmp_path / ".run.partial", FINGERPRINT)
    assert journal.result(b"round 2", lambda: {"a": np.ones(1)})["a"] == 1
    assert len(journal) == 1
    journal.close()


def test_objects_are_not_read(tmp_path):
    journal = Journal(tmp_path / ".run.partial", FINGERPRINT)
    journal.result(b"x", lambda: {"a": np.array([{}], object)})
    journal.close()
    journal = Journal(tmp_path / ".run.partial", FINGERPRINT)
    with pytest.raises(ValueError, match="allow_pickle"):
        journal.result(b"x", dict)
    journal.close()


def test_another_fingerprint(tmp_path):
    path = tmp_path / ".run.partial"
    journal = Journal(path, FINGERPRINT)
    three(journal)
    with pytest.raises(FolderInUse, match="is written by another run"):
        Journal(path, FINGERPRINT)
    journal.close()
    whole = path.read_bytes()
    with pytest.raises(FolderInUse, match=r"\.run\.partial holds .* with other seed, batch_size; .*--overwrite"):
        Journal(path, Fingerprint(model="a", seed=4, settings={"batch_size": 5}))
    assert path.read_bytes() == whole
    with Journal(path, Fingerprint(model="a", seed=4), discard_existing=True) as journal:
        assert len(journal) == 0 and three(journal) == [1, 2, 3]
    journal.close()
    journal = Journal(path, Fingerprint(model="a", seed=4), discard_existing=True)
    assert len(journal) == 3, "results of this fingerprint are kept"
    journal.close()


def test_a_file_that_is_not_a_journal_stays(tmp_path):
    for number, content in enumerate([b"years of work\n", b"[1, 2]\n", b'"thesis"\n', b"\x80\xff\n", b"\0\0"]):
        path = tmp_path / f".{number}.partial"
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match="is not a journal of an evaluation; remove it"):
            Journal(path, FINGERPRINT, discard_existing=True)
        assert path.read_bytes() == content


def test_a_journal_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="file"):
        Journal(tmp_path / "file" / ".run.partial", FINGERPRINT)
    (tmp_path / ".folder.partial").mkdir()
    with pytest.raises(InvalidInputError, match="is a directory"):
        Journal(tmp_path / ".folder.partial", FINGERPRINT)


def test_the_end_of_the_body_as_a_context(tmp_path):
    """InvalidInputError: the journal is deleted. A full disk is refused in one line, and an interruption says what to
    do."""
    path = tmp_path / ".run.partial"

    def body(error):
        with Journal(path, FINGERPRINT) as journal:
            journal.result(b"x", lambda: {"a": np.zeros(1)})
            raise error

    with pytest.raises(InvalidInputError, match="no gradient"):
        body(InvalidInputError("no gradient"))
    assert not path.exists()
    with pytest.raises(CannotWrite, match="the results"):  # of which the results so far are kept
        body(CannotWrite("the results"))
    assert path.exists()
    with pytest.raises(InvalidInputError, match="no space left"):
        body(OSError(28, "No space left on device"))
    with pytest.raises(KeyboardInterrupt, match="the same command resumes"):
        body(KeyboardInterrupt)
    journal = Journal(path, FINGERPRINT)
    assert len(journal) == 1
    journal.close()


# An evaluation

RNG = np.random.default_rng(0)
HIDDEN, OUTPUT = RNG.normal(size=(16, 12)), RNG.normal(size=(12, 5))
IMAGES = RNG.uniform(0.1, 0.9, (23, 4, 4, 1)).astype("float32")


def smooth(x):
    return tf.tanh(tf.reshape(x - 0.5, [-1, 16]) @ HIDDEN.astype("float32")) @ OUTPUT.astype("float32")


PREDICTED = np.argmax(smooth(IMAGES), axis=1)
LABELS = np.where(np.arange(23) % 6 == 0, (PREDICTED + 1) % 5, PREDICTED)


class Small(AutoAttack):
    """AutoAttack with the smallest budgets under which it still has rounds, robust and broken images."""

    @property
    def members(self):
        ball = dict(norm=self.norm, epsilon=self.epsilon)
        return (
            AutoPGD(num_steps=2, **ball),
            AutoPGD(num_steps=2, loss="dlr_targeted", **ball),
            FAB(num_steps=2, **ball),
            Square(num_queries=3, **ball),
        )


ATTACKS = (Small(epsilon=0.03), PGD(epsilon=0.03, num_steps=2, num_restarts=2))


@pytest.fixture(scope="module")
def evaluator():
    return Evaluator(smooth, ATTACKS, batch_size=8, seed=3)


@pytest.fixture(scope="module")
def uninterrupted(evaluator):
    survival = evaluator(IMAGES, LABELS, keep_images=True)
    robust = survival.survived.mean(axis=1)
    assert np.all((robust > 0.2) & (robust < 0.8)) and survival.clean.sum() == 19
    return survival


def assert_same(found: Survival, expected: Survival):
    for field in dataclasses.fields(Survival):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray) and field.name != "seconds":
            assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes(), field.name
    assert found.stages == expected.stages
    rows, others = found.rows(), expected.rows()
    for row in (*rows, *others):
        row.pop("seconds", None)
    assert rows == others


class Dying(Journal):
    """Dies after some batches were computed: in the midst of the next, or in the midst of writing it."""

    def __init__(self, path, fingerprint, batches, tear=None):
        super().__init__(path, fingerprint)
        self.batches, self.tear, self.computed = batches, tear, 0

    def result(self, name, compute):
        def run():
            if self.computed == self.batches and self.tear is None:
                raise Killed
            self.computed += 1
            return compute()

        return super().result(name, run)

    def _append(self, content):
        if getattr(self, "tear", None) is not None and self.computed > self.batches:
            self._file.write(content[: int(self.tear * len(content))])
            self._file.flush()
            raise Killed
        super()._append(content)


def die(evaluator, path, batches, tear=None) -> bool:
    """Evaluate until a number of further batches are computed; returns whether the process died of that."""
    fingerprint = evaluator.fingerprint(IMAGES, LABELS, keep_images=True)
    journal = Dying(path, fingerprint, batches, tear)
    try:
        with journal:
            evaluator(IMAGES, LABELS, keep_images=True, journal=journal)
    except Killed:
        return True
    finally:
        journal.close()
    return False


def resume(evaluator, path):
    """The survival, and how many batches it took."""
    journal = Dying(path, evaluator.fingerprint(IMAGES, LABELS, keep_images=True), 10**9)
    with journal:
        survival = evaluator(IMAGES, LABELS, keep_images=True, journal=journal)
    count = len(journal)
    journal.close()
    return survival, journal.computed, count


@pytest.mark.slow
def test_killed_in_some_batch(evaluator, uninterrupted, tmp_path):
    whole, computed, count = resume(evaluator, tmp_path / "whole")
    assert_same(whole, uninterrupted)
    assert computed == count > 20
    for batches in range(0, count, 5):  # the default run has one that dies in each batch in turn
        path = tmp_path / f"{batches}"
        assert die(evaluator, path, batches, tear=None if batches % 2 else 0.7)
        survival, computed, held = resume(evaluator, path)
        assert_same(survival, uninterrupted)
        assert computed == count - batches and held == count


@pytest.mark.slow
def test_killed_after_every_batch(evaluator, uninterrupted, tmp_path):
    """As many deaths as batches, some of them with half a piece written."""
    path, deaths = tmp_path / "run", 0
    while die(evaluator, path, 1, tear=(deaths % 3) / 2.1 if deaths % 2 else None):
        deaths += 1
    survival, computed, count = resume(evaluator, path)
    assert_same(survival, uninterrupted)
    assert computed == 0 and deaths >= count - 1


@pytest.mark.slow
def test_seconds_add_up(evaluator, tmp_path):
    path = tmp_path / "run"
    assert die(evaluator, path, 20)
    first, _, _ = resume(evaluator, path)
    again, computed, _ = resume(evaluator, path)
    assert computed == 0
    np.testing.assert_array_equal(again.seconds, first.seconds)
    assert np.all(first.seconds > 0)


@pytest.mark.slow
def test_the_last_batch_cut_short(evaluator, uninterrupted, tmp_path):
    path = tmp_path / "run"
    assert die(evaluator, path, 20)
    before = path.read_bytes()
    assert die(evaluator, path, 1)
    after = path.read_bytes()
    assert after.startswith(before)
    for size in range(len(before), len(after), 53):
        path.write_bytes(after[:size])
        assert_same(resume(evaluator, path)[0], uninterrupted)


@pytest.mark.slow
def test_the_fingerprint_is_all_that_the_results_depend_on(evaluator):
    def asked(images=IMAGES, labels=LABELS, attacks=ATTACKS, keep_images=False, **options):
        evaluator = Evaluator(smooth, attacks, **{"batch_size": 8, "seed": 3, **options})
        return evaluator.fingerprint(images, labels, keep_images=keep_images)

    support = np.arange(4), np.zeros((4, 2), "float32")
    fingerprints = [
        asked(),
        asked(images=IMAGES[::-1]),
        asked(labels=LABELS[::-1]),
        asked(attacks=ATTACKS[:1]),
        asked(attacks=[ATTACKS[0].with_epsilon(0.04), *ATTACKS[1:]]),
        asked(keep_images=True),
        asked(batch_size=9),
        asked(seed=4),
        asked(support=support),
    ]
    assert asked() == fingerprints[0]
    assert all(one != other for i, one in enumerate(fingerprints) for other in fingerprints[:i])
