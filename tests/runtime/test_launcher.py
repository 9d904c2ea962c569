"""Workers of one machine start and end together, tested with processes that need no TensorFlow."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from keras_rcl.runtime import launcher, private_network

WORKER = """
import json, os, signal, sys, time
sys.path[:0] = {path!r}
from keras_rcl.runtime import launcher, private_network
if "TF_CONFIG" not in os.environ:
    sys.exit(launcher.run(3))
launcher.end_with_parent()
task = json.loads(os.environ["TF_CONFIG"])
index = task["task"]["index"]
print(f"out of {{index}}", flush=True)
print(f"first of {{index}}\\nlast of {{index}}", file=sys.stderr, flush=True)
def stop(number, frame):
    print(f"stopped {{index}}", flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
with open(f"{{index}}.part", "w") as file:
    json.dump([task["cluster"], sys.argv[1:], os.getpid()], file)
os.rename(f"{{index}}.part", f"{{index}}.json")
{body}
"""


def begun(folder, body):
    program = folder / "program.py"
    program.write_text(WORKER.format(path=sys.path, body=textwrap.dedent(body)))
    command = [sys.executable, str(program), "an argument"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(folder, body):
    process = begun(folder, body)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.splitlines(), err.splitlines()


def test_all_get_the_command_and_a_place(tmp_path):
    status, out, err = run(tmp_path, "pass")
    assert (status, out, err) == (0, ["out of 0"], ["first of 0", "last of 0"])
    found = [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(3)]
    assert all(cluster == found[0][0] and arguments == ["an argument"] for cluster, arguments, _ in found)
    assert len({*found[0][0]["worker"]}) == 3


@pytest.mark.parametrize(
    ("failure", "status", "said"),
    [
        ("os.kill(os.getpid(), 9)", launcher.TRY_AGAIN, "worker 1 was ended by signal 9; the same command resumes"),
        ("sys.exit(2)", 2, "worker 1: last of 1"),
    ],
)
def test_one_that_fails_ends_the_others(tmp_path, failure, status, said):
    others_run = 'all(os.path.exists(f"{i}.json") for i in range(3))'
    waits = f"while not {others_run}:\n        time.sleep(0.05)"
    found = run(tmp_path, f"if index == 1:\n    {waits}\n    {failure}\ntime.sleep(60)")
    assert found == (status, ["out of 0", "stopped 0"], ["first of 0", "last of 0", said])
    for index in range(3):
        with pytest.raises(ProcessLookupError):
            os.kill(json.loads((tmp_path / f"{index}.json").read_text())[2], 0)


def test_what_the_chief_refuses_is_said_once(tmp_path):
    status, _, err = run(tmp_path, "if index == 0:\n    sys.exit(2)\ntime.sleep(60)")
    assert (status, err) == (2, ["first of 0", "last of 0"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_all_and_the_chief_has_the_last_word(tmp_path, number):
    process = begun(tmp_path, "time.sleep(60)")
    wait_for(lambda: all((tmp_path / f"{index}.json").exists() for index in range(3)))
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out.splitlines() == ["out of 0", "stopped 0"]


@pytest.mark.parametrize("body", ["time.sleep(60)", "os.kill(os.getpid(), signal.SIGSTOP)"], ids=["runs", "blocks"])
def test_workers_do_not_outlive_a_killed_launcher(tmp_path, body):
    """Also where none of a worker's threads runs, as while TensorFlow waits for the others."""
    process = begun(tmp_path, body)
    files = [tmp_path / f"{index}.json" for index in range(3)]
    wait_for(lambda: all(file.exists() for file in files))
    process.kill()
    process.communicate(timeout=60)

    def gone():
        return not any(os.path.exists(f"/proc/{json.loads(file.read_text())[2]}/exe") for file in files)

    wait_for(gone)


def wait_for(happened):
    until = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.05)


LISTENS = """
import socket
port = int(task["cluster"]["worker"][index].rpartition(":")[2])
server = socket.create_server(("", port))
open(f"{index}.listens", "w").close()
while len([name for name in os.listdir() if name.endswith(".listens")]) < 3:
    time.sleep(0.01)
for address in task["cluster"]["worker"]:
    socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 10).close()
print(f"reached all {index}", flush=True)
time.sleep(60)
"""


def can_have_a_network_of_its_own():
    probe = subprocess.Popen(["sleep", "60"], preexec_fn=private_network.enter(None))
    try:
        return private_network.is_elsewhere(probe.pid)
    finally:
        probe.kill()
        probe.wait()


@pytest.mark.skipif(not can_have_a_network_of_its_own(), reason="the system allows no network namespaces")
def test_only_workers_reach_the_servers_of_workers(tmp_path):
    """Servers on all interfaces, as TensorFlow's are: the workers reach each other, and this process reaches none."""
    process = begun(tmp_path, LISTENS)
    assert process.stdout.readline() == "out of 0\n" and process.stdout.readline() == "reached all 0\n"
    addresses = json.loads((tmp_path / "0.json").read_text())[0]["worker"]
    own = {line.split()[1].rpartition(":")[2] for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]}
    for address in addresses:
        port = int(address.rpartition(":")[2])
        assert f"{port:04X}" not in own
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)
    process.terminate()
    process.communicate(timeout=60)


def test_a_system_without_namespaces_is_reported(monkeypatch):
    def refused(*arguments, check=True):
        if check:
            raise PermissionError
        return False

    monkeypatch.setattr(private_network, "_call", refused)
    lines = []
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", "pass"])
    assert launcher.run(2, lines.append) == 0
    (line,) = lines
    assert line.startswith("warning: this system gives the workers no network of their own")


def test_a_filtered_server_hears_loopback_only():
    addresses = {"127.0.0.1", own_address()}
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with private_network.guarded(port):
            pass
        with socket.create_connection(("127.0.0.1", port), 10) as client, server.accept()[0] as connection:
            client.sendall(b"heard")
            assert connection.recv(10) == b"heard"
        for address in addresses - {"127.0.0.1", None}:
            with pytest.raises(TimeoutError):
                socket.create_connection((address, port), 0.5)


def own_address():
    """An address of this machine that is not of loopback, if it has one. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return one.getsockname()[0]
