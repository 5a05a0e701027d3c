"""Blocking iterators under asyncio: the event loop goes on, and whatever is made is closed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time

import pytest

from arrol_tts.in_thread import in_thread


class Slow:
    """Takes its time to be made and to be closed, as an engine between two steps does."""

    def __init__(self) -> None:
        time.sleep(0.3)
        self.closed = threading.Event()
        made.append(self)

    def __iter__(self) -> Slow:
        return self

    def __next__(self) -> int:
        if self.closed.wait(0.01):
            raise StopIteration
        return 1

    def close(self) -> None:
        time.sleep(0.3)
        self.closed.set()


made: list[Slow] = []


async def beat(beats: list[float]) -> None:
    while True:
        await asyncio.sleep(0.01)
        beats.append(time.monotonic())


def test_the_event_loop_goes_on_while_an_iterator_is_made_and_closed() -> None:
    beats: list[float] = []

    async def leave_early() -> None:
        heart = asyncio.create_task(beat(beats))
        async with contextlib.aclosing(in_thread(Slow)) as items:
            assert await anext(items) == 1
        heart.cancel()

    asyncio.run(leave_early())
    assert max(after - before for before, after in itertools.pairwise(beats)) < 0.25
    assert beats[-1] - beats[0] > 0.5
    assert made[-1].closed.is_set()


def test_what_is_still_being_made_for_a_reader_who_left_is_closed() -> None:
    async def leave_at_once() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), contextlib.aclosing(in_thread(Slow)) as items:
                await anext(items)

    before = len(made)
    asyncio.run(leave_at_once())
    time.sleep(0.4)
    assert made[before].closed.wait(5)


def test_an_error_in_making_it_reaches_the_reader() -> None:
    def broken() -> Slow:
        raise ValueError("broken")

    async def read() -> None:
        async for _ in in_thread(broken):
            pass

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(read())
