"""One updating line on a terminal, one line a bar in a log, and honest times."""

import io
import re
import subprocess
import sys

import pytest

from keras_rcl.runtime.progress import Silent, StderrProgress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(autouse=True)
def width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def drawn(stream: io.StringIO) -> list[str]:
    return [line.rstrip(" ") for line in re.split("[\r\n]", stream.getvalue()) if line.strip()]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (31.4, "0:31"), (59.7, "1:00"), (724, "12:04"), (3723, "1:02:03")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_bar_tells_the_time_to_go_of_itself_and_of_the_run(clock):
    stream = Terminal()
    progress = StderrProgress(stream, clock)
    progress.plan(10.0)
    progress.start("warm-up, epoch 1/2", 4, work=2.0)
    clock.now = 10.0
    progress.update(1, "supcon 5.2")
    clock.now = 40.0
    progress.finish("supcon 5.0")
    progress.start("warm-up, epoch 2/2", 4, work=2.0)
    clock.now = 60.0
    progress.update(4)
    assert drawn(stream) == [
        "warm-up, epoch 1/2  [>                   ]   0%  eta -:--",
        "warm-up, epoch 1/2  [=====>              ]  25%  eta 0:30, run 3:10  supcon 5.2",
        "warm-up, epoch 1/2  0:40  run eta 2:40  supcon 5.0",
        "warm-up, epoch 2/2  [>                   ]   0%  eta -:--, run 2:40",
        "warm-up, epoch 2/2  [====================] 100%  eta 0:00, run 1:30",
    ]


def test_at_most_ten_redraws_a_second(clock):
    stream = Terminal()
    progress = StderrProgress(stream, clock)
    progress.start("epoch", 1000)
    for step in range(1000):
        clock.now = step / 1000
        progress.update(step)
    assert 9 <= len(drawn(stream)) <= 11


def test_a_shorter_line_covers_the_longer_one_before(clock):
    stream = Terminal()
    progress = StderrProgress(stream, clock)
    progress.start("epoch", 10)
    clock.now = 1.0
    progress.update(1, "a long note about the losses")
    progress.finish()
    screen = ""
    for line in stream.getvalue().rstrip("\n").split("\r"):
        screen = line + screen[len(line) :]
    assert screen.rstrip() == "epoch  0:01"


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ("64", "warm-up, epoch 1/2  [=======>      ]  50%  eta 0:10  supcon 5.2"),
        ("56", "warm-up, epoch 1/2  [===>  ]  50%  eta 0:10  supcon 5.2"),
        ("33", "warm-up, epoch 1/2  [==>  ]  50%"),
    ],
)
def test_a_narrow_terminal_shortens_the_bar_and_then_the_line(clock, monkeypatch, columns, line):
    monkeypatch.setenv("COLUMNS", columns)
    stream = Terminal()
    progress = StderrProgress(stream, clock)
    progress.start("warm-up, epoch 1/2", 10)
    clock.now = 10.0
    progress.update(5, "supcon 5.2")
    assert drawn(stream)[-1] == line


def test_a_log_gets_one_line_a_bar(clock):
    stream = io.StringIO()
    progress = StderrProgress(stream, clock)
    progress.plan(2.0)
    for epoch in (1, 2):
        progress.start(f"warm-up, epoch {epoch}/2", 100, work=1.0)
        for step in range(100):
            clock.now += 0.3
            progress.update(step)
        progress.finish("supcon 5.0")
    progress.close()
    assert stream.getvalue() == (
        "warm-up, epoch 1/2  0:30  run eta 0:30  supcon 5.0\nwarm-up, epoch 2/2  0:30  supcon 5.0\n"
    )


def test_a_broken_off_bar_ends_its_line(clock):
    stream = Terminal()
    progress = StderrProgress(stream, clock)
    progress.start("epoch 1", 10)
    progress.start("epoch 2", 10)
    progress.close()
    progress.close()
    assert stream.getvalue().count("\n") == 2 and stream.getvalue().endswith("\n")


def test_a_bar_of_no_steps(clock):
    stream = Terminal()
    progress = StderrProgress(stream, clock)
    progress.start("nothing", 0)
    progress.finish()
    assert drawn(stream)[-1] == "nothing  0:00"


def test_silent_says_nothing(capsys):
    progress = Silent()
    progress.plan(1.0)
    progress.start("epoch", 1, work=1.0)
    progress.update(1)
    progress.finish()
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_importing_it_is_light():
    code = "import sys, keras_rcl.runtime.progress; sys.exit('tensorflow' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_a_line_of_its_own(kind, clock):
    stream = kind()
    progress = StderrProgress(stream, clock)
    progress.say("resuming out")
    progress.start("attack", 2)
    progress.update(1)
    progress.say("found something")
    assert [drawn(stream)[0], drawn(stream)[-1]] == ["resuming out", "found something"]
    assert stream.getvalue().endswith("\nfound something\n")
    Silent().say("nothing")
