"""Keeps other users and other machines from the gRPC servers of workers on one machine.

TensorFlow's servers listen on all interfaces whatever address they are given, ask for no password, and execute every
graph that they are sent. Workers that `--workers` starts therefore share a network namespace of Linux, which has a
loopback interface and nothing else. Where the system does not allow that, a socket filter drops what other machines
send; other users of the machine can then still connect.
"""

import contextlib
import ctypes
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1
_ATTACH_FILTER = 26
_LISTENING = "0A"

# --- a network of the workers' own ---


def create() -> None:
    """Move this process, which must have one thread, into a new network with a loopback interface.

    Raises:
        OSError: If the system does not allow it.
    """
    user, group = os.geteuid(), os.getegid()
    if user == 0 and _call("unshare", _NEW_NETWORK, check=False):
        _loopback_up()
        return
    _call("unshare", _NEW_USER | _NEW_NETWORK)
    for file, text in {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}.items():
        Path("/proc/self", file).write_text(text)
    _loopback_up()


def join(process: int) -> None:
    """Move this process, which must have one thread, into the network of another process of the same user.

    Raises:
        OSError: If the system does not allow it, or the process has ended.
    """
    for kind in ("user", "net"):
        there = f"/proc/{process}/ns/{kind}"
        if os.stat(there).st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino:
            descriptor = os.open(there, os.O_RDONLY)
            _call("setns", descriptor, 0)
            os.close(descriptor)


def is_elsewhere(process: int) -> bool:
    """Whether a process is in another network than this one."""
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{process}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
    return False


def _call(name: str, *arguments: int, check: bool = True) -> bool:
    """Call a function of the C library that Python 3.11 has no name for."""
    done = getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) == 0
    if check and not done:
        raise OSError(ctypes.get_errno(), name)
    return done


def _loopback_up() -> None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        name, flags = struct.unpack_from("16sh", fcntl.ioctl(one, _GET_FLAGS, struct.pack("16sh22x", b"lo", 0)))
        fcntl.ioctl(one, _SET_FLAGS, struct.pack("16sh22x", name, flags | _UP))


# --- a filter of what reaches a server ---

_NETWORK_HEADER = 0x100000000 - 0x100000
_LOAD_BYTE, _LOAD_WORD, _SHIFT, _IF_EQUAL, _RETURN = 0x30, 0x20, 0x74, 0x15, 0x06
_ACCEPT, _DROP = 0xFFFFFFFF, 0
_PROGRAM = (
    (_LOAD_BYTE, 0, 0, _NETWORK_HEADER),
    (_SHIFT, 0, 0, 4),
    (_IF_EQUAL, 0, 2, 4),  # IPv4: the sender is in 127.0.0.0/8
    (_LOAD_BYTE, 0, 0, _NETWORK_HEADER + 12),
    (_IF_EQUAL, 8, 9, 127),
    (_LOAD_WORD, 0, 0, _NETWORK_HEADER + 8),  # IPv6: the sender is ::1
    (_IF_EQUAL, 0, 7, 0),
    (_LOAD_WORD, 0, 0, _NETWORK_HEADER + 12),
    (_IF_EQUAL, 0, 5, 0),
    (_LOAD_WORD, 0, 0, _NETWORK_HEADER + 16),
    (_IF_EQUAL, 0, 3, 0),
    (_LOAD_WORD, 0, 0, _NETWORK_HEADER + 20),
    (_IF_EQUAL, 0, 1, 1),
    (_RETURN, 0, 0, _ACCEPT),
    (_RETURN, 0, 0, _DROP),
)
"""A program of the Berkeley packet filter: (operation, jump if true, jump if false, operand) per line."""


def accept_loopback_only(listening: socket.socket) -> None:
    """Have the kernel drop what anything but a loopback address sends to a socket and to its connections.

    Raises:
        OSError: If the system has no socket filters.
    """
    code = b"".join(struct.pack("HBBI", *line) for line in _PROGRAM)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxQ" if struct.calcsize("P") == 8 else "HxxI", len(_PROGRAM), ctypes.addressof(buffer))
    listening.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)


@contextlib.contextmanager
def guarded(port: int, every: float = 0.01) -> Iterator[None]:
    """A context in which this process opens a server: other machines are kept from it as soon as it listens.

    Args:
        port: Of the server.
        every: Seconds between two looks at the process' sockets.
    """
    ended = threading.Event()

    def watch():
        while not (_guard(port) or ended.is_set()):
            time.sleep(every)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _guard(port: int) -> bool:
    """Filter what reaches the listening sockets of this process at a port; returns whether there was one."""
    wanted = {f"socket:[{node}]" for node in _listening(port)}
    found = False
    for file in Path("/proc/self/fd").iterdir() if wanted else ():
        with contextlib.suppress(OSError):
            if os.readlink(file) in wanted:
                with socket.socket(fileno=os.dup(int(file.name))) as one:
                    accept_loopback_only(one)
                found = True
    return found


def _listening(port: int) -> Iterator[str]:
    """The nodes of all sockets of this network that listen at a port."""
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def enter(first: int | None) -> Callable[[], None]:
    """Return what a new worker calls before its program: it enters the network of the first worker, or makes one.

    Where the system does not allow it, nothing happens; `is_elsewhere` tells.

    Args:
        first: The process of the first worker; None for the first worker itself.
    """

    def call() -> None:
        with contextlib.suppress(OSError):
            create() if first is None else join(first)

    return call
