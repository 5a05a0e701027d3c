"""Front door of a served engine: refuses bad specs with HTTP 400 and says what the server offers.

vLLM hands ``vllm_xargs`` on unread, so without this a bad spec is found only by the scheduler, when the
request has already been accepted. The middleware reads completion and chat requests alone; everything
else, streams included, passes untouched.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from arrol_tts import __version__
from arrol_tts.engine.base import DEFAULT_TOP_K
from arrol_tts.engine.handover import named_heads
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY
from arrol_tts.errors import InputError
from arrol_tts.head_config import head_sha256, read_head_config, resolve_head
from arrol_tts.stopping import TraceSpec

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

INFO_PATH = "/arrol/info"
CHECKED_PATHS = ("/v1/completions", "/v1/chat/completions")
MAX_BODY_BYTES = 64 << 20
"""Larger completion and chat requests are refused with 413; the body is held in memory once."""


class QualityHeadMiddleware:
    """ASGI middleware for vLLM's ``--middleware``.

    ``GET /arrol/info`` answers, without authentication as ``/health`` does, ``{"version", "hidden_size",
    "top_k", "head": {"sha256", "positions"} or null, "heads": names}``, or 404 when the server runs without the
    plug-in's scheduler.

    Args:
        app: the next ASGI application.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._info: dict[str, Any] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == INFO_PATH:
            info = self.info(scope)
            return await _reply(send, 200 if info else 404, info or {"detail": "Not Found"})
        if scope["method"] != "POST" or path not in CHECKED_PATHS:
            return await self._app(scope, receive, send)
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > MAX_BODY_BYTES:
                return await _refuse(send, 413, f"the request is larger than {MAX_BODY_BYTES} bytes")
            more = message.get("more_body", False)
        body = b"".join(chunks)
        try:
            spec = requested_spec(body)
            if spec is not None:
                self._check(scope, spec)
        except ValueError as error:
            return await _refuse(send, 400, str(error))
        if spec is not None and spec.group:
            self._keep_group_together(scope, spec.group)
        read = False

        async def replay() -> Message:
            nonlocal read
            if read:
                return await receive()  # how the server learns that the client has gone
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        return await self._app(scope, replay, send)

    def info(self, scope: Scope) -> dict[str, Any] | None:
        """What this server offers; None when it runs without the plug-in's scheduler."""
        if self._info is None:
            self._info = _describe(scope["app"].state.vllm_config)
        return self._info or None

    def _check(self, scope: Scope, spec: TraceSpec) -> None:
        info = self.info(scope)
        if info is None:
            raise InputError(
                "this server runs without arrol's scheduler: start it with python -m "
                "arrol_tts.engine.vllm_plugin.serve HEAD, or leave the spec out"
            )
        if spec.scores and spec.head not in info["heads"]:
            others = f": it has {', '.join(map(repr, info['heads']))}" if info["heads"] else ""
            named = f"head {spec.head!r}" if spec.head else "a quality head"
            raise InputError(f"scores and pruning need {named}, and this server was started without it{others}")

    @staticmethod
    def _keep_group_together(scope: Scope, group: str) -> None:
        """With data parallelism inside the server, send a whole group to one of its engines.

        Schedulers do not know each other, so a group spread over several would be judged in parts.
        """
        parallel = scope["app"].state.vllm_config.parallel_config
        if parallel.data_parallel_size > 1 and not (
            parallel.data_parallel_external_lb or parallel.data_parallel_hybrid_lb
        ):
            rank = zlib.crc32(group.encode(errors="replace")) % parallel.data_parallel_size
            others = [(name, value) for name, value in scope["headers"] if name != b"x-data-parallel-rank"]
            scope["headers"] = [*others, (b"x-data-parallel-rank", b"%d" % rank)]


def requested_spec(body: bytes) -> TraceSpec | None:
    """The spec that a completion or chat request asks for.

    Returns:
        None for requests without one, and for bodies that vLLM refuses by itself.

    Raises:
        InputError: for a malformed spec or one that cannot be answered, saying what to change.
    """
    # Most requests have no spec: do not parse them twice. An escape could hide the key.
    if CONFIG_KEY.encode() not in body and b"\\u" not in body:
        return None
    try:
        request = json.loads(body)
    except ValueError:
        return None
    except RecursionError:
        raise InputError("the request is nested too deeply") from None
    xargs = request.get("vllm_xargs") if isinstance(request, dict) else None
    if not isinstance(xargs, dict) or CONFIG_KEY not in xargs:
        return None
    text = xargs[CONFIG_KEY]
    if not isinstance(text, str):
        raise InputError(f"vllm_xargs.{CONFIG_KEY} must be a JSON string, not {type(text).__name__}")
    spec = TraceSpec.parse(text)
    if spec.logprobs:
        raise InputError("over HTTP log-probabilities come with the API's own logprobs, not the spec's")
    prompt = request.get("prompt")
    several = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
    if request.get("n") not in (None, 1) or several or request.get("use_beam_search"):
        raise InputError(
            f"a request with vllm_xargs.{CONFIG_KEY} samples one trace, so that its log comes back: "
            "send one request per trace, with n=1, one prompt and no beam search"
        )
    return spec


def _describe(config: Any) -> dict[str, Any]:
    """What a server with this VllmConfig offers; empty without the plug-in's scheduler."""
    from arrol_tts.engine.vllm_plugin.scheduler import MonitoredScheduler

    if not issubclass(config.scheduler_config.get_scheduler_cls(), MonitoredScheduler):
        return {}
    options = (config.additional_config or {}).get(CONFIG_KEY, {})
    head = None
    heads = named_heads(options.get("head"))
    if "" in heads:
        folder = resolve_head(heads[""])
        head = {"sha256": head_sha256(folder), "positions": read_head_config(folder).positions}
    return {
        "version": __version__,
        "hidden_size": int(config.model_config.get_hidden_size()),
        "top_k": int(options.get("top_k", DEFAULT_TOP_K)),
        "head": head,
        "heads": list(heads),
    }


async def _refuse(send: Send, status: int, message: str) -> None:
    error = {"message": message, "type": "BadRequestError", "param": "vllm_xargs", "code": status}
    await _reply(send, status, {"error": error})


async def _reply(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
