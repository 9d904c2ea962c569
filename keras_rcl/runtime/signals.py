"""SIGINT and SIGTERM: raised as exceptions, or held until a unit of work is done."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled as an interrupt, with another exit status."""


class WorkerLost(KeyboardInterrupt):
    """Another worker is lost: handled as an interrupt, with another exit status."""


_RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@contextlib.contextmanager
def raised_signals(*numbers: int) -> Iterator[None]:
    """Let signals raise in the body: SIGINT a KeyboardInterrupt, SIGTERM a `Terminated`.

    The exception leaves the body also where a library turned it into an error of another kind. This applies to the main
    thread, where Python handles signals; a signal that is ignored stays ignored.

    Args:
        *numbers: The signals; by default those that Python functions handle already.
    """
    came: list[type[KeyboardInterrupt]] = []

    def stop(number, frame):
        came.append(_RAISED[number])
        raise came[-1]

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _RAISED:
            handler = signal.getsignal(number)
            if callable(handler) or (number in numbers and handler == signal.SIG_DFL):
                before[number] = signal.signal(number, stop)
    try:
        yield
    except Exception:
        if came:
            raise came[-1] from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held_signals(*, forget: bool = False) -> Iterator[Callable[[], type[KeyboardInterrupt] | None]]:
    """Hold SIGINT and SIGTERM until the body ends or raises them itself; a second signal is raised at once.

    This applies to the main thread, where Python handles signals; a signal that is ignored stays ignored.

    Args:
        forget: Raise nothing at the end of the body, because nothing is left to do.

    Yields:
        A function that returns the exception that the body should raise, or None. At the end of the body the exception
        is raised in any case.
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
