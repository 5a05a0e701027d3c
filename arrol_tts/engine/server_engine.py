"""The engine over HTTP: vLLM servers with the plug-in, or any OpenAI-compatible server without it.

One request per trace. All traces of a question go to one server, since its scheduler compares them; when
that server fails, the question moves to another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import queue
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from arrol_tts.engine.base import DEFAULT_TOP_K, group_specs
from arrol_tts.engine.handover import head_folder, weights_file
from arrol_tts.engine.request import Question, Sampling, StopQuestion, check_request, never_stop
from arrol_tts.engine.server_replies import START_COMMAND, Written, read_trace
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY
from arrol_tts.errors import ServerError
from arrol_tts.events import Progress
from arrol_tts.head_config import head_sha256
from arrol_tts.stopping import TraceSpec
from arrol_tts.trace import Trace

if TYPE_CHECKING:
    import torch

    from arrol_tts.head import QualityHead
    from arrol_tts.streams import Closing

PASSING_TROUBLE = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which a request is worth repeating."""

BACK_OFF_SECONDS = 0.5


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


Inbox = queue.SimpleQueue[Progress | Trace | Exception | None]
"""From the loop's thread to the caller's: traces and progress, an error that ends them, None at the end."""


class _Call:
    """One call of ``sample`` or ``stream``; ``note`` runs on the loop's thread, ``cancelled`` on the caller's."""

    def __init__(self, sampling: Sampling, every: float | None) -> None:
        self.sampling, self.every = sampling, every
        self.inbox: Inbox = queue.SimpleQueue()
        self.jobs: dict[str, asyncio.Task[None]] = {}
        self._told: dict[tuple[str, int], tuple[float, int, int]] = {}
        self._written: dict[tuple[str, int], tuple[str, int]] = {}

    def note(self, question_id: str, sample_id: int, written: Written) -> None:
        """Report what a trace wrote, when it is time; a trace that is sampled again is silent until it is new."""
        key = question_id, sample_id
        text = written.choice["text"]
        last, characters, tokens = self._told.get(key, (0.0, 0, 0))
        self._written[key] = text, written.num_tokens
        if self.every is None or len(text) <= characters or time.monotonic() - last < self.every:
            return
        self._told[key] = time.monotonic(), len(text), written.num_tokens
        self.inbox.put(Progress(question_id, sample_id, max(tokens, written.num_tokens), text[characters:]))

    def cancelled(self, question_id: str, sample_id: int, why: str) -> Trace:
        """A trace that is not needed any more, with what is known of its text."""
        text, tokens = self._written.get((question_id, sample_id), ("", 0))
        return Trace(question_id, sample_id, text, num_tokens=tokens, finish_reason="cancelled", detail=why)


class ServerEngine:
    """Samples through servers that speak OpenAI's API.

    With the plug-in (see ``docs/serving.md``) a server gives what the local engine gives, from the same
    seeds. Without it there are only texts and, from returned log-probabilities, token confidences: enough
    for majority and DeepConf votes.

    Args:
        base_urls: one or several, such as ``http://host:8000`` (a final ``/v1`` may be there or not);
            all serve the same model.
        model: its name there; by default the only one that is served.
        head: local folder of the head that the servers must have loaded; None accepts any.
        api_key: sent as bearer token.
        top_k: candidates of DeepConf's token confidence. The plug-in has its own, set at its start; other
            servers return this many log-probabilities a token (20 by default, OpenAI's maximum).
        chat: send questions as chat messages; False sends them as plain text, for models without a chat
            template.
        max_in_flight: traces that a server works on at once. A question's traces are submitted together,
            even when they are more.
        retries: repetitions of a request that failed in passing, with growing pauses, before its server
            is given up.
        timeout: seconds until a trace must be complete.
        shared_folder: where new weights and heads are left for the servers, which must see it under the same
            path; by default on this machine.

    Raises:
        ServerError: when no server answers; the message names each one's reason.
        ValueError: when the servers do not fit the arguments or each other.
    """

    def __init__(
        self,
        base_urls: str | Sequence[str],
        *,
        model: str | None = None,
        head: str | Path | None = None,
        api_key: str | None = None,
        top_k: int | None = None,
        chat: bool = True,
        max_in_flight: int = 512,
        retries: int = 3,
        timeout: float = 600.0,
        shared_folder: str | Path | None = None,
    ) -> None:
        urls = [base_urls] if isinstance(base_urls, str) else list(base_urls)
        urls = list(dict.fromkeys(url.rstrip("/").removesuffix("/v1") for url in urls))
        if not urls or not all(url.startswith(("http://", "https://")) for url in urls):
            raise ValueError(f"base_urls is {base_urls!r}; it must name servers such as 'http://localhost:8000'")
        self._servers = [_Server(url) for url in urls]
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._chat, self._max_in_flight, self._retries = chat, max_in_flight, retries
        self._timeout = httpx.Timeout(timeout, connect=10.0, pool=None)
        self._wanted_head = None if head is None else Path(head)
        self._wanted_top_k = top_k
        self._shared_folder = None if shared_folder is None else Path(shared_folder)
        self.model = model or ""
        for server in self._servers:
            self._probe(server)
        first = self._alive()[0]
        self.hidden_size: int = first.info["hidden_size"] if first.info else 0
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

    def sample(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec | None = None,
        *,
        stop_question: StopQuestion = never_stop,
    ) -> Closing[Trace]:
        """See ``Engine.sample``; a cancelled trace comes back empty, since its text is still on the server.

        Raises:
            ValueError: also for scores or rules from servers without the plug-in or a head.
            ServerError: while iterating, when no server is left.
        """
        traces = self._start(questions, sampling, spec or TraceSpec(), stop_question)
        return (trace for trace in traces if isinstance(trace, Trace))

    def stream(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec | None = None,
        *,
        stop_question: StopQuestion = never_stop,
        every: float = 0.1,
    ) -> Closing[Progress | Trace]:
        """See ``Engine.stream``; scores come with the finished trace, since streamed chunks have no place for
        them, and a cancelled trace has the text that had come.
        """
        spec = replace(spec or TraceSpec(), live=True)
        return self._start(questions, sampling, spec, stop_question, every)

    def _start(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec,
        stop_question: StopQuestion,
        every: float | None = None,
    ) -> Generator[Progress | Trace, None, None]:
        for server in self._servers:
            if server.failure:  # it may be back
                self._probe(server)
        bare = [server.url for server in self._alive() if server.info is None]
        if bare and replace(spec, confidence=False, logprobs=False).asks_anything:
            raise ValueError(
                f"{', '.join(bare)}: scores and stopping rules, and so the quality method, need arrol's plug-in "
                f"in the server: start it with `{START_COMMAND}`; without it use method='majority' or 'deepconf'"
            )
        has_head = all(server.info and spec.head in server.info["heads"] for server in self._alive())
        check_request(questions, sampling, spec, has_head=has_head)
        return self._sample(questions, sampling, spec, stop_question, every)

    def load_head(self, head: QualityHead | str | Path, name: str = "") -> None:
        """Replace the head of that name on every server; it must have been started with one of that name.

        Raises:
            HeadError: when the head is for another hidden size, or cannot be read.
            ServerError: when a server does not take it.
        """
        with head_folder(head, hidden_size=self.hidden_size, model=self.model, folder=self._shared_folder) as path:
            self._tell("/collective_rpc", {"method": "arrol_load_head", "args": [path, name]})

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]] | str | Path) -> None:
        """Replace the language model's weights on every server, while nobody samples from them.

        Args:
            weights: names, as in the checkpoint, and tensors; or a safetensors file that the servers see.

        Raises:
            RuntimeError: while traces are being sampled here, whose tokens would come from two models.
            ServerError: when a server does not take them.
        """
        if any(server.in_flight for server in self._servers):
            raise RuntimeError("traces are being sampled: load new weights when they have ended")
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
            raise ValueError(f"base_urls has {server.url!r}: {error}") from None
        if models.status_code in (401, 403):
            raise ValueError(f"{server.url} refuses the API key: pass api_key=")
        if models.status_code != 200:
            server.failure = f"HTTP {models.status_code} from /v1/models"
            return
        try:
            cards = models.json()["data"]
            server.models = tuple(card["id"] for card in cards)
            server.is_vllm = any(card.get("owned_by") == "vllm" for card in cards)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{server.url} does not speak OpenAI's API: /v1/models has no list") from None
        server.info = _plugin_info(info)
        self._check(server)
        server.failure = ""

    def _check(self, server: _Server) -> None:
        if not self.model:
            if len(server.models) != 1:
                raise ValueError(f"{server.url} serves {', '.join(server.models) or 'no model'}: pass model=")
            self.model = server.models[0]
        if self.model not in server.models:
            raise ValueError(
                f"{server.url} does not serve {self.model!r} but {', '.join(server.models)}: pass model="
            )
        if server.info is None:
            return
        top_k = server.info["top_k"]
        if self._wanted_top_k not in (None, top_k):
            raise ValueError(f"{server.url} computes confidences with top_k={top_k}, not {self._wanted_top_k}")
        if self._wanted_head is not None:
            served = (server.info["head"] or {}).get("sha256")
            if served != head_sha256(self._wanted_head):
                raise ValueError(
                    f"{server.url} was started with {'another head' if served else 'no head'}: start it with "
                    f"`{START_COMMAND}` and the head {self._wanted_head}"
                )

    def _alive(self) -> list[_Server]:
        alive = [server for server in self._servers if not server.failure]
        if not alive:
            reasons = "; ".join(f"{server.url}: {server.failure}" for server in self._servers)
            raise ServerError(f"no server is left ({reasons})")
        return alive

    def _sample(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec,
        stop_question: StopQuestion,
        every: float | None,
    ) -> Generator[Progress | Trace, None, None]:
        call = _Call(sampling, every)
        specs = group_specs(questions, sampling, spec)
        asking = asyncio.run_coroutine_threadsafe(self._ask(call, questions, specs), self._loop)
        awaited = {question.id: set(question.wanted(sampling.n)) for question in questions}
        try:
            while (item := call.inbox.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                missing = awaited[item.question_id]
                if item.sample_id not in missing:
                    continue  # it ended while its question was being cancelled
                if isinstance(item, Progress):
                    yield item
                    continue
                missing.remove(item.sample_id)
                why = stop_question(item)
                yield item
                if why and missing:
                    self._loop.call_soon_threadsafe(call.jobs[item.question_id].cancel)
                    awaited[item.question_id] = set()
                    for i in sorted(missing):
                        yield call.cancelled(item.question_id, i, why)
        finally:
            # When the caller stopped listening this closes the connections, and the servers abort.
            asking.cancel()

    async def _ask(self, call: _Call, questions: Sequence[Question], specs: Sequence[TraceSpec]) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for question, spec in zip(questions, specs, strict=True):
                    server = await self._room(call.sampling.n)
                    call.jobs[question.id] = tasks.create_task(self._answer(call, server, question, spec))
                    await asyncio.sleep(0)  # let it take its room
        except asyncio.CancelledError:
            call.inbox.put(ServerError("the engine was closed while it was sampling"))
            raise
        except Exception as error:
            cause: Exception = error
            while isinstance(cause, ExceptionGroup):
                cause = cause.exceptions[0]
            call.inbox.put(cause)
        else:
            call.inbox.put(None)

    async def _room(self, traces: int) -> _Server:
        """The server with least to do, as soon as one has room for all of a question's traces."""
        while True:
            server = min(self._alive(), key=lambda s: s.in_flight)
            if not server.in_flight or server.in_flight + traces <= self._max_in_flight:
                return server
            self._left.clear()
            await self._left.wait()

    def _leave(self, server: _Server, _task: asyncio.Task[None]) -> None:
        server.in_flight -= 1
        self._left.set()

    async def _answer(self, call: _Call, server: _Server, question: Question, spec: TraceSpec) -> None:
        """Every trace of a question once, whatever happens to its server."""
        everything = question.wanted(call.sampling.n)
        answered: set[int] = set()

        async def one(server: _Server, sample_id: int, spec: TraceSpec) -> None:
            trace = await self._trace(call, server, question, sample_id, spec)
            if sample_id not in answered:
                answered.add(sample_id)
                call.inbox.put(trace)

        for attempt in itertools.count():
            # Rules compare the traces of a group: it meets again as a whole, from the same seeds, and what
            # has been answered already is dropped.
            wanted = [i for i in everything if spec.rules or i not in answered]
            group = replace(spec, group=f"{spec.group}/{attempt}")
            server.in_flight += len(wanted)
            try:
                async with asyncio.TaskGroup() as tasks:
                    for i in wanted:
                        task = tasks.create_task(one(server, i, group))
                        task.add_done_callback(partial(self._leave, server))
            except* _ServerFailedError as failures:
                server.failure = server.failure or str(failures.exceptions[0])
            if len(answered) == len(everything):
                return
            server = await self._room(call.sampling.n)

    async def _trace(
        self, call: _Call, server: _Server, question: Question, sample_id: int, spec: TraceSpec
    ) -> Trace:
        path, body = self._request(server, question, sample_id, call.sampling, spec)
        note: Callable[[Written], None] | None = None
        if call.every is not None:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            note = partial(call.note, question.id, sample_id)
        try:
            reply = await self._post(server, path, body, note)
            return read_trace(reply, question, sample_id, "vllm_xargs" in body, spec)
        except (json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
            raise ServerError(f"{server.url} answers what cannot be read: {_words(error)}") from error

    def _request(
        self, server: _Server, question: Question, sample_id: int, sampling: Sampling, spec: TraceSpec
    ) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed_of(question.id, sample_id),
        }
        if server.is_vllm:
            # Said explicitly, because a model's generation_config would fill in what is left out.
            body |= {"top_k": sampling.top_k, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
        elif sampling.top_k:
            body["top_k"] = sampling.top_k
        if server.info is not None:
            # Log-probabilities are the API's own: it would not do without those it was asked for.
            asked = replace(spec, logprobs=False)
            if asked.asks_anything:
                body["vllm_xargs"] = {CONFIG_KEY: json.dumps(asked.to_dict())}
            if spec.stop:
                # The plug-in ends a trace as an end-of-text token would, whose text vLLM leaves out.
                body["include_stop_str_in_output"] = True
        else:
            if spec.stop:
                body["stop"] = list(spec.stop)
            if spec.confidence:
                top_k = self._wanted_top_k or DEFAULT_TOP_K
                chats = self._chats(question)
                body |= {"logprobs": True, "top_logprobs": top_k} if chats else {"logprobs": top_k}
                if server.is_vllm and not chats:
                    body["return_tokens_as_token_ids"] = True  # texts of tokens are not unique
        if spec.logprobs and "logprobs" not in body:
            body |= {"logprobs": True, "top_logprobs": 0} if self._chats(question) else {"logprobs": 0}
        if question.token_ids is not None:
            return "/v1/completions", body | {"prompt": list(question.token_ids)}
        if self._chats(question):
            return "/v1/chat/completions", body | {"messages": question.messages}
        text = "\n\n".join(message["content"] for message in question.messages)
        return "/v1/completions", body | {"prompt": text}

    def _chats(self, question: Question) -> bool:
        return self._chat and question.chat and question.token_ids is None

    async def _post(
        self, server: _Server, path: str, body: dict[str, Any], note: Callable[[Written], None] | None
    ) -> dict[str, Any]:
        for attempt in itertools.count():
            pause = BACK_OFF_SECONDS * 2**attempt * random.uniform(0.5, 1.0)
            try:
                if note is None:
                    response = await self._client.post(server.url + path, json=body)
                else:
                    response, streamed = await self._read_stream(server.url + path, body, note)
            except httpx.TransportError as error:
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
                        pause = max(pause, float(response.headers["retry-after"]))
                else:
                    raise ValueError(f"{server.url} refuses the request: {_message(response)}")
            if attempt >= self._retries or server.failure:
                raise _ServerFailedError(trouble)
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _read_stream(
        self, url: str, body: dict[str, Any], note: Callable[[Written], None]
    ) -> tuple[httpx.Response, dict[str, Any]]:
        """A streamed answer, put together; empty when the status is not 200."""
        written = Written()
        async with self._client.stream("POST", url, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                return response, {}
            async for line in response.aiter_lines():
                written.add(line)
                note(written)
        if not written.ended:
            raise httpx.RemoteProtocolError("the answer broke off")
        return response, written.reply()


def _plugin_info(response: httpx.Response) -> dict[str, Any] | None:
    try:
        info = response.json()
        return {key: info[key] for key in ("version", "hidden_size", "top_k", "head", "heads")}
    except (ValueError, KeyError, TypeError):
        return None  # a server without the plug-in may answer anything here


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500] or f"HTTP {response.status_code}"


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
