"""The engine over HTTP: vLLM servers with the plug-in, or any OpenAI-compatible server without it.

One request per trace. All traces of a question go to one server, since its scheduler compares them; when
that server fails, the question moves to another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import math
import random
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from arrol_tts.engine.base import DEFAULT_TOP_K, Engine, Run
from arrol_tts.engine.handover import head_folder, named_heads, weights_file
from arrol_tts.engine.request import Question, Request, Sampling
from arrol_tts.engine.server_replies import START_COMMAND, Written, read_trace
from arrol_tts.engine.server_requests import beyond_openai, request_body
from arrol_tts.engine.server_run import ServerRun
from arrol_tts.engine.vllm_plugin.allowed import check_allowed
from arrol_tts.errors import EngineError, InputError, ServerError
from arrol_tts.head_config import head_sha256, read_head_config
from arrol_tts.prompts import plain_text
from arrol_tts.stopping import TraceSpec
from arrol_tts.thinking import opens_thinking
from arrol_tts.trace import Trace

if TYPE_CHECKING:
    import torch

    from arrol_tts.engine.handover import Heads, HeadSource

PASSING_TROUBLE = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which a request is worth repeating."""

BACK_OFF_SECONDS = 0.5

MAX_PAUSE_SECONDS = 30.0
"""Of what a server asks for with Retry-After: a trace that waits keeps its place, and its question."""

MAX_TEMPLATES = 64
"""Chat templates' endings that are remembered: whoever may choose their variables may choose many."""


@dataclass(slots=True, eq=False)
class _Server:
    url: str
    info: dict[str, Any] | None = None
    """What the plug-in says of itself, None without it."""
    models: tuple[str, ...] = ()
    is_vllm: bool = False
    in_flight: int = 0
    failure: str = ""
    """Why it is not used any more."""


class _ServerFailedError(Exception):
    """A server is given up; the question that met this moves on."""


class ServerEngine(Engine):
    """Samples through servers that speak OpenAI's API.

    With the plug-in (see ``docs/serving.md``) a server gives what the local engine gives, from the same
    seeds. Without it there are only texts and, from returned log-probabilities, token confidences: enough
    for majority and DeepConf votes. Replies are streamed where somebody watches, or may call a question off: a
    cancelled trace comes back with what it had written by then. Scores come with the finished trace, since
    streamed chunks have no place for them.

    Args:
        base_urls: one or several, such as ``http://host:8000`` (a final ``/v1`` may be there or not);
            all serve the same model.
        model: its name there; by default the only one that is served.
        head: the head that the servers must have been started with: its folder or hub id, ``"pocket"``, or the
            head itself; or several by name, of which the default one's weights are compared; None accepts any.
        api_key: sent as bearer token.
        top_k: candidates of DeepConf's token confidence. The plug-in has its own, set at its start; other
            servers return this many log-probabilities a token (20 by default, OpenAI's maximum).
        chat: send questions as chat messages; False sends them as plain text, for models without a chat
            template.
        max_in_flight: traces that a server works on at once. A question's traces are submitted together,
            even when they are more.
        retries: repetitions of a request that failed in passing, with growing pauses, before its server
            is given up.
        timeout: seconds until the answer to a request for a trace must be complete; later the request has failed
            in passing.
        shared_folder: where new weights and heads are left for the servers, which must see it under the same
            path; by default on this machine.

    Raises:
        ServerError: when no server answers; the message names each one's reason.
        InputError: when the servers do not fit the arguments or each other.
    """

    def __init__(
        self,
        base_urls: str | Sequence[str],
        *,
        model: str | None = None,
        head: Heads = None,
        api_key: str | None = None,
        top_k: int | None = None,
        chat: bool = True,
        max_in_flight: int = 512,
        retries: int = 3,
        timeout: float = 1800.0,
        shared_folder: str | Path | None = None,
    ) -> None:
        urls = [base_urls] if isinstance(base_urls, str) else list(base_urls)
        urls = list(dict.fromkeys(url.rstrip("/").removesuffix("/v1") for url in urls))
        if not urls or not all(url.startswith(("http://", "https://")) for url in urls):
            raise InputError(f"base_urls is {base_urls!r}; it must name servers such as 'http://localhost:8000'")
        self._servers = [_Server(url) for url in urls]
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._chat, self._max_in_flight, self._retries = chat, max_in_flight, retries
        self._seconds, self._timeout = timeout, httpx.Timeout(timeout, connect=10.0, pool=None)
        self._wanted_heads: dict[str, tuple[str, dict[str, Any]]] = {}
        for name, each in named_heads(head).items():
            with head_folder(each) as folder:
                scoring = read_head_config(Path(folder)).scoring()
                self._wanted_heads[name] = head_sha256(Path(folder)), scoring
        self._wanted_top_k = top_k
        self._shared_folder = None if shared_folder is None else Path(shared_folder)
        self.model = model or ""
        for server in self._servers:
            self._probe(server)
        first = self._alive()[0]
        self.hidden_size: int = first.info["hidden_size"] if first.info else 0
        self._probing = threading.Lock()
        # Requests run on a loop of their own, so that callers need not be asynchronous.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="arrol-servers", daemon=True)
        self._thread.start()
        # One connection per trace: it is nothing beside a trace, while httpx's pool of idle connections costs
        # time quadratic in their number (25 ms a request with 512), and servers close idle ones at will.
        self._client = httpx.AsyncClient(
            headers=self._headers,
            timeout=self._timeout,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )
        self._left = asyncio.Event()
        self._opened: dict[bytes, asyncio.Task[bool]] = {}
        """Of templates, the one that was asked about last at the end."""

    @property
    def heads(self) -> Collection[str]:
        """See ``Engine.heads``: those that all servers have."""
        named = [set(server.info["heads"]) if server.info else set() for server in self._alive()]
        return set.intersection(*named)

    def check(self, questions: Sequence[Question], sampling: Sampling, spec: TraceSpec) -> None:
        """See ``Engine.check``; also for what servers without the plug-in, or other than vLLM's, have not.

        Raises:
            InputError: saying what to change.
            ServerError: when no server answers.
        """
        self._probe_failed()
        bare = ", ".join(server.url for server in self._alive() if server.info is None)
        if bare and spec.self_certainty:
            raise InputError(
                f"{bare}: self-certainty needs arrol's plug-in in the server: start it with `{START_COMMAND}`; "
                "without it use method='majority' or 'deepconf'"
            )
        if bare and replace(spec, confidence=False, logprobs=False).asks_anything:
            raise InputError(
                f"{bare}: scores and stopping rules, and so the quality method, need arrol's plug-in "
                f"in the server: start it with `{START_COMMAND}`; without it use method='majority' or 'deepconf'"
            )
        for server in self._alive():
            if server.info is not None:
                check_allowed(spec, server.info["allow"])
        foreign = ", ".join(server.url for server in self._alive() if not server.is_vllm)
        if foreign and (name := beyond_openai(sampling)):
            raise InputError(
                f"{foreign}: {name}={getattr(sampling, name)!r} is not in OpenAI's API, and this is no server of "
                f"vLLM's: leave {name} out, or serve the model with vLLM"
            )
        for question in questions:
            if foreign and question.chat_template_kwargs:
                raise InputError(
                    f"{foreign}: chat_template_kwargs is not in OpenAI's API, and this is no server of vLLM's: "
                    "leave it out, or put it into request_fields if the server knows it"
                )
            if not self._chat and (question.chat_template_kwargs or question.request_fields):
                raise InputError(
                    "this engine sends questions as plain text, without chat_template_kwargs and request_fields: "
                    "leave them out, or chat=False"
                )
        super().check(questions, sampling, spec)

    def trouble(self) -> str:
        """See ``Engine.trouble``: what is the matter with each server, once none is left."""
        try:
            self._probe_failed()
            self._alive()
        except (InputError, ServerError) as error:
            return str(error)
        return ""

    def _probe_failed(self) -> None:
        """Ask servers that were given up whether they are back; nobody waits for it while others are there."""
        failed = [server for server in self._servers if server.failure]
        if len(failed) == len(self._servers):
            for server in failed:
                self._probe(server)
        elif failed and self._probing.acquire(blocking=False):
            threading.Thread(target=self._probe_aside, args=(failed,), name="arrol-probe", daemon=True).start()

    def _probe_aside(self, failed: Sequence[_Server]) -> None:
        try:
            for server in failed:
                with contextlib.suppress(InputError):  # another one has come in its place
                    self._probe(server)
        finally:
            self._probing.release()

    def _start(self, request: Request) -> Run:
        return ServerRun(self._loop, request, self._ask)

    def takes_head(self, name: str = "") -> bool:
        """See ``Engine.takes_head``: a server takes new heads in the place of those that it was started with."""
        return name in self.heads

    def load_head(self, head: HeadSource, name: str = "") -> None:
        """See ``Engine.load_head``; every server must have been started with a head of that name."""
        with head_folder(head, hidden_size=self.hidden_size, model=self.model, folder=self._shared_folder) as path:
            self._tell("/collective_rpc", {"method": "arrol_load_head", "args": [path, name]})

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]] | str | Path) -> None:
        """See ``Engine.load_weights``; a file must be one that the servers see."""
        if any(server.in_flight for server in self._servers):
            raise EngineError("traces are being sampled: load new weights when they have ended")
        with weights_file(weights, self._shared_folder) as path:
            self._tell("/collective_rpc", {"method": "arrol_load_weights", "args": [path]})
            self._tell("/reset_prefix_cache", {})

    def _tell(self, path: str, body: dict[str, Any]) -> None:
        """Call one of vLLM's endpoints for development on every server; all of them or an error."""
        with httpx.Client(headers=self._headers, timeout=self._timeout) as client:
            for server in self._servers:
                try:
                    response = client.post(server.url + path, json=body)
                except httpx.TransportError as error:
                    raise ServerError(f"{server.url} did not take {path}: {_words(error)}") from error
                if response.status_code == 404:
                    raise ServerError(
                        f"{server.url} takes no new weights: start it with VLLM_SERVER_DEV_MODE=1 in its "
                        "environment, where only the trainer can reach it"
                    )
                if response.status_code != 200:
                    raise ServerError(f"{server.url} did not take {path}: {_message(response)}")

    def close(self) -> None:
        """See ``Engine.close``; the servers go on."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    def _probe(self, server: _Server) -> None:
        """Learn what a server offers, or why it cannot be used."""
        try:
            with httpx.Client(headers=self._headers, timeout=10.0) as client:
                models = client.get(f"{server.url}/v1/models")
                info = client.get(f"{server.url}/arrol/info")
        except httpx.TransportError as error:
            server.failure = _words(error)
            return
        except httpx.InvalidURL as error:
            raise InputError(f"base_urls has {server.url!r}: {error}") from None
        if models.status_code in (401, 403):
            raise InputError(f"{server.url} refuses the API key: pass api_key=")
        if models.status_code != 200:
            server.failure = f"HTTP {models.status_code} from /v1/models"
            return
        try:
            cards = models.json()["data"]
            server.models = tuple(card["id"] for card in cards)
            server.is_vllm = any(card.get("owned_by") == "vllm" for card in cards)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{server.url} does not speak OpenAI's API: /v1/models has no list") from None
        server.info = _plugin_info(info)
        self._check_server(server)
        server.failure = ""

    def _check_server(self, server: _Server) -> None:
        if not self.model:
            if len(server.models) != 1:
                raise InputError(f"{server.url} serves {', '.join(server.models) or 'no model'}: pass model=")
            self.model = server.models[0]
        if self.model not in server.models:
            raise InputError(
                f"{server.url} does not serve {self.model!r} but {', '.join(server.models)}: pass model="
            )
        if server.info is None:
            return
        top_k = server.info["top_k"]
        if self._wanted_top_k not in (None, top_k):
            raise InputError(f"{server.url} computes confidences with top_k={top_k}, not {self._wanted_top_k}")
        served = server.info["head"]
        found = served and (served.get("sha256"), served.get("scoring"))
        if "" in self._wanted_heads and found != self._wanted_heads[""]:
            raise InputError(
                f"{server.url} was started with {'another head' if served else 'no head'}: start it with "
                f"`{START_COMMAND}` and the head that was passed here"
            )
        if lacking := self._wanted_heads.keys() - set(server.info["heads"]):
            raise InputError(f"{server.url} was started without the head {min(lacking)!r}")

    def _alive(self) -> list[_Server]:
        alive = [server for server in self._servers if not server.failure]
        if not alive:
            reasons = "; ".join(f"{server.url}: {server.failure}" for server in self._servers)
            raise ServerError(f"no server is left ({reasons})")
        return alive

    async def _ask(self, run: ServerRun, request: Request) -> None:
        """Answer a request of a run: its first one, or one that was added."""
        try:
            turn = asyncio.Lock()  # questions wait for room in their order, and so that one of them is woken
            async with asyncio.TaskGroup() as tasks:
                for question, spec in zip(request.questions, request.specs, strict=True):
                    run.jobs[question.id] = tasks.create_task(self._answer(run, question, spec, turn))
        except asyncio.CancelledError:
            run.inbox.put(ServerError("the engine was closed while it was sampling"))
            raise
        except Exception as error:
            cause: Exception = error
            while isinstance(cause, ExceptionGroup):
                cause = cause.exceptions[0]
            run.inbox.put(cause)

    async def _room(self, traces: int) -> _Server:
        """Room for all of a question's traces on the server with least to do, taken as soon as there is some."""
        while True:
            server = min(self._alive(), key=lambda s: s.in_flight)
            if not server.in_flight or server.in_flight + traces <= self._max_in_flight:
                server.in_flight += traces
                return server
            self._left.clear()
            await self._left.wait()

    def _leave(self, server: _Server, traces: int, _task: asyncio.Task[None] | None = None) -> None:
        server.in_flight -= traces
        self._left.set()

    async def _answer(self, run: ServerRun, question: Question, spec: TraceSpec, turn: asyncio.Lock) -> None:
        """Every trace of a question once, whatever happens to its server."""
        everything = question.wanted(run.request.sampling.n)
        answered: set[int] = set()
        try:
            await self._answer_all(run, question, spec, turn, everything, answered)
        except asyncio.CancelledError:
            if question.id not in run.stopped:
                raise
            known = self._opened.get(_template_of(question))
            opened = known is not None and known.done() and not known.cancelled() and known.result()
            run.give_up(question, [i for i in everything if i not in answered], opened=opened)

    async def _answer_all(
        self,
        run: ServerRun,
        question: Question,
        spec: TraceSpec,
        turn: asyncio.Lock,
        everything: Sequence[int],
        answered: set[int],
    ) -> None:
        async def one(server: _Server, sample_id: int, body: dict[str, Any], spec: TraceSpec) -> None:
            trace = await self._trace(run, server, question, sample_id, body, spec)
            if sample_id not in answered:
                answered.add(sample_id)
                run.inbox.put(trace)

        sampling = run.request.sampling
        for attempt in itertools.count():
            # Rules compare the traces of a group: it meets again as a whole, from the same seeds, and what
            # has been answered already is dropped.
            wanted = [i for i in everything if spec.rules or i not in answered]
            group = replace(spec, group=f"{spec.group}/{attempt}", live=run.request.streams)
            async with turn:
                server = await self._room(len(wanted))
            unused = len(wanted)
            try:
                body = request_body(
                    question,
                    sampling,
                    group,
                    model=self.model,
                    chats=self._chats(question),
                    is_vllm=server.is_vllm,
                    plug_in=server.info is not None,
                    top_k=self._wanted_top_k or DEFAULT_TOP_K,
                )
                async with asyncio.TaskGroup() as tasks:
                    for i in wanted:
                        task = tasks.create_task(one(server, i, body, group))
                        task.add_done_callback(partial(self._leave, server, 1))
                        unused -= 1
            except* _ServerFailedError as failures:
                server.failure = server.failure or str(failures.exceptions[0])
            finally:
                self._leave(server, unused)
            if len(answered) == len(everything):
                return

    async def _trace(
        self,
        run: ServerRun,
        server: _Server,
        question: Question,
        sample_id: int,
        body: dict[str, Any],
        spec: TraceSpec,
    ) -> Trace:
        body = body | {"seed": run.request.sampling.seed_of(question.id, sample_id)}
        path = "/v1/chat/completions" if self._chats(question) else "/v1/completions"
        note: Callable[[Written], None] | None = None
        if run.request.streams:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            note = partial(run.note, question.id, sample_id)
        try:
            reply = await self._post(server, path, body, note)
            opened = await self._opens_thinking(server, question)
            return read_trace(reply, question, sample_id, "vllm_xargs" in body, spec, opened=opened)
        except InputError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ServerError(f"{server.url} answers what cannot be read: {_words(error)}") from error

    async def _opens_thinking(self, server: _Server, question: Question) -> bool:
        """Whether a question's prompt ends inside a thinking; vLLM's servers know what their template makes."""
        if not self._chats(question):
            return question.token_ids is None and opens_thinking(plain_text(question.messages))
        if not server.is_vllm:
            return False
        key = _template_of(question)
        asking = self._opened.pop(key, None) or self._loop.create_task(self._ask_template(server, question))
        self._opened[key] = asking
        if len(self._opened) > MAX_TEMPLATES:
            del self._opened[next(iter(self._opened))]
        # Others wait for it too: one trace that is cancelled does not end it.
        return await asyncio.shield(asking)

    async def _ask_template(self, server: _Server, question: Question) -> bool:
        asked = {
            "model": self.model,
            "messages": [{"role": "user", "content": "?"}],
            "chat_template_kwargs": dict(question.chat_template_kwargs),
            "return_token_strs": True,
        }
        try:
            response = await self._client.post(f"{server.url}/tokenize", json=asked)
            if response.status_code not in PASSING_TROUBLE:
                return opens_thinking("".join(response.json()["token_strs"]))
        except httpx.TransportError:
            pass
        except (ValueError, LookupError, TypeError, RecursionError):
            return False  # it has no such endpoint, or says nothing that can be read
        self._opened.pop(_template_of(question), None)  # the next one asks again
        return False

    def _chats(self, question: Question) -> bool:
        return self._chat and question.chat and question.token_ids is None

    async def _post(
        self, server: _Server, path: str, body: dict[str, Any], note: Callable[[Written], None] | None
    ) -> dict[str, Any]:
        for attempt in itertools.count():
            pause = BACK_OFF_SECONDS * 2**attempt * random.uniform(0.5, 1.0)
            try:
                async with asyncio.timeout(self._seconds):  # httpx's own begins anew with every chunk
                    if note is None:
                        response = await self._client.post(server.url + path, json=body)
                    else:
                        response, streamed = await self._read_stream(server.url + path, body, note)
            except (httpx.TransportError, TimeoutError) as error:
                trouble = _words(error)
            else:
                if response.status_code == 200:
                    reply: dict[str, Any] = response.json() if note is None else streamed
                    if reply["choices"][0].get("finish_reason") not in ("abort", "error"):
                        return reply
                    trouble = "it aborted the request"
                elif response.status_code in PASSING_TROUBLE:
                    trouble = f"HTTP {response.status_code}: {_message(response)}"
                    with contextlib.suppress(KeyError, ValueError):
                        asked = float(response.headers["retry-after"])
                        pause = max(pause, min(asked, MAX_PAUSE_SECONDS)) if math.isfinite(asked) else pause
                else:
                    raise InputError(f"{server.url} refuses the request: {_message(response)}")
            if attempt >= self._retries or server.failure:
                raise _ServerFailedError(trouble)
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _read_stream(
        self, url: str, body: dict[str, Any], note: Callable[[Written], None]
    ) -> tuple[httpx.Response, dict[str, Any]]:
        """A streamed answer, put together; empty when the status is not 200. Some servers do not stream."""
        written = Written()
        async with self._client.stream("POST", url, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                return response, {}
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                return response, json.loads(await response.aread())
            async for line in response.aiter_lines():
                written.add(line)
                note(written)
        if not written.ended:
            raise httpx.RemoteProtocolError("the answer broke off")
        return response, written.reply()


def _template_of(question: Question) -> bytes:
    """A digest of what decides how a chat template ends a prompt."""
    variables = json.dumps(dict(question.chat_template_kwargs), sort_keys=True, default=str)
    return hashlib.sha256(variables.encode()).digest()


def _plugin_info(response: httpx.Response) -> dict[str, Any] | None:
    try:
        info = response.json()
        return {key: info[key] for key in ("version", "hidden_size", "top_k", "head", "heads", "allow")}
    except (ValueError, KeyError, TypeError):
        return None  # a server without the plug-in may answer anything here


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500] or f"HTTP {response.status_code}"


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
