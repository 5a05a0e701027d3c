"""A stand-in for somebody's OpenAI-compatible server: it answers what it is told to, whole or streamed."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

Answer = Callable[[dict[str, Any]], dict[str, Any] | int]
"""Takes a request; returns the message of the reply, or a status of HTTP."""


class StandIn:
    """Serves ``answer`` on a loopback port, and remembers what it was asked."""

    def __init__(self, answer: Answer, owner: str = "somebody") -> None:
        self.requests: list[dict[str, Any]] = []
        self.left = 0
        app = FastAPI()

        @app.get("/v1/models")
        async def models() -> Response:
            return JSONResponse({"data": [{"id": "m", "owned_by": owner}]})

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            body = await request.json()
            self.requests.append(body)
            message = await asyncio.to_thread(answer, body)
            if isinstance(message, int):
                return JSONResponse({"error": {"message": "told to"}}, message)
            finish = "tool_calls" if message.get("tool_calls") else "stop"
            usage = {
                "prompt_tokens": 7,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 4},
            }
            if not body.get("stream"):
                choice = {"message": message, "finish_reason": finish}
                return Response(json.dumps({"choices": [choice], "usage": usage}), media_type="application/json")
            return StreamingResponse(written(message, finish, usage), media_type="text/event-stream")

        async def written(message: dict[str, Any], finish: str, usage: Any) -> AsyncIterator[str]:
            calls = [{"index": i, **call} for i, call in enumerate(message.get("tool_calls") or ())]
            delta = message | ({"tool_calls": calls} if calls else {})
            for chunk in (
                {"choices": [{"delta": delta}]},
                {"choices": [{"delta": {}, "finish_reason": finish}]},
                {"choices": [], "usage": usage},
            ):
                yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"

        self._port = socket.socket()
        self._port.bind(("127.0.0.1", 0))
        self._port.listen(128)
        self.url = f"http://127.0.0.1:{self._port.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._port]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def kill(self) -> None:
        """Stop listening at once."""
        self._server.force_exit = self._server.should_exit = True
        self._thread.join(10)
        self._port.close()
