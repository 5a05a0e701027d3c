"""What is known of a request when it is over: figures, a span and a line in the access log."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arrol_tts.serving.connection import error_response
from arrol_tts.serving.errors import api_error, log_failure
from arrol_tts.serving.metrics import Metrics
from arrol_tts.serving.runner import Job
from arrol_tts.serving.settings import Settings
from arrol_tts.serving.spans import span

LEFT = 499
"""Status of a request whose client went away before it was answered."""

log = logging.getLogger("arrol_tts.serving.access")


class Observer:
    """Wraps the application; its routes leave their Job in ``request.state.job``.

    Args:
        app: the application.
        settings: the server's.
        metrics: the server's.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request and note how it went."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), LEFT
        state: dict[str, Any] = scope.setdefault("state", {})

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        is_api = scope["path"].startswith("/v1/")
        if not is_api:
            await self._app(scope, receive, send)
            return
        with span(f"{scope['method']} {scope['path']:.100}", Headers(scope=scope)) as spanned:
            try:
                await self._app(scope, receive, note)
            except Exception as error:
                log_failure(error)
                if status == LEFT:  # nothing was sent
                    await error_response(api_error(error))(scope, receive, note)
            finally:
                job: Job | None = state.get("job")
                if job is not None and not job.results and status == 200:  # in the middle of a stream
                    status = job.failure or LEFT
                seconds = time.perf_counter() - began
                self._metrics.count(job, status, seconds)
                spanned.describe(job, self._settings.model, status)
                log.info("%s", self._line(scope, job, status, seconds))

    def _line(self, scope: Scope, job: Job | None, status: int, seconds: float) -> str:
        """One line of JSON, so that nothing a client sends can end it or look like another."""
        client = scope.get("client")
        line: dict[str, Any] = {
            "client": client[0] if client else None,
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "seconds": round(seconds, 4),
        }
        if job is not None:
            line |= {
                "key": job.key,
                "vote": job.choice.method,
                "n": job.choice.n,
                "waited": None if job.waited is None else round(job.waited, 4),
                "tokens": sum(result.tokens.generated for result in job.results),
            }
            if self._settings.log_contents:
                line |= {
                    "prompts": list(job.prompts.values()),
                    "answers": [result.answer for result in job.results],
                }
        return json.dumps(line)
