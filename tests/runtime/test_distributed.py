"""The workers that `TF_CONFIG` names; an invalid text is refused in one line."""

import json

import pytest

from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime.distributed import ALONE, Message, Task, is_loopback, port_of, task_of

TWO = {"worker": ["a:1", "b:2"]}


def text(cluster, **task):
    return json.dumps({"cluster": cluster, "task": task})


@pytest.mark.parametrize("alone", [None, "", text({"worker": ["a:1"]}, type="worker", index=0)])
def test_without_a_cluster_one_process_is_alone(alone):
    assert task_of(alone) is None


def test_a_chief_comes_first():
    assert task_of(text(TWO, type="worker", index=1)) == Task(1, ("a:1", "b:2"))
    cluster = {"worker": ["b:2"], "chief": ["a:1"]}
    assert task_of(text(cluster, type="worker", index=0)) == Task(1, ("a:1", "b:2"))
    assert task_of(text(cluster, type="chief", index=0)) == Task(0, ("a:1", "b:2"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "TF_CONFIG: Expecting"),
        ("[]", "TF_CONFIG: list indices"),
        ("{}", "TF_CONFIG: it lacks 'cluster'"),
        (json.dumps({"cluster": TWO}), "it lacks 'task'"),
        (text(TWO, type="worker"), "it lacks 'index'"),
        (text(TWO, type="worker", index=2), "its task has index 2 of 2"),
        (text(TWO, type="worker", index=-1), "its task has index -1 of 2"),
        (text(TWO, type="worker", index="1"), "TF_CONFIG: '<=' not supported"),
        (text(TWO, type="chief", index=0), "its task has type 'chief', and its cluster has worker"),
        (
            text({**TWO, "ps": ["c:3"]}, type="worker", index=0),
            "its cluster has ps, and all processes must be workers",
        ),
        (text({"worker": ["a:1", "b"]}, type="worker", index=0), "its addresses must be strings host:port"),
        (text({"worker": ["a:1", 7]}, type="worker", index=0), "its addresses must be strings host:port"),
        (text({"worker": 3}, type="worker", index=0), "TF_CONFIG: object of type 'int' has no len"),
    ],
)
def test_an_invalid_task_is_refused(config, said):
    with pytest.raises(InvalidInputError) as refused:
        task_of(config)
    assert said in str(refused.value)
    assert str(refused.value).endswith(
        'give it as {"cluster": {"worker": ["host-a:2222", "host-b:2222"]}, "task": {"type": "worker", "index": 0}}'
    )


def test_one_process_communicates_with_itself():
    message = Message({"a": 1}, {})
    assert ALONE.broadcast(message) is message and ALONE.all_gather(message) == [message]
    assert ALONE.chief and ALONE.replicas == ALONE.local_replicas == 1
    ALONE.assert_same_inputs({"seed": 1})
    assert ALONE.any_interrupted(asked := lambda: None) is asked


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("localhost:2222", True),
        ("127.0.0.1:2222", True),
        ("127.8.9.10:2222", True),
        ("[::1]:2222", True),
        ("host-a:2222", False),
        ("10.0.0.1:2222", False),
        ("0.0.0.0:2222", False),
        ("[::]:2222", False),
        ("localhost.example.org:2222", False),
    ],
)
def test_which_addresses_are_of_this_machine_alone(address, answer):
    assert is_loopback(address) is answer
    assert port_of(address) == 2222
