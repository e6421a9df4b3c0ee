"""Stop strings as OpenAI means them: a reply ends before the first of them. Knows nothing of
tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class StopText:
    """Lets pieces of a text through up to the first stop string; holds back what may be the
    beginning of one.

    Args:
        stops: The stop strings, none of them empty.
        emit: Called with each piece.
    """

    def __init__(self, stops: Sequence[str], emit: Callable[[str], None]) -> None:
        self._stops, self._emit = tuple(stops), emit
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> None:
        """Take the next ``piece`` of the text."""
        if self.stopped:
            return
        self._held += piece
        found = [at for at in map(self._held.find, self._stops) if at >= 0]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]
            keep = 0
        else:
            keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        self._say(len(self._held) - keep)

    def end(self) -> None:
        """The text has ended, so what was held back is no beginning of a stop string."""
        self._say(len(self._held))

    def restart(self) -> None:
        """Another text follows."""
        self.end()
        self.stopped = False

    def _say(self, count: int) -> None:
        piece, self._held = self._held[:count], self._held[count:]
        if piece:
            self._emit(piece)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``, and not all of it."""
    return next(
        (n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0
    )


def before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first stop string, and whether there is one."""
    pieces: list[str] = []
    cut = StopText(stops, pieces.append)
    cut.feed(text)
    cut.end()
    return "".join(pieces), cut.stopped
