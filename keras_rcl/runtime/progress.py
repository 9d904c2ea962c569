"""The progress of a run: one line that is redrawn on a terminal, one line per bar in a log."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

REDRAW_SECONDS = 0.1
BAR_WIDTH = 20
MIN_BAR_WIDTH = 5


class Progress(Protocol):
    """Receives the progress of a long computation: bars, one after another, each with a number of steps."""

    def plan(self, total_work: float) -> None:
        """Announce the work of all bars to come, in any unit, so that the remaining time of the run can be shown."""

    def start(self, label: str, total: int, work: float = 0.0) -> None:
        """Begin a bar of `total` steps, which is `work` of the planned work."""

    def update(self, done: int, note: str = "") -> None:
        """`done` steps of the bar are completed."""

    def finish(self, note: str = "") -> None:
        """The bar is complete; `note` is its result, such as the losses."""

    def say(self, line: str) -> None:
        """Print a line of its own."""

    def close(self) -> None:
        """End the line of an interrupted bar, so that the next output starts a new line."""


class Silent:
    """Shows nothing."""

    def plan(self, total_work: float) -> None:
        pass

    def start(self, label: str, total: int, work: float = 0.0) -> None:
        pass

    def update(self, done: int, note: str = "") -> None:
        pass

    def finish(self, note: str = "") -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def close(self) -> None:
        pass


def duration(seconds: float) -> str:
    """Format seconds as a clock does: `0:31`, `12:04`, `1:02:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class StderrProgress:
    """A bar on a terminal, redrawn in place; elsewhere a plain line when a bar is complete.

        adversarial positives, epoch 3/12  [=========>          ]  45%  eta 0:31, run 12:04  supcon 5.21

    Args:
        stream: Receives the text. None: standard error.
        clock: Returns seconds from any origin.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._clock = clock
        self._drawn_width = 0
        self._open = False
        self.plan(0.0)

    def plan(self, total_work: float) -> None:
        self._planned, self._completed, self._planned_at = total_work, 0.0, self._clock()

    def start(self, label: str, total: int, work: float = 0.0) -> None:
        self.close()
        self._open = True
        self._label, self._total, self._work = label, max(total, 1), work
        self._started_at = self._clock()
        self._draw(0, "")

    def update(self, done: int, note: str = "") -> None:
        if self._clock() - self._drawn_at >= REDRAW_SECONDS:
            self._draw(done, note)

    def finish(self, note: str = "") -> None:
        self._completed += self._work
        run = self._run_to_go(self._completed)
        parts = (self._label, duration(self._clock() - self._started_at), run and f"run eta {run}", note)
        self._write("  ".join(part for part in parts if part), end="\n")
        self._open = False

    def say(self, line: str) -> None:
        self.close()
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self) -> None:
        if self._open and self._terminal:
            self._stream.write("\n")
            self._stream.flush()
        self._open, self._drawn_width = False, 0

    def _draw(self, done: int, note: str) -> None:
        """Draw the bar over the line before; nothing unless the stream is a terminal."""
        self._drawn_at = self._clock()
        if not self._terminal:
            return
        share = min(done / self._total, 1.0)
        eta = duration((self._drawn_at - self._started_at) * (1 - share) / share) if share else "-:--"
        run = self._run_to_go(self._completed + share * self._work)
        times = f"eta {eta}, run {run}" if run else f"eta {eta}"
        before, after = f"{self._label}  [", f"] {share:4.0%}  {times}  {note}".rstrip()
        columns = shutil.get_terminal_size().columns - 1
        width = min(max(columns - len(before) - len(after), MIN_BAR_WIDTH), BAR_WIDTH)
        bar = ("=" * round(share * width) + ">")[:width].ljust(width)
        self._write((before + bar + after)[:columns])

    def _run_to_go(self, completed: float) -> str:
        """The remaining time of all bars, estimated from the completed work; empty while unknown, and at the end."""
        if not 0 < completed < self._planned:
            return ""
        return duration((self._clock() - self._planned_at) * (self._planned - completed) / completed)

    def _write(self, line: str, end: str = "") -> None:
        if self._terminal:
            self._stream.write("\r" + line.ljust(self._drawn_width) + end)
            self._drawn_width = 0 if end else len(line)
        else:
            self._stream.write(line + end)
        self._stream.flush()
