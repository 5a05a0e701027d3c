"""The queue before the engine: so many requests at once, the others in turn, and fair between API keys."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from types import TracebackType

from arrol_tts.serving.errors import ApiError


class FairQueue:
    """Seats for requests that are sampled, and a line for each key before them.

    The next seat goes to the key with the fewest samples running, and among such keys to the one that has waited
    longest. When all places in the lines are taken, the key with most requests waiting gives up its newest one to
    a key that has fewer.

    Args:
        running: requests that are sampled at the same time.
        waiting: requests that wait, all keys together.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._running, self._waiting = running, waiting
        self._seated: set[Seat] = set()
        self._lines: dict[str, deque[Seat]] = {}

    @property
    def running(self) -> int:
        """Requests that have a seat."""
        return len(self._seated)

    @property
    def waiting(self) -> int:
        """Requests that have none yet."""
        return sum(map(len, self._lines.values()))

    def join(self, key: str, samples: int) -> Seat:
        """Stand in line; entering the seat waits for it, and leaving it gives it back.

        Args:
            key: whose request it is.
            samples: how many it wants.

        Raises:
            ApiError: a 429 when the line is full.
        """
        seat = Seat(self, key, samples)
        if self.running < self._running and not self._lines:
            self._seated.add(seat)
            seat.granted.set_result(None)
            return seat
        if self.waiting >= self._waiting:
            self._make_room(key)
        self._lines.setdefault(key, deque()).append(seat)
        return seat

    def leave(self, seat: Seat) -> None:
        """Give a seat, or a place in the line, back."""
        self._seated.discard(seat)
        line = self._lines.get(seat.key)
        if line and seat in line:
            self._drop(line, seat)
        while self._lines and self.running < self._running:
            self._seat_next()

    def _seat_next(self) -> None:
        running: Counter[str] = Counter()
        for seat in self._seated:
            running[seat.key] += seat.samples
        # Lines are in the order in which their keys began to wait, and the first of equals is taken.
        key = min(self._lines, key=lambda key: running[key])
        line = self._lines.pop(key)
        seat = line.popleft()
        if line:
            self._lines[key] = line  # behind the others
        self._seated.add(seat)
        if not seat.granted.done():  # else it was cancelled this moment, and leaves at once
            seat.granted.set_result(None)

    def _make_room(self, key: str) -> None:
        longest = max(self._lines.values(), key=len, default=deque())
        if len(longest) <= len(self._lines.get(key, ())) + 1:
            raise _full()
        seat = longest[-1]
        self._drop(longest, seat)
        if not seat.granted.done():
            seat.granted.set_exception(_full())

    def _drop(self, line: deque[Seat], seat: Seat) -> None:
        line.remove(seat)
        if not line:
            del self._lines[seat.key]


class Seat:
    """A request's place, as an asynchronous context."""

    def __init__(self, queue: FairQueue, key: str, samples: int) -> None:
        self._queue, self.key, self.samples = queue, key, samples
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Seat:
        try:
            await self.granted
        except BaseException:
            self._queue.leave(self)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.leave(self)


def _full() -> ApiError:
    return ApiError(
        429,
        "too many requests are waiting: try again later",
        code="queue_full",
        headers={"retry-after": "1"},
    )
