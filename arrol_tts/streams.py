"""Iterators that can be closed: mapped, turned into events, and read by asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, Generic, Protocol, TypeVar

from arrol_tts.events import Ended, Event, Progress, Voted
from arrol_tts.trace import Trace
from arrol_tts.voting import VoteResult

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Closing(Protocol[T_co]):
    """An iterator whose source stops when it is closed; generators are some."""

    def __iter__(self) -> Iterator[T_co]: ...

    def __next__(self) -> T_co: ...

    def close(self) -> None:
        """Stop the source."""


class Mapped(Iterator[T], Generic[T]):
    """``map`` that passes ``close`` on."""

    def __init__(self, source: Closing[T], function: Callable[[T], T]) -> None:
        self._source, self._function = source, function

    def __next__(self) -> T:
        return self._function(next(self._source))

    def close(self) -> None:
        """Stop the source."""
        self._source.close()


def nothing() -> Generator[Any, None, None]:
    """An iterator over nothing."""
    yield from ()


class EventStream(Iterator[Event]):
    """Progress and traces as events, with the vote so far after every answer.

    Args:
        source: what an engine streams.
        vote: over the traces of one question that have ended.
        size: traces of each question.
    """

    def __init__(
        self, source: Closing[Progress | Trace], vote: Callable[[list[Trace]], VoteResult], size: int
    ) -> None:
        self._source, self._vote, self._size = source, vote, size
        self._ended: dict[str, list[Trace]] = {}
        self._next: deque[Event] = deque()

    def __next__(self) -> Event:
        if not self._next:
            item = next(self._source)
            if isinstance(item, Progress):
                return item
            self._next.append(Ended(item))
            group = self._ended.setdefault(item.question_id, [])
            group.append(item)
            if item.answer is not None or len(group) == self._size:
                self._next.append(Voted(self._vote(group)))
        return self._next.popleft()

    def close(self) -> None:
        """Abort the sampling."""
        self._source.close()


async def in_thread(source: Closing[T]) -> AsyncIterator[T]:
    """Read a blocking iterator on a thread of its own; it is closed when the reader leaves or is cancelled."""
    loop = asyncio.get_running_loop()
    inbox: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    left = threading.Event()

    def tell(kind: str, value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens
            loop.call_soon_threadsafe(inbox.put_nowait, (kind, value))

    def read() -> None:
        try:
            for item in source:
                if left.is_set():
                    break
                tell("item", item)
            tell("end", None)
        except Exception as error:
            tell("error", error)
        finally:
            source.close()

    thread = threading.Thread(target=read, name="arrol-stream", daemon=True)
    thread.start()
    try:
        while (news := await inbox.get())[0] == "item":
            yield news[1]
        if news[0] == "error":
            raise news[1]
    finally:
        left.set()
        with contextlib.suppress(ValueError):  # a generator that is running closes itself at its next item
            source.close()
