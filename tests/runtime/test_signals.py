"""Signals that arrive while a library runs, which turns an interrupt into an error of its own."""

import os
import signal

import click
import pytest
from click.testing import CliRunner

from keras_rcl.cli.app import OneLineErrors
from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime.signals import Terminated, raised_signals

STOPS = {signal.SIGINT: (KeyboardInterrupt, 130), signal.SIGTERM: (Terminated, 143)}


def converted(number, error):
    """As Python does to an interrupt within `__set_name__`, and TensorFlow to one within an operation."""
    try:
        os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        raise error from None


@pytest.fixture
def handlers():
    """Those with which Python starts; pytest-xdist ignores SIGINT in its workers."""
    started = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in started.items()}
    yield started
    left = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert left == started


@pytest.mark.parametrize("error", [RuntimeError("Error calling __set_name__"), InvalidInputError("is damaged")])
@pytest.mark.parametrize("number", STOPS)
def test_an_interrupt_that_a_library_converts_is_an_interrupt(handlers, number, error):
    raised, status = STOPS[number]
    with pytest.raises(KeyboardInterrupt) as stopped, raised_signals(number):
        converted(number, error)
    assert stopped.type is raised
    group = OneLineErrors("program", commands=[click.Command("work", callback=lambda: converted(number, error))])
    done = CliRunner().invoke(group, ["work"])
    assert (done.exit_code, done.stderr.strip()) == (status, "interrupted")


def test_an_interrupt_keeps_its_message(handlers):
    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt as stop:
            raise type(stop)("the same command resumes") from None

    done = CliRunner().invoke(OneLineErrors("program", commands=[click.Command("work", callback=work)]), ["work"])
    assert (done.exit_code, done.stderr.strip()) == (143, "interrupted; the same command resumes")


def test_errors_without_a_signal_stay_what_they_are(handlers):
    with pytest.raises(RuntimeError, match="mine"), raised_signals(*STOPS):
        raise RuntimeError("mine")


def test_only_signals_that_raise_already_are_handled_by_default(handlers):
    with raised_signals():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) != handlers[signal.SIGINT]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with raised_signals(*STOPS):
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handlers[signal.SIGINT])
