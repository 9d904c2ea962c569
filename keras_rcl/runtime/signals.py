"""SIGINT and SIGTERM: raised as exceptions, or held until a piece of work is done."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Terminated(KeyboardInterrupt):
    """SIGTERM: to a run as an interrupt, but for the exit status."""


class WorkerLost(KeyboardInterrupt):
    """Another process of the run is gone: an interrupt to those that are left, but for the exit status."""


_RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@contextlib.contextmanager
def raised_sigterm() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` where it strikes the body, as SIGINT raises KeyboardInterrupt."""

    def terminate(number, frame):
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # where Python handles no signals
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def held_signals(*, forget: bool = False) -> Iterator[Callable[[], type[KeyboardInterrupt] | None]]:
    """Let the body finish what it is at when SIGINT or SIGTERM comes; a second one strikes at once.

    Only in the main thread, where Python handles signals; a signal that is ignored stays so.

    Args:
        forget: raise nothing at the body's end: it was the last that there was to do.

    Yields:
        Tells which exception the body is to raise, if one came; at the body's end it is raised in any case.
    """
    came: list[type[KeyboardInterrupt]] = []

    def hold(number, frame):
        came.append(_RAISED[number])
        if len(came) > 1:
            raise came[-1]

    before = {}
    if threading.current_thread() is threading.main_thread():
        held = [number for number in _RAISED if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        before = {number: signal.signal(number, hold) for number in held}
    try:
        yield lambda: came[0] if came else None
        if came and not forget:
            raise came[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
