"""A client's connection: its body, within bounds; whether it is still there; and a stream of events to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from arrol_tts.serving.errors import ApiError, api_error, log_failure
from arrol_tts.serving.replies import encoded, frame

BODY_SECONDS = 60.0
"""A client that takes longer to send its request is not waited for."""

COMMIT_SECONDS = 1.0
"""What fails so soon is answered with a status of HTTP; later the stream has begun, and says it itself."""

QUIET_SECONDS = 10.0
"""After so long without an event comes a comment, which keeps proxies from closing the connection."""

SEND_SECONDS = 60.0
"""A client that does not read for so long has left: it would hold its place in the queue."""

T = TypeVar("T")


class ClientLeftError(Exception):
    """Nobody is left to answer."""


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request.

    Raises:
        ApiError: a 408, 413 or 415.
        ClientLeftError: when the client has gone.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(
            415, "send JSON, with the header content-type: application/json", code="invalid_content_type"
        )
    too_large = ApiError(413, f"the body is larger than {limit} bytes, which this server takes", code="too_large")
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced[:20]) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body took longer than {BODY_SECONDS:.0f} s", code="timeout") from None
    except ClientDisconnect:
        raise ClientLeftError from None
    return bytes(body)


async def unless_left(receive: Receive, work: Awaitable[T]) -> T:
    """Do something for a client; it is cancelled when the client goes away.

    Raises:
        ClientLeftError: when the client has gone.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeftError
        return task.result()
    finally:
        await _end(task, gone)


class EventResponse(Response):
    """Server-sent events: chunks as they come, and at last ``[DONE]``.

    Args:
        chunks: JSON-ready; closed when the client goes away. An error that it raises at once becomes the reply.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[dict[str, Any], None]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            with contextlib.suppress(ClientLeftError):
                await unless_left(receive, self._send(send))
        finally:
            await self._chunks.aclose()

    async def _send(self, send: Send) -> None:
        following = _next(self._chunks)
        try:
            done, _ = await asyncio.wait({following}, timeout=COMMIT_SECONDS)
            if done and (error := following.exception()) is not None:
                raise error  # nothing was sent: it becomes the reply
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while True:
                done, _ = await asyncio.wait({following}, timeout=QUIET_SECONDS)
                if not done:
                    await _send_part(send, b": waiting\n\n")
                    continue
                try:
                    await _send_part(send, frame(following.result()))
                except StopAsyncIteration:
                    await _send_part(send, b"data: [DONE]\n\n", more=False)
                    return
                except ClientLeftError:
                    raise
                except Exception as error:
                    log_failure(error)
                    await _send_part(send, frame(api_error(error).body), more=False)
                    return
                following = _next(self._chunks)
        finally:
            await _end(following)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A reply of JSON."""
    return Response(encoded(content), status, headers, "application/json")


def error_response(error: ApiError) -> Response:
    """An error in OpenAI's form."""
    return json_response(error.body, error.status, error.headers)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs, and wait until it has ended; what it raised was for others."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _next(chunks: AsyncGenerator[dict[str, Any], None]) -> asyncio.Future[dict[str, Any]]:
    return asyncio.ensure_future(anext(chunks))


async def _send_part(send: Send, part: bytes, *, more: bool = True) -> None:
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await send({"type": "http.response.body", "body": part, "more_body": more})
    except TimeoutError:
        raise ClientLeftError from None
