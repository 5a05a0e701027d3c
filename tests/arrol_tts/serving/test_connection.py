"""Streams to clients that are slow, quiet or gone, at the interface of ASGI."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from arrol_tts.errors import EngineError
from arrol_tts.serving import connection
from arrol_tts.serving.connection import ClientLeftError, EventResponse, unless_left
from arrol_tts.serving.errors import ApiError

Chunks = AsyncGenerator[dict[str, Any], None]


class Client:
    """Takes what is sent, and leaves after so many parts of the body."""

    def __init__(self, leaves_after: float = float("inf"), *, reads: bool = True) -> None:
        self.body, self.status, self.parts = b"", 0, 0
        self._left = asyncio.Event()
        self._leaves_after, self._reads = leaves_after, reads

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        if not self._reads:
            await asyncio.Event().wait()
        self.body += message["body"]
        self.parts += 1
        if self.parts >= self._leaves_after:
            self._left.set()

    async def receive(self) -> dict[str, Any]:
        await self._left.wait()
        return {"type": "http.disconnect"}


def stream(chunks: Callable[[list[str]], Chunks], **client: Any) -> tuple[Client, list[str]]:
    """Send a stream to a client; what the stream notes of its own end comes too."""
    ended: list[str] = []

    async def run() -> Client:
        there = Client(**client)
        await EventResponse(chunks(ended))({}, there.receive, there.send)  # type: ignore[arg-type]
        return there

    return asyncio.run(run()), ended


async def counting(ended: list[str]) -> Chunks:
    try:
        for i in range(1000):
            await asyncio.sleep(0)
            yield {"i": i}
    finally:
        ended.append("ended")


async def quiet(ended: list[str]) -> Chunks:
    await asyncio.sleep(0.3)
    yield {"i": 0}


async def failing(ended: list[str]) -> Chunks:
    yield {"i": 0}
    raise EngineError("the engine is gone")


async def refusing(ended: list[str]) -> Chunks:
    raise ApiError(429, "full")
    yield {}


def test_chunks_are_events_and_the_last_is_done() -> None:
    client, ended = stream(counting)
    lines = client.body.decode().split("\n\n")
    assert (lines[0], lines[999:]) == ('data: {"i":0}', ['data: {"i":999}', "data: [DONE]", ""])
    assert ended == ["ended"]


def test_a_client_that_leaves_ends_the_stream() -> None:
    client, ended = stream(counting, leaves_after=5)
    assert client.parts < 50
    assert ended == ["ended"]


def test_a_client_that_does_not_read_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SEND_SECONDS", 0.05)
    _, ended = stream(counting, reads=False)
    assert ended == ["ended"]


def test_a_quiet_stream_says_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "COMMIT_SECONDS", 0.01)
    monkeypatch.setattr(connection, "QUIET_SECONDS", 0.1)
    client, _ = stream(quiet)
    assert client.body.startswith(b": waiting\n\n: waiting\n\n")
    assert client.body.endswith(b'data: {"i":0}\n\ndata: [DONE]\n\n')


def test_what_fails_in_the_middle_is_the_last_event() -> None:
    client, _ = stream(failing)
    last = client.body.decode().strip().rpartition("data: ")[2]
    assert json.loads(last)["error"]["message"] == "the engine is gone"
    assert client.status == 200


def test_what_fails_at_once_is_the_reply() -> None:
    with pytest.raises(ApiError, match="full"):
        stream(refusing)


def test_work_for_a_client_that_leaves_is_cancelled() -> None:
    async def run() -> str:
        client, how = Client(), ["finished"]

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                how[0] = "cancelled"
                raise

        asyncio.get_running_loop().call_later(0.05, client._left.set)
        with pytest.raises(ClientLeftError):
            await unless_left(client.receive, work())  # type: ignore[arg-type]
        return how[0]

    assert asyncio.run(run()) == "cancelled"


def test_an_error_of_the_work_is_the_clients() -> None:
    async def run() -> None:
        async def work() -> None:
            raise EngineError("gone")

        await unless_left(Client().receive, work())  # type: ignore[arg-type]

    with pytest.raises(EngineError, match="gone"):
        asyncio.run(run())
