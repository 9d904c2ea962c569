"""The pieces of a long computation, dealt out among workers: together they are what one process would have found."""

from collections.abc import Callable, Iterator, Sequence

from keras_rcl.runtime.distributed import Message, Workers
from keras_rcl.storage.journal import Journal, Result

Wanted = tuple[bytes, Callable[[], Result]]
"""The name of a piece, and what computes it."""


class Pieces:
    """Gives pieces that do not depend on each other, in order, to all workers alike.

    Each is computed by one of the workers, in full, so that it has the same bits whoever does it. What the chief's
    journal holds is read, and the rest is written to it.

    Args:
        workers: among whom they are dealt out.
        journal: the chief's, if it keeps one.
    """

    def __init__(self, workers: Workers, journal: Journal | None = None):
        self._workers, self._journal = workers, journal
        self._resuming = workers.count > 1

    def __call__(self, wanted: Sequence[Wanted]) -> Iterator[Result]:
        """One after another; with workers, as many at once as there are."""
        if self._workers.count == 1:
            for name, compute in wanted:
                yield compute() if self._journal is None else self._journal.result(name, compute)
            return
        for start in range(0, len(wanted), self._workers.count):
            yield from self._group(wanted[start : start + self._workers.count])

    def _group(self, wanted: Sequence[Wanted]) -> list[Result]:
        held = self._held([name for name, _ in wanted]) if self._resuming else []
        left, index = wanted[len(held) :], self._workers.index
        self._resuming = self._resuming and not left
        mine = left[index][1]() if index < len(left) else {}
        messages = self._workers.all_gather(Message(arrays=mine)) if left else []
        made = [message.arrays for message in messages[: len(left)]]
        if self._journal is not None:
            for (name, _), piece in zip(left, made, strict=True):
                self._journal.add(name, piece)
        return held + made

    def _held(self, names: Sequence[bytes]) -> list[Result]:
        """The first of these pieces, as many as the chief's journal holds."""
        found: list[Result] = []
        if self._journal is not None:
            for name in names:
                if (piece := self._journal.stored(name)) is None:
                    break
                found.append(piece)
        arrays = {f"{number} {key}": array for number, piece in enumerate(found) for key, array in piece.items()}
        count, arrays = self._workers.broadcast(Message(len(found), arrays))
        pieces: list[Result] = [{} for _ in range(count)]
        for label, array in arrays.items():
            number, key = label.split(" ", 1)
            pieces[int(number)][key] = array
        return pieces
