"""The queue before the engine: seats, lines, and fairness between keys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from arrol_tts.serving.errors import ApiError
from arrol_tts.serving.queue import FairQueue


class Line:
    """Requests that sit until they are told to leave, and the order in which they got their seats."""

    def __init__(self, running: int, waiting: int) -> None:
        self.queue = FairQueue(running, waiting)
        self.seated: list[str] = []
        self.leave: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str, samples: int = 1) -> None:
        """Requests named by their key and a number, such as a1."""
        for name in names:
            self.leave[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._sit(name, samples))
            await asyncio.sleep(0)
        await settled()

    async def go(self, *names: str) -> None:
        for name in names:
            self.leave[name].set()
            await settled()

    async def _sit(self, name: str, samples: int) -> None:
        async with self.queue.join(name[0], samples):
            self.seated.append(name)
            await self.leave[name].wait()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_so_many_run_and_the_others_follow_in_order() -> None:
    async def test() -> None:
        line = Line(running=2, waiting=9)
        await line.come("a1", "a2", "a3", "a4")
        assert (line.seated, line.queue.running, line.queue.waiting) == (["a1", "a2"], 2, 2)
        await line.go("a2", "a1")
        assert line.seated == ["a1", "a2", "a3", "a4"]
        await line.go("a3", "a4")
        assert (line.queue.running, line.queue.waiting) == (0, 0)

    run(test)


def test_a_key_with_one_request_does_not_wait_behind_all_of_anothers() -> None:
    async def test() -> None:
        line = Line(running=1, waiting=9)
        await line.come("a1", "a2", "a3", "a4", "b1")
        await line.go("a1", "a2")
        assert line.seated == ["a1", "a2", "b1"]

    run(test)


def test_the_key_with_fewest_samples_running_is_next() -> None:
    async def test() -> None:
        line = Line(running=3, waiting=9)
        await line.come("a1", samples=64)
        await line.come("b1", "b2", samples=4)
        await line.come("a2", "b3")
        await line.go("b1")
        assert line.seated[-1] == "b3"

    run(test)


def test_a_full_line_turns_away_with_429() -> None:
    async def test() -> None:
        line = Line(running=1, waiting=1)
        await line.come("a1", "a2", "a3")
        with pytest.raises(ApiError) as refused:
            await line.tasks["a3"]
        assert (refused.value.status, refused.value.headers["retry-after"]) == (429, "1")
        await line.go("a1")
        assert line.seated == ["a1", "a2"]

    run(test)


def test_in_a_full_line_the_longest_gives_up_its_newest_to_another_key() -> None:
    async def test() -> None:
        line = Line(running=1, waiting=2)
        await line.come("a1", "a2", "a3", "b1")
        with pytest.raises(ApiError):
            await line.tasks["a3"]
        await line.come("b2")  # both have one in line now
        with pytest.raises(ApiError):
            await line.tasks["b2"]
        await line.go("a1", "a2", "b1")
        assert sorted(line.seated) == ["a1", "a2", "b1"]

    run(test)


def test_who_leaves_the_line_is_forgotten() -> None:
    async def test() -> None:
        line = Line(running=1, waiting=2)
        await line.come("a1", "a2", "a3")
        line.tasks["a2"].cancel()
        await settled()
        assert line.queue.waiting == 1
        await line.go("a1")
        assert line.seated == ["a1", "a3"]

    run(test)


def test_a_seat_that_is_granted_to_one_who_leaves_that_moment_goes_on() -> None:
    async def test() -> None:
        line = Line(running=1, waiting=2)
        await line.come("a1", "a2", "a3")
        line.tasks["a2"].cancel()
        line.leave["a1"].set()
        await settled()
        assert (line.seated, line.queue.running) == (["a1", "a3"], 1)

    run(test)


def test_an_error_at_work_gives_the_seat_back() -> None:
    async def test() -> None:
        queue = FairQueue(1, 0)
        with pytest.raises(ValueError, match="broken"):
            async with queue.join("a", 1):
                raise ValueError("broken")
        assert queue.running == 0

    run(test)
