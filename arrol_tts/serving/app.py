"""The application: OpenAI's routes, in front of one engine."""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from arrol_tts.engine.server_engine import ServerEngine
from arrol_tts.errors import ArrolError
from arrol_tts.serving.choice import MAX_SEED, Choice, choose, models_of
from arrol_tts.serving.connection import (
    ClientLeftError,
    EventResponse,
    error_response,
    json_response,
    read_body,
    unless_left,
)
from arrol_tts.serving.errors import ApiError, api_error, bad_field, log_failure
from arrol_tts.serving.messages import check_messages, check_response_format, check_tools
from arrol_tts.serving.metrics import Metrics
from arrol_tts.serving.observer import LEFT, Observer
from arrol_tts.serving.replies import Replier
from arrol_tts.serving.requests import ChatFields, CommonFields, TextFields, VoteFields, read_fields
from arrol_tts.serving.runner import Job, Runner
from arrol_tts.serving.settings import Settings

FIELDS = {name: name for name in (*ChatFields.model_fields, *TextFields.model_fields)} | {
    name: f"arrol.{name}" for name in VoteFields.model_fields if name not in CommonFields.model_fields
}
"""Where the names that errors begin with stand in a request."""


def make_app(runner: Runner, settings: Settings) -> FastAPI:
    """The application.

    Args:
        runner: samples and votes.
        settings: of the server.
    """
    app = FastAPI(title="arrol-serve", openapi_url=None, docs_url=None, redoc_url=None)
    metrics = Metrics(settings.model, runner.queue)
    app.add_middleware(Observer, settings=settings, metrics=metrics)
    keys = {_digest(key): name for key, name in settings.keys.items()}
    started = int(time.time())

    def caller(request: Request) -> str:
        """The name of the API key of a request."""
        if not keys:
            return ""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        name = keys.get(_digest(key.strip())) if scheme.lower() == "bearer" else None
        if name is None:
            raise ApiError(
                401,
                "there is no such API key: send the header authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return name

    def card(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "arrol"}

    async def names() -> list[str]:
        return models_of(settings, await asyncio.to_thread(runner.methods))

    @app.get("/health")
    async def health() -> Response:
        trouble = await asyncio.to_thread(runner.engine.trouble)
        return json_response({"status": trouble or "ok"}, 503 if trouble else 200)

    @app.get("/metrics")
    async def figures() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        caller(request)
        cards = [card(name) for name in await names()]
        return json_response({"object": "list", "data": cards})

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        caller(request)
        if name not in await names():
            raise ApiError(404, f"the model {name!r:.200} does not exist", param="model", code="model_not_found")
        return json_response(card(name))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        key = caller(request)
        fields = read_fields(ChatFields, await read_body(request, settings.max_body))
        check_messages(fields.messages, images=isinstance(runner.engine, ServerEngine))
        check_tools(fields.tools or (), fields.tool_choice)
        if fields.response_format is not None:
            check_response_format(fields.response_format)
        return await answer(request, Job(key, "chat", {"q0": fields.messages}, _choose(fields)), fields)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        key = caller(request)
        fields = read_fields(TextFields, await read_body(request, settings.max_body))
        if not 1 <= len(fields.prompt) <= settings.max_prompts:
            raise bad_field("prompt", f"there are {len(fields.prompt)}; send from 1 to {settings.max_prompts}")
        for i, prompt in enumerate(fields.prompt):
            if not prompt.strip():
                raise bad_field("prompt", f"prompt[{i}] is empty: ask something")
        prompts = {f"q{i}": prompt for i, prompt in enumerate(fields.prompt)}
        return await answer(request, Job(key, "text", prompts, _choose(fields)), fields)

    def _choose(fields: CommonFields) -> Choice:
        return choose(fields, settings, runner.config, seed=random.randrange(MAX_SEED))

    async def answer(request: Request, job: Job, fields: CommonFields) -> Response:
        request.state.job = job
        replier = Replier(
            id=f"{'chatcmpl' if job.kind == 'chat' else 'cmpl'}-{secrets.token_hex(12)}",
            created=int(time.time()),
            model=fields.model or settings.model,
            kind=job.kind,
            n=fields.choices,
            seed=job.choice.seed,
            traces=job.choice.traces,
        )
        if fields.stream:
            include_usage = bool(fields.stream_options and fields.stream_options.include_usage)
            return EventResponse(stream(job, replier, include_usage))
        results = await unless_left(request.receive, runner.solve(job))
        return json_response(replier.whole(results))

    async def stream(job: Job, replier: Replier, include_usage: bool) -> AsyncGenerator[dict[str, Any], None]:
        is_open = False
        try:
            async with aclosing(runner.watch(job)) as votes:
                async for forming in votes:
                    if not is_open:
                        yield replier.opening()
                        is_open = True
                    yield replier.progress(forming)
        except Exception as error:
            job.failure = api_error(error).status
            raise
        if not is_open:
            yield replier.opening()
        for chunk in replier.closing(job.results, include_usage=include_usage):
            yield chunk

    async def on_error(_request: Request, error: Exception) -> Response:
        answered = api_error(error, FIELDS)
        if answered.status >= 500:
            log_failure(error)
        return error_response(answered)

    async def on_http_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_response(ApiError(error.status_code, f"{error.detail}: see docs/endpoint.md for the routes"))

    async def on_left(_request: Request, _error: Exception) -> Response:
        return Response(status_code=LEFT)

    app.add_exception_handler(ArrolError, on_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(ClientLeftError, on_left)
    return app


def _digest(key: str) -> bytes:
    """Keys are looked up by their digests, so that how long it takes says nothing about them."""
    return hashlib.sha256(key.encode(errors="replace")).digest()
