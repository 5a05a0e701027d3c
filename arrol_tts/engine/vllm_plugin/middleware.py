"""Front door of a served engine: refuses bad specs with HTTP 400 and says what the server offers.

vLLM hands ``vllm_xargs`` on unread, so without this a bad spec is found only by the scheduler, when the
request has already been accepted. The middleware looks at a body while the application reads it, so after vLLM
has authenticated the request, and parses it only when it names a spec; everything else passes untouched.
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from arrol_tts import __version__
from arrol_tts.engine.base import DEFAULT_TOP_K
from arrol_tts.engine.handover import named_heads
from arrol_tts.engine.vllm_plugin.allowed import allowed_signals, check_allowed
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY
from arrol_tts.errors import InputError
from arrol_tts.head_config import head_sha256, read_head_config, resolve_head
from arrol_tts.stopping import TraceSpec

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("vllm.arrol")

INFO_PATH = "/arrol/info"
CHECKED_PATHS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/responses",
    "/v1/messages",
    "/invocations",
    "/inference/v1/generate",
)
"""Where vLLM takes sampling parameters in JSON."""

MAX_SPEC_BODY_BYTES = 1 << 20
"""Larger requests with a spec are refused with 413: they are parsed here once more."""

MAX_BODY_BYTES = 64 << 20
"""Larger requests are refused with 413, spec or not; nothing of them is kept here."""

NAMED = re.compile(
    rb"\x00|"
    + b'"'
    + b"".join(rb"(?:%c|\\u00(?i:%x))" % (letter, letter) for letter in CONFIG_KEY.encode())
    + b'"'
)
"""What the body of every request with a spec has: the key, with or without escapes, or the zeros of UTF-16."""

OVERLAP = 31
"""Bytes of a piece that are searched again with the next one: the longest spelling of the key, less one."""


class QualityHeadMiddleware:
    """ASGI middleware for vLLM's ``--middleware``.

    ``GET /arrol/info`` answers, without authentication as ``/health`` does, ``{"version", "hidden_size",
    "top_k", "head": {"sha256", "positions"} or null, "heads": names, "allow": signals}``, or 404 when the server
    runs without the plug-in's scheduler.

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
        return await _Checked(self, scope, receive, send).run(self._app)

    def info(self, scope: Scope) -> dict[str, Any] | None:
        """What this server offers; None when it runs without the plug-in's scheduler."""
        if self._info is None:
            self._info = _describe(scope["app"].state.vllm_config)
        return self._info or None

    def check(self, scope: Scope, body: bytes) -> None:
        """Look at a whole body, and send the group of its spec where its other traces are.

        Raises:
            InputError: for a spec that cannot be answered, saying what to change.
        """
        spec = requested_spec(body)
        if spec is None:
            return
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
        check_allowed(spec, info["allow"])
        if spec.group:
            _keep_group_together(scope, spec.group)


class _RefusedError(Exception):
    """Ends the application's reading of a body; the answer is ours."""


class _Checked:
    """One request on its way in: its body is looked at piece by piece, as the application reads it."""

    def __init__(self, door: QualityHeadMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        self._door, self._scope, self._receive, self._send = door, scope, receive, send
        self._kept = bytearray()
        self._size = 0
        self._named = self._read = self._answered = False
        self._end = b""
        self._refusal: tuple[int, str] | None = None

    async def run(self, app: App) -> None:
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:
            if self._refusal is None:
                raise
        if self._refusal is not None and not self._answered:
            await _refuse(self._send, *self._refusal)

    async def send(self, message: Message) -> None:
        if self._refusal is not None and not self._answered:
            return  # the application's words about a body that it could not read
        self._answered = True
        await self._send(message)

    async def receive(self) -> Message:
        message = await self._receive()
        if self._read or message["type"] != "http.request":
            return message  # how the server learns that the client has gone
        try:
            self._take(message.get("body", b""), last=not message.get("more_body", False))
        except _RefusedError:
            raise
        except InputError as error:
            self._refuse(400, str(error))
        except Exception as error:
            logger.exception("arrol's plug-in failed; it refuses a request")
            self._refuse(500, f"arrol's plug-in failed ({type(error).__name__}); the server's log says more")
        return message

    def _take(self, piece: bytes, *, last: bool) -> None:
        self._size += len(piece)
        self._read = last
        if self._size > MAX_BODY_BYTES:
            self._refuse(413, f"the request is larger than {MAX_BODY_BYTES} bytes")
        self._named = self._named or NAMED.search(self._end + piece) is not None
        self._end = piece[-OVERLAP:] if len(piece) >= OVERLAP else (self._end + piece)[-OVERLAP:]
        if self._size <= MAX_SPEC_BODY_BYTES:
            self._kept += piece
        else:
            self._kept.clear()
        if not last or not self._named:
            return
        if self._size > MAX_SPEC_BODY_BYTES:
            self._refuse(413, f"a request with a spec is larger than {MAX_SPEC_BODY_BYTES} bytes")
        self._door.check(self._scope, bytes(self._kept))

    def _refuse(self, status: int, message: str) -> None:
        self._refusal = status, message
        raise _RefusedError


def _keep_group_together(scope: Scope, group: str) -> None:
    """With data parallelism inside the server, send a whole group to one of its engines.

    Schedulers do not know each other, so a group spread over several would be judged in parts. With hybrid load
    balancing the server has the engines of its own machine only, and counts them from 0.
    """
    parallel = scope["app"].state.vllm_config.parallel_config
    engines = parallel.data_parallel_size
    if parallel.data_parallel_external_lb:
        engines = 1
    elif parallel.data_parallel_hybrid_lb:
        engines = parallel.data_parallel_size_local
    if engines > 1:
        rank = zlib.crc32(group.encode()) % engines
        others = [(name, value) for name, value in scope["headers"] if name != b"x-data-parallel-rank"]
        # In place: a Headers of Starlette that was made before shares the list.
        scope["headers"][:] = [*others, (b"x-data-parallel-rank", b"%d" % rank)]


def requested_spec(body: bytes) -> TraceSpec | None:
    """The spec that a request asks for.

    Returns:
        None for requests without one, and for bodies that vLLM refuses by itself.

    Raises:
        InputError: for a malformed spec or one that cannot be answered, saying what to change.
    """
    try:
        request = json.loads(body)
    except ValueError:
        return None
    except RecursionError:
        raise InputError("the request is nested too deeply") from None
    if not isinstance(request, dict):
        return None
    params = request.get("sampling_params")
    params = params if isinstance(params, dict) else {}
    places = request.get("vllm_xargs"), params.get("extra_args")
    texts = [xargs[CONFIG_KEY] for xargs in places if isinstance(xargs, dict) and CONFIG_KEY in xargs]
    if not texts:
        return None
    text = texts[0]
    if not isinstance(text, str):
        raise InputError(f"vllm_xargs.{CONFIG_KEY} must be a JSON string, not {type(text).__name__}")
    spec = TraceSpec.parse(text)
    if spec.logprobs:
        raise InputError("over HTTP log-probabilities come with the API's own logprobs, not the spec's")
    prompt, messages = request.get("prompt"), request.get("messages")
    several = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
    several = several or (isinstance(messages, list) and any(isinstance(chat, list) for chat in messages))
    one = all(n in (None, 1) for n in (request.get("n"), params.get("n")))
    if not one or several or request.get("use_beam_search"):
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
        own = read_head_config(folder)
        head = {"sha256": head_sha256(folder), "scoring": own.scoring(), "positions": own.positions}
    return {
        "version": __version__,
        "hidden_size": int(config.model_config.get_hidden_size()),
        "top_k": int(options.get("top_k", DEFAULT_TOP_K)),
        "head": head,
        "heads": list(heads),
        "allow": sorted(allowed_signals(options)),
    }


async def _refuse(send: Send, status: int, message: str) -> None:
    error = {"message": message, "type": "BadRequestError", "param": "vllm_xargs", "code": status}
    await _reply(send, status, {"error": error})


async def _reply(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
