"""Jobs in processes of their own: all are done, one that dies costs only its job, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

from keras_rcl.runtime.process_pool import in_processes


class Task(NamedTuple):
    number: int
    order: str


def start(threads: int) -> None:
    pass


def work(task: Task, tell) -> str:
    tell(0.5)
    if task.order == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task.order == "sleep":
        time.sleep(600)
    return f"{task.order} by {os.getpid()}"


def run(tasks, count, report):
    in_processes(iter(tasks), report, count, function=f"{__name__}:work", failed="{}".format, start=start)


def test_all_jobs_are_done_and_one_that_dies_costs_only_itself():
    shares, outcomes = [], {}

    def report(number, share, outcome):
        if outcome is None:
            shares.append((number, share))
        else:
            outcomes[number] = outcome

    run([Task(0, "add"), Task(1, "die"), *(Task(number, "add") for number in range(2, 6))], 2, report)
    assert sorted(outcomes) == list(range(6))
    assert outcomes.pop(1).startswith("its process was ended by signal 9; ")
    assert sorted(shares) == [(number, 0.5) for number in range(6)]
    processes = {outcome.split()[-1] for outcome in outcomes.values()}
    assert 1 <= len(processes) <= 3 and str(os.getpid()) not in processes


def test_what_raises_in_the_parent_ends_the_others():
    def report(number, share, outcome):
        if share is not None:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run([Task(0, "sleep"), Task(1, "sleep")], 2, report)
    assert time.monotonic() - started < 300


def test_a_killed_parent_leaves_nobody_behind():
    code = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import test_process_pool as here
def report(number, share, outcome):
    import multiprocessing
    print(multiprocessing.active_children()[0].pid, flush=True)
if __name__ == "__main__":
    here.run([here.Task(0, "sleep")], 1, report)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert os.path.exists(f"/proc/{child}")
        parent.kill()
        for _ in range(300):
            if not _runs(child):
                return
            time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child went on without its parent")


def _runs(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
