"""Files that are read back: any edit gives one line with the file, the key and the value, and never another error."""

import copy
import json
import random

import numpy as np
import pytest

from keras_rcl.errors import InvalidInputError
from keras_rcl.storage import kinds
from keras_rcl.storage.stored import read_arrays

SHARES = dict.fromkeys(
    ("clean_accuracy", "adversarial_accuracy", "attack_success_rate", "attack_failure_rate", "robust_accuracy"), 0.5
)
ABOUT = {
    "format": 1,
    "command": "x",
    "protocol": "pixel",
    "seed": 0,
    "versions": {},
    "clean_accuracy": 0.5,
    "images": 3,
}
ABOUT |= {"model": {"name": "m", "hash": "h"}, "data": {"name": "d", "part": "test", "indices": [[0, 1], [5, 5]]}}
RECORD = {
    **ABOUT,
    "attacks": [{"name": "fgsm"}],
    "rows": [{"attack": "FGSM", "norm": "linf", "epsilon": 0.1, **SHARES}],
    "survival": {"clean": "110", "attacks": ["100"]},
}
VERIFICATION = {
    **ABOUT,
    "rows": [],
    "outcomes": [{"epsilon": 0.1, "statuses": ["safe"] * 3, "decided_by": ["crown"] * 3}],
}
TRIAL = {"number": 0, "settings": {"method.epochs": "3"}, "state": "done", "objective": 0.5}
WHOLE = {
    kinds.RECORD: RECORD,
    kinds.VERIFICATION: VERIFICATION,
    kinds.AUDIT: {
        **{key: ABOUT[key] for key in ("format", "command", "images", "clean_accuracy")},
        **{"verdict": "stands", "reason": "r", "measured": RECORD["rows"]},
        "findings": [{"check": "c", "status": "raised", "because": "b"}],
    },
    kinds.CONTRACT: {"format": 1, "model_hash": "h", "class_names": ["a", "b"], "config": {"dataset": {}}},
    kinds.ENVIRONMENT: {"given": {}},
    kinds.METRICS: {"step": 1, "phase": "p", "epoch": 1, "loss": None},
    kinds.FINGERPRINT: {"seed": 1},
    kinds.SNAPSHOT: {"format": 1, "seconds": 0.5, "logs": {"metrics.jsonl": 3}},
    kinds.STUDY: {"format": 1, "question": {}, "trials": [TRIAL]},
    kinds.EXAMPLES: {
        **{"format": 1, "attack": {"norm": "linf", "epsilon": "8/255"}, "data": {"name": "d", "part": "train"}},
        "shards": ["a.tfrecord"],
    },
    kinds.INSTANCES: {
        **{"format": 1, "model": {"name": "m"}, "epsilons": [{"epsilon": 0.1, "left_out": 0}]},
        "instances": [{"index": 0, "label": 1, "epsilon": 0.1}],
    },
}
ODD = (None, "text", -1, 0.5, True, 2**70, [], {}, [None], {"a": None})
NAMES = [kind.what for kind in WHOLE]


def places(value, path=()):
    """The paths to all values within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


@pytest.mark.parametrize("kind", WHOLE, ids=NAMES)
def test_every_edit_is_accepted_or_named_in_one_line(kind, tmp_path):
    """Every key removed, and every value replaced by each of a few others."""
    whole, path, refused = WHOLE[kind], tmp_path / "file.json", 0
    path.write_text(json.dumps(whole))
    assert kind.read(path) == whole
    for place in places(whole):
        for change in ("remove", *ODD):
            edited = copy.deepcopy(whole)
            parent = edited
            for key in place[:-1]:
                parent = parent[key]
            if change == "remove":
                del parent[place[-1]]
            else:
                parent[place[-1]] = change
            path.write_text(json.dumps(edited))
            try:
                kind.read(path)
            except InvalidInputError as error:
                refused += 1
                said = str(error)
                assert said.startswith(f"{path} is not {kind.what}: ") and "\n" not in said and "; hint: " in said
                assert len(said) < 600
    assert refused or kind in (kinds.FINGERPRINT, kinds.ENVIRONMENT)


@pytest.mark.parametrize("kind", WHOLE, ids=NAMES)
@pytest.mark.parametrize("text", ["", "[1]", "3", "null", "{", '{"a": NaN}', "[" * 5000, "\x00"])
def test_what_is_not_the_file_is_named(kind, text, tmp_path):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(InvalidInputError, match=r"file\.json (is not|cannot be read as) .*; hint: "):
        kind.read(tmp_path / "file.json")
    with pytest.raises(InvalidInputError, match=r"absent\.json cannot be read as .*No such file.*; hint: "):
        kind.read(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (kinds.RECORD, {"rows": None}, "rows: input should be a valid list (got null)"),
        (kinds.RECORD, {"model": {"name": "m"}}, "model.hash is missing"),
        (kinds.RECORD, {"clean_accuracy": 45.8}, "clean_accuracy: input should be less than or equal to 1 (got 45.8)"),
        (kinds.RECORD, {"format": 2}, "format 2, and this version reads 1"),
        (kinds.RECORD, {"rows": []}, "it has 0 rows of 1 attacks"),
        (kinds.RECORD, {"data": {**ABOUT["data"], "indices": [[0, 10**12], [10**12, 2]]}}, "ends before it begins"),
        (kinds.INSTANCES, {"instances": [{"index": 0, "label": None, "epsilon": 0.1}]}, "instances.0.label: "),
        (kinds.EXAMPLES, {"shards": ["../secret.tfrecord"]}, "shards.0: string should match pattern"),
        (kinds.STUDY, {"trials": [{**TRIAL, "number": 1}]}, "its trials are incomplete"),
        (kinds.STUDY, {"trials": [{**TRIAL, "state": "won"}]}, "trials.0.state: input should be 'running'"),
        (kinds.METRICS, {"loss": "low"}, 'loss: it must be a number or null (got "low")'),
        (kinds.RECORD, {"losses": [{"phase": "p", "epoch": 1, "kl": []}]}, "losses.0.kl: it must be a number or null"),
        (kinds.INSTANCES, {"epsilons": []}, "epsilons: list should have at least 1 item"),
        (
            kinds.INSTANCES,
            {"epsilons": [{"epsilon": 0.2, "left_out": 0}]},
            "instances.0.epsilon: 0.1 is not one of its",
        ),
        (kinds.VERIFICATION, {"images": 4}, "its outcomes are of [3, 4] images"),
    ],
)
def test_the_key_and_the_value_are_named(kind, changes, said):
    with pytest.raises(InvalidInputError) as refused:
        kind.validate({**WHOLE[kind], **changes}, "file.json")
    assert said in str(refused.value)


def test_further_keys_are_kept():
    edited = {**RECORD, "note": {"by": "hand"}}
    assert kinds.RECORD.validate(edited, "x")["note"] == {"by": "hand"}


def test_lines_are_numbered(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = json.dumps(WHOLE[kinds.METRICS])
    path.write_text(f"{line}\n{line}\n")
    assert len(kinds.METRICS.read_lines(path)) == 2
    path.write_text(f'{line}\n{{"step": 2}}\n')
    with pytest.raises(InvalidInputError, match="metrics.jsonl, line 2 is not the metrics of a run: phase is missing"):
        kinds.METRICS.read_lines(path)
    path.write_text(f"{line}\n{line[:-9]}")
    with pytest.raises(InvalidInputError, match="metrics.jsonl, line 2 cannot be read"):
        kinds.METRICS.read_lines(path)


def test_damaged_arrays_are_named(tmp_path):
    path, rng = tmp_path / "images.npz", random.Random(0)
    wanted = {"images": ("f", 2), "attacks": ("U", 1)}
    np.savez_compressed(path, images=np.zeros((2, 3), np.float32), attacks=np.array(["a"]))
    whole = path.read_bytes()
    assert read_arrays(path, wanted, "h")["images"].shape == (2, 3)
    for _ in range(100):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(changed[: rng.choice((len(whole), rng.randrange(len(whole))))]))
        try:
            read_arrays(path, wanted, "h")
        except InvalidInputError as error:
            assert "images.npz" in str(error) and "\n" not in str(error)
    for arrays in ({"images": np.zeros(3)}, {"images": np.zeros((2, 3), int), "attacks": np.array(["a"])}):
        np.savez(path, **arrays)
        with pytest.raises(InvalidInputError, match="images.npz: the array .*; hint: h"):
            read_arrays(path, wanted, "h")
