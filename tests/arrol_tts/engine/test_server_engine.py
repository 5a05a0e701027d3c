"""The HTTP client against stand-in servers: what it sends, repeats, moves elsewhere and refuses."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from arrol_tts import WeightedVoter
from arrol_tts.consensus import Consensus
from arrol_tts.engine import server_engine
from arrol_tts.engine.request import Question, Sampling
from arrol_tts.engine.server_engine import ServerEngine
from arrol_tts.engine.server_replies import Written
from arrol_tts.errors import InputError, ServerError
from arrol_tts.stopping import KeepShare, TraceSpec
from arrol_tts.trace import Trace

QUESTIONS = [Question(f"q{i}", f"question {i}") for i in range(4)]
SAMPLING = Sampling(n=3, max_tokens=64)
INFO = {"version": "1", "hidden_size": 8, "top_k": 5, "heads": [""], "head": {"sha256": "0", "positions": [4]}}
INFO |= {"allow": ["confidence", "features"]}
Answer = tuple[int, Any]


def completion(text: str = "the answer is 7", **fields: Any) -> dict[str, Any]:
    choice = {"message": {"content": text}, "finish_reason": "stop"} | fields
    return {"choices": [choice], "usage": {"completion_tokens": 5}}


class StandIn(ThreadingHTTPServer):
    """A server that speaks OpenAI's API and answers what ``answer`` says."""

    daemon_threads = True
    request_queue_size = 128
    owner = "somebody"
    template_end = "Answer:"
    template_status = 200

    def __init__(self, answer: Callable[[dict[str, Any]], Answer], info: Any = None, model: str = "m") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.info, self.model = answer, info, model
        self.requests: list[dict[str, Any]] = []
        self.templates: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def kill(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *args: Any) -> None:
        pass  # clients that go away are part of the tests


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def reply(self, status: int, content: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.reply(200, {"data": [{"id": self.server.model, "owned_by": self.server.owner}]})
        elif self.path == "/arrol/info" and self.server.info:
            self.reply(200, self.server.info)
        else:
            self.reply(404, {})

    def stream(self, chunks: Iterable[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        for chunk in chunks:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            self.server.templates.append(request["chat_template_kwargs"])
            self.reply(self.server.template_status, {"token_strs": list(self.server.template_end)})
            return
        request["path"] = self.path
        self.server.requests.append(request)
        status, content = self.server.answer(request)
        if status == 0:  # hang up
            self.close_connection = True
            return
        if isinstance(content, Iterator):
            self.stream(content)
            return
        self.reply(status, content)


Start = Callable[..., StandIn]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(server_engine, "BACK_OFF_SECONDS", 0.01)
    running: list[StandIn] = []

    def begin(answer: Callable[[dict[str, Any]], Answer], *args: Any) -> StandIn:
        running.append(StandIn(answer, *args))
        return running[-1]

    yield begin
    for server in running:
        server.kill()


def once_each(traces: list[Trace]) -> bool:
    return sorted((t.question_id, t.sample_id) for t in traces) == [
        (q.id, i) for q in QUESTIONS for i in range(SAMPLING.n)
    ]


def sample(urls: Any, spec: TraceSpec | None = None, **options: Any) -> list[Trace]:
    engine = ServerEngine(urls, **options)
    try:
        return list(engine.sample(QUESTIONS, SAMPLING, spec))
    finally:
        engine.close()


def test_every_trace_is_asked_for_once_with_its_own_seed(start: Start) -> None:
    server = start(lambda request: (200, completion()))
    traces = sample(server.url)
    assert once_each(traces)
    assert {(t.text, t.num_tokens, t.token_ids, t.finish_reason) for t in traces} == {
        ("the answer is 7", 5, None, "stop")
    }
    assert len({r["seed"] for r in server.requests}) == len(server.requests) == 12
    # Nothing that only vLLM understands goes to a server that does not say it is vLLM.
    assert set(server.requests[0]) == {
        "path",
        "model",
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "messages",
    }


def test_a_final_v1_and_an_api_key_are_understood(start: Start) -> None:
    server = start(lambda request: (200, completion()))
    assert once_each(sample([f"{server.url}/v1/"], api_key="k"))
    assert {r["path"] for r in server.requests} == {"/v1/chat/completions"}


@pytest.mark.parametrize("trouble", [(503, {}), (429, {}), (0, None), (200, completion(finish_reason="abort"))])
def test_passing_trouble_is_repeated(start: Start, trouble: Answer) -> None:
    seen: set[int] = set()

    def answer(request: dict[str, Any]) -> Answer:
        if request["seed"] in seen:
            return 200, completion()
        seen.add(request["seed"])
        return trouble

    server = start(answer)
    assert once_each(sample(server.url))
    assert len(server.requests) == 24


def test_retry_after_is_heeded(start: Start) -> None:
    times: list[float] = []

    def answer(request: dict[str, Any]) -> Answer:
        times.append(time.monotonic())
        return (200, completion()) if len(times) > 1 else (429, {})

    server = start(answer)
    server.headers = {"retry-after": "0.4"}
    engine = ServerEngine(server.url)
    assert len(list(engine.sample(QUESTIONS[:1], Sampling(n=1)))) == 1
    engine.close()
    assert times[1] - times[0] >= 0.4


@pytest.mark.parametrize("asked", ["86400", "inf", "nan", "-1"])
def test_no_server_makes_a_trace_wait_for_long(start: Start, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_engine, "MAX_PAUSE_SECONDS", 0.05)
    server = start(lambda request: (200, completion()) if len(server.requests) > 1 else (429, {}))
    server.headers = {"retry-after": asked}
    engine = ServerEngine(server.url)
    begun = time.monotonic()
    assert len(list(engine.sample(QUESTIONS[:1], Sampling(n=1)))) == 1
    assert time.monotonic() - begun < 5
    engine.close()


def test_a_trace_that_is_not_complete_in_time_has_failed_though_its_chunks_keep_coming(start: Start) -> None:
    def slowly() -> Iterator[dict[str, Any]]:
        for _ in range(100):
            time.sleep(0.05)
            yield chunk(content="so ")

    server = start(lambda request: (200, slowly()))
    engine = ServerEngine(server.url, timeout=0.3, retries=0)
    with pytest.raises(ServerError, match="TimeoutError"):
        list(engine.sample(QUESTIONS[:1], Sampling(n=1), stop_question=lambda trace: ""))
    engine.close()


def test_a_server_that_keeps_failing_loses_its_questions_to_the_other(start: Start) -> None:
    bad = start(lambda request: (500, {"error": {"message": "engine is dead"}}))
    good = start(lambda request: (200, completion()))
    assert once_each(sample([bad.url, good.url], retries=1))
    assert bad.requests


def test_nobody_waits_for_a_server_that_hangs_while_another_is_there_and_it_is_used_when_it_is_back(
    start: Start,
) -> None:
    is_up = [False]
    first = start(lambda request: (200, completion()) if is_up[0] else (500, {}))
    second = start(lambda request: (200, completion()))
    engine = ServerEngine([first.url, second.url], retries=0)

    def ask() -> int:
        return len(list(engine.sample(QUESTIONS, SAMPLING)))

    assert ask() == 12
    probing, asked = threading.Event(), []

    def hang(server: Any) -> None:
        asked.append(server.url)
        probing.wait(30)
        probe(server)

    probe, engine._probe = engine._probe, hang  # type: ignore[method-assign]
    assert (ask(), ask()) == (12, 12)
    assert asked == [first.url]
    is_up[0] = True
    probing.set()
    before = len(first.requests)
    for _ in range(100):
        assert ask() == 12
        if len(first.requests) > before:
            break
        time.sleep(0.05)
    assert len(first.requests) > before
    engine.close()


def test_no_server_left_names_every_reason(start: Start) -> None:
    first = start(lambda request: (500, {"error": {"message": "engine is dead"}}))
    second = start(lambda request: (0, None))
    with pytest.raises(
        ServerError, match=r"no server is left .*HTTP 500: engine is dead; .*disconnected"
    ) as error:
        sample([first.url, second.url], retries=0)
    assert first.url in str(error.value)
    assert second.url in str(error.value)


def test_no_server_at_the_start_is_an_early_error(start: Start) -> None:
    server = start(lambda request: (200, completion()))
    server.kill()
    with pytest.raises(ServerError, match=rf"no server is left \({server.url}: ConnectError"):
        ServerEngine(server.url)


def test_one_of_two_absent_at_the_start_is_no_trouble(start: Start) -> None:
    gone, good = start(lambda request: (500, {})), start(lambda request: (200, completion()))
    gone.kill()
    assert once_each(sample([gone.url, good.url]))


def test_a_group_under_rules_meets_again_as_a_whole_and_no_trace_comes_twice(start: Start) -> None:
    done = threading.Event()

    def fails_after_one(request: dict[str, Any]) -> Answer:
        if request["seed"] == first_seed:
            return 200, completion() | {"kv_transfer_params": {"arrol": {"scores": []}}}
        done.wait(0.3)
        return 0, None

    def works(request: dict[str, Any]) -> Answer:
        return 200, completion() | {"kv_transfer_params": {"arrol": {"scores": []}}}

    first_seed = SAMPLING.seed_of("q0", 0)
    bad, good = start(fails_after_one, INFO), start(works, INFO)
    engine = ServerEngine([bad.url, good.url], retries=0)
    traces = list(engine.sample(QUESTIONS[:1], SAMPLING, TraceSpec(rules=(KeepShare(4, 0.5),))))
    engine.close()
    assert sorted(t.sample_id for t in traces) == [0, 1, 2]
    groups = {json.loads(r["vllm_xargs"]["arrol"])["group"] for r in good.requests}
    assert len(good.requests) == 3
    assert len(groups) == 1
    assert groups.isdisjoint(json.loads(r["vllm_xargs"]["arrol"])["group"] for r in bad.requests)


def test_all_traces_of_a_question_go_to_one_server_even_when_they_exceed_the_limit(start: Start) -> None:
    seen: dict[str, set[str]] = {}
    servers = []
    for name in "ab":

        def answer(request: dict[str, Any], name: str = name) -> Answer:
            seen.setdefault(request["messages"][0]["content"], set()).add(name)
            time.sleep(0.02)
            return 200, completion()

        servers.append(start(answer))
    assert once_each(sample([server.url for server in servers], max_in_flight=2))
    assert len(seen) == 4
    assert all(len(names) == 1 for names in seen.values())
    assert set.union(*seen.values()) == {"a", "b"}


def test_max_in_flight_bounds_the_requests_of_a_server(start: Start) -> None:
    now, most, lock = [0], [0], threading.Lock()
    together = threading.Barrier(6)

    def answer(request: dict[str, Any]) -> Answer:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(30)
        with lock:
            now[0] -= 1
        return 200, completion()

    server = start(answer)
    assert once_each(sample(server.url, max_in_flight=6))
    assert 3 < most[0] <= 6
    most[0] = 0
    engine = ServerEngine(server.url, max_in_flight=6)
    with ThreadPoolExecutor(8) as pool:  # the bound is the server's, not a call's
        calls = list(pool.map(lambda _: list(engine.sample(QUESTIONS, SAMPLING)), range(8)))
    engine.close()
    assert all(map(once_each, calls))
    assert 3 < most[0] <= 6


def test_a_call_that_is_closed_while_it_waits_for_room_leaves_none_taken(start: Start) -> None:
    release = threading.Event()

    def answer(request: dict[str, Any]) -> Answer:
        release.wait(10)
        return 200, completion()

    server = start(answer)
    engine = ServerEngine(server.url, max_in_flight=4)
    calls = [engine.sample(QUESTIONS, SAMPLING) for _ in range(3)]
    while len(server.requests) < 3:
        time.sleep(0.01)
    for call in calls:
        call.close()
    release.set()
    assert once_each(list(engine.sample(QUESTIONS, SAMPLING)))
    engine.close()


def test_a_question_that_cannot_be_sent_leaves_no_room_taken(start: Start) -> None:
    engine = ServerEngine(start(lambda request: (200, completion())).url, chat=False, max_in_flight=1)
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(InputError, match="has a part of type"):
        list(engine.sample([Question("q", [{"role": "user", "content": [image]}])], SAMPLING))
    assert engine._servers[0].in_flight == 0
    engine.close()


def test_a_refused_request_is_not_repeated(start: Start) -> None:
    server = start(lambda request: (400, {"error": {"message": "max_tokens is too large"}}))
    with pytest.raises(ValueError, match="refuses the request: max_tokens is too large"):
        sample(server.url)


@pytest.mark.parametrize(
    "content",
    [
        *(b"<html>", b"\xff", b"[" * 100_000, {}, {"choices": []}, [], {"choices": [{"message": None}]}),
        completion() | {"usage": {"completion_tokens": "many"}},
        completion() | {"usage": {"completion_tokens": math.inf}},
        completion(message={"content": None, "tool_calls": ["add"]}),
        completion(message={"content": None, "tool_calls": [{"function": "add"}]}),
        completion(logprobs={"content": [{"logprob": -1.0, "top_logprobs": []}]}),
    ],
)
def test_answers_that_cannot_be_read_are_an_error(start: Start, content: Any) -> None:
    server = start(lambda request: (200, content))
    with pytest.raises(ServerError, match="answers what cannot be read"):
        sample(server.url, TraceSpec(confidence="logprobs" in str(content)))


def test_scores_need_the_plug_in_and_the_error_says_how_to_start_it(start: Start) -> None:
    server = start(lambda request: (200, completion()))
    for spec in (TraceSpec(score_finish=True), TraceSpec(rules=(KeepShare(4, 0.5),))):
        with pytest.raises(
            ValueError, match=r"need arrol's plug-in.*python -m arrol_tts.engine.vllm_plugin.serve"
        ):
            sample(server.url, spec)
    assert server.requests == []


def test_self_certainty_needs_the_plug_in(start: Start) -> None:
    server = start(lambda request: (200, completion()))
    with pytest.raises(InputError, match=r"self-certainty needs arrol's plug-in.*method='majority' or 'deepconf'"):
        sample(server.url, TraceSpec(self_certainty=True))
    assert server.requests == []


def ask_once(url: str, sampling: Sampling) -> None:
    engine = ServerEngine(url)
    try:
        list(engine.sample(QUESTIONS[:1], sampling))
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 20),
        ("min_p", 0.1),
        ("repetition_penalty", 1.1),
        ("min_tokens", 3),
        ("stop_token_ids", (7,)),
    ],
)
def test_what_openais_api_has_not_is_refused_by_servers_other_than_vllms(
    start: Start, name: str, value: Any
) -> None:
    server = start(lambda request: (200, completion()))
    with pytest.raises(InputError, match=rf"{server.url}: {name}=.* is not in OpenAI's API.*leave {name} out"):
        ask_once(server.url, Sampling(n=1, **{name: value}))
    assert server.requests == []


def test_what_openais_api_has_is_sent_to_any_server(start: Start) -> None:
    server = start(lambda request: (200, completion()))
    ask_once(server.url, Sampling(n=1, presence_penalty=0.5, frequency_penalty=-0.25, stop=("x",), top_p=0.5))
    (request,) = server.requests
    assert (request["presence_penalty"], request["frequency_penalty"]) == (0.5, -0.25)
    assert (request["stop"], request["top_p"]) == (["x"], 0.5)


def test_vllms_servers_are_told_every_parameter(start: Start) -> None:
    server = start(lambda request: (200, completion()))
    server.owner = "vllm"
    vllms_own: dict[str, Any] = {
        "top_k": 4,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "min_tokens": 3,
        "stop_token_ids": (7,),
    }
    ask_once(server.url, Sampling(n=1, **vllms_own))
    ask_once(server.url, Sampling(n=1))
    assert [[request[name] for name in vllms_own] for request in server.requests] == [
        [4, 0.1, 1.1, 3, [7]],
        # A model's generation_config would fill in what is left out.
        [0, 0.0, 1.0, 0, []],
    ]


def test_the_traces_of_a_question_share_one_spec(start: Start) -> None:
    server = start(lambda request: (200, completion() | {"kv_transfer_params": {"arrol": {"scores": []}}}), INFO)
    sample(server.url, TraceSpec(score_finish=True))
    specs = [request["vllm_xargs"]["arrol"] for request in server.requests]
    assert len(specs) == 12
    assert len(set(specs)) == len(QUESTIONS)


def test_a_reason_to_stop_cancels_what_a_question_still_has_running(start: Start) -> None:
    slow = threading.Event()

    def answer(request: dict[str, Any]) -> Answer:
        if request["seed"] != SAMPLING.seed_of("q0", 1):
            slow.wait(20)
        return 200, completion()

    server = start(answer)
    engine = ServerEngine(server.url)
    traces = list(
        engine.sample(QUESTIONS[:1], SAMPLING, stop_question=lambda trace: f"{trace.sample_id} is enough")
    )
    slow.set()
    engine.close()
    assert [(t.sample_id, t.finish_reason, t.detail) for t in traces] == [
        (1, "stop", ""),
        (0, "cancelled", "1 is enough"),
        (2, "cancelled", "1 is enough"),
    ]


def chunk(finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"delta": delta, "finish_reason": finish_reason}]}


@pytest.mark.parametrize("with_ids", [False, True])
def test_a_cancelled_trace_counts_what_it_had_written(
    start: Start, with_ids: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, enough, pieces = threading.Event(), threading.Event(), itertools.count(1)
    add = Written.add

    def add_and_count(self: Written, line: str) -> None:
        add(self, line)
        if line.startswith("data:") and next(pieces) == (5 if with_ids else 3):
            read.set()

    monkeypatch.setattr(Written, "add", add_and_count)

    def whole() -> Iterator[dict[str, Any]]:
        read.wait(30)
        yield chunk(content="7", finish_reason="stop")
        yield {"choices": [], "usage": {"completion_tokens": 1, "prompt_tokens": 9}}

    def slow() -> Iterator[dict[str, Any]]:
        ids = {"prompt_token_ids": [1, 2, 3]} if with_ids else {}
        yield chunk(role="assistant") | ids
        for i, piece in enumerate(("so ", "it ")):
            yield chunk(reasoning=piece) | ids
            if with_ids:  # more tokens than pieces
                yield {"choices": [{"delta": {}, "token_ids": [i, i, i]}]}
        enough.wait(30)

    def answer(request: dict[str, Any]) -> Answer:
        assert request["stream"] is True
        return 200, whole() if request["seed"] == SAMPLING.seed_of("q0", 0) else slow()

    server = start(answer)
    engine = ServerEngine(server.url)
    voter = WeightedVoter(engine, method="majority", extract=str)
    result = voter.solve("question 0", n=2, max_tokens=64, consensus=Consensus(share=0.6, min_votes=1))
    enough.set()
    voter.close()
    stopped, cancelled = result.traces
    assert (stopped.answer, stopped.num_tokens, stopped.prompt_tokens) == ("7", 1, 9)
    assert (cancelled.finish_reason, cancelled.reasoning, cancelled.text) == ("cancelled", "so it", "")
    assert (cancelled.num_tokens, cancelled.prompt_tokens) == ((6, 3) if with_ids else (2, None))
    assert result.tokens.generated == 1 + cancelled.num_tokens


def test_nothing_is_streamed_that_nobody_watches_or_may_call_off(start: Start) -> None:
    server = start(lambda request: (200, completion()))
    sample(server.url)
    assert not any("stream" in request for request in server.requests)


def test_a_streamed_reply_is_put_together_with_its_reasoning_calls_and_usage(start: Start) -> None:
    def chunks() -> Iterator[dict[str, Any]]:
        yield chunk(role="assistant", reasoning_content="let me ")
        yield chunk(reasoning_content="add")
        yield chunk(tool_calls=[{"index": 0, "id": "c0", "function": {"name": "add", "arguments": '{"a":'}}])
        yield chunk(tool_calls=[{"index": 0, "function": {"arguments": " 2}"}}])
        yield chunk(tool_calls=[{"index": 1, "id": "c1", "function": {"name": "sub", "arguments": "{}"}}])
        yield chunk(finish_reason="tool_calls")
        details = {"cached_tokens": 4}
        yield {
            "choices": [],
            "usage": {"completion_tokens": 20, "prompt_tokens": 9, "prompt_tokens_details": details},
        }

    server = start(lambda request: (200, chunks()))
    engine = ServerEngine(server.url)
    *_, trace = engine.stream(QUESTIONS[:1], Sampling(n=1, max_tokens=64))
    engine.close()
    assert isinstance(trace, Trace)
    assert (trace.reasoning, trace.text, trace.finish_reason) == ("let me add", "", "stop")
    assert (trace.num_tokens, trace.prompt_tokens, trace.cached_tokens) == (20, 9, 4)
    assert trace.tool_calls is not None
    assert [call["function"] for call in trace.tool_calls] == [
        {"name": "add", "arguments": '{"a": 2}'},
        {"name": "sub", "arguments": "{}"},
    ]


def waves_over(urls: Any, n: int = 12, **options: Any) -> list[Any]:
    """Majority votes on all questions, in waves of 3 and 2 more at a time."""
    voter = WeightedVoter(ServerEngine(urls, **options), method="majority")
    try:
        asked = {question.id: question.text for question in QUESTIONS}
        return voter.solve_many(asked, n, start=3, step=2, certainty=0.95)
    finally:
        voter.close()


def answer_by_seed(unclear: str) -> Callable[[dict[str, Any]], Answer]:
    """Traces of one question give as many answers as there are; all others are 7."""
    rank = {Sampling().seed_of(unclear, i): i for i in range(12)}
    return lambda request: (200, completion(f"the answer is {10 + rank.get(request['seed'], -3)}"))


def test_a_stop_text_that_looks_like_a_log_is_none(start: Start) -> None:
    def whole() -> Iterator[dict[str, Any]]:
        yield {"choices": [{"delta": {"content": "7"}, "finish_reason": "stop", "stop_reason": "{"}]}
        yield {"choices": [], "usage": {"completion_tokens": 2}}

    server = start(lambda request: (200, whole()))
    server.owner = "vllm"
    engine = ServerEngine(server.url)
    sampling = Sampling(n=1, stop=("{",))
    (trace,) = engine.sample(QUESTIONS[:1], sampling, stop_question=lambda trace: "")
    engine.close()
    assert (trace.text, trace.num_tokens) == ("7", 2)


def test_waves_ask_for_more_of_the_questions_that_are_open_and_of_no_others(start: Start) -> None:
    server = start(answer_by_seed("q2"))
    results = waves_over(server.url)
    assert [(len(result.traces), result.tokens.unstarted_traces) for result in results] == [
        (5, 7),  # 3 votes to none are .9375, 5 are .984
        (5, 7),
        (12, 0),
        (5, 7),
    ]
    seeds = {Sampling().seed_of(result.question_id, i) for result in results for i in range(len(result.traces))}
    assert {request["seed"] for request in server.requests} == seeds
    assert len(server.requests) == 27


def test_a_wave_moves_on_from_a_server_that_fails(start: Start) -> None:
    good = start(answer_by_seed("q2"))
    served: list[int] = []

    def answer(request: dict[str, Any]) -> Answer:
        served.append(request["seed"])
        return good.answer(request) if len(served) <= 6 else (500, {"error": {"message": "engine is dead"}})

    bad = start(answer)
    results = waves_over([bad.url, good.url], retries=0, max_in_flight=6)
    assert [len(result.traces) for result in results] == [5, 5, 12, 5]
    assert len(served) > 6


def test_closing_the_engine_between_waves_is_an_error_of_the_call(start: Start) -> None:
    server = start(lambda request: (200, completion()))
    engine = ServerEngine(server.url)
    running = engine.sample(QUESTIONS[:1], SAMPLING)
    assert len(list(itertools.islice(running, 3))) == 3
    engine.close()
    running.add("q0", [3])
    with pytest.raises(ServerError, match="the engine was closed while it was sampling"):
        next(running)


def test_a_closed_call_asks_for_no_wave_more(start: Start) -> None:
    server = start(lambda request: (200, completion()))
    engine = ServerEngine(server.url)
    running = engine.sample(QUESTIONS[:1], SAMPLING)
    next(running)
    running.close()
    running.add("q0", [3, 4])
    assert list(running) == []
    time.sleep(0.1)
    engine.close()
    assert not {request["seed"] for request in server.requests} & {SAMPLING.seed_of("q0", i) for i in (3, 4)}


def test_scores_need_a_head_in_the_server(start: Start) -> None:
    server = start(lambda request: (200, completion()), INFO | {"head": None, "heads": []})
    with pytest.raises(ValueError, match="need a quality head"):
        sample(server.url, TraceSpec(score_finish=True))


def test_an_answer_without_the_log_that_was_asked_for_is_an_error(start: Start) -> None:
    server = start(lambda request: (200, completion()), INFO)
    with pytest.raises(ServerError, match="carries no log of the plug-in"):
        sample(server.url, TraceSpec(confidence=True))


def test_another_head_or_top_k_than_wanted_is_refused(start: Start) -> None:
    from arrol_tts.head_config import head_sha256, read_head_config
    from arrol_tts.pocket import POCKET_HEAD

    server = start(lambda request: (200, completion()), INFO)
    with pytest.raises(ValueError, match="was started with another head"):
        ServerEngine(server.url, head=POCKET_HEAD)
    head = {"sha256": head_sha256(POCKET_HEAD), "scoring": read_head_config(POCKET_HEAD).scoring()}
    ServerEngine(start(lambda request: (200, completion()), INFO | {"head": head}).url, head=POCKET_HEAD).close()
    head["scoring"]["calibration"] = [2.0, 0.0]  # the same weights
    server = start(lambda request: (200, completion()), INFO | {"head": head})
    with pytest.raises(ValueError, match="was started with another head"):
        ServerEngine(server.url, head=POCKET_HEAD)
    with pytest.raises(ValueError, match="computes confidences with top_k=5, not 20"):
        ServerEngine(server.url, top_k=20)


def test_confidence_is_the_mean_negative_log_probability_of_the_candidates(start: Start) -> None:
    tokens = [{"top_logprobs": [{"logprob": -1.0}, {"logprob": -2.0}]}, {"top_logprobs": [{"logprob": -0.5}]}]
    server = start(lambda request: (200, completion(logprobs={"content": tokens})))
    traces = sample(server.url, TraceSpec(confidence=True), top_k=2)
    assert server.requests[0]["top_logprobs"] == 2
    assert traces[0].confidence is not None
    np.testing.assert_array_equal(traces[0].confidence, np.array([1.5, 0.5], dtype=np.float32))


def test_plain_completions_carry_log_probabilities_too(start: Start) -> None:
    choice = {"text": "x", "finish_reason": "length", "logprobs": {"top_logprobs": [{"a": -1.0, "b": -3.0}]}}
    server = start(lambda request: (200, {"choices": [choice], "usage": {"completion_tokens": 1}}))
    (trace,) = sample(server.url, TraceSpec(confidence=True), chat=False)[:1]
    assert server.requests[0]["path"] == "/v1/completions"
    assert (server.requests[0]["logprobs"], server.requests[0]["prompt"][:8]) == (20, "question")
    assert trace.finish_reason == "length"
    assert trace.confidence is not None
    assert trace.confidence.tolist() == [2.0]


def test_a_server_without_log_probabilities_says_so(start: Start) -> None:
    server = start(lambda request: (200, completion()))
    with pytest.raises(ServerError, match="returns no log-probabilities"):
        sample(server.url, TraceSpec(confidence=True))


@pytest.mark.parametrize(
    "message",
    [
        {"reasoning": "3 + 4\n", "content": "\n7"},
        {"reasoning_content": "3 + 4", "content": "7"},
        {"content": "<think>\n3 + 4\n</think>\n\n7"},
        {"content": "3 + 4</think>7"},
    ],
)
def test_servers_that_tell_the_thinking_apart_and_those_that_do_not_give_the_same_traces(
    start: Start, message: dict[str, str]
) -> None:
    server = start(lambda request: (200, completion(message=message)))
    trace = sample(server.url)[0]
    assert (trace.reasoning, trace.text, trace.num_tokens) == ("3 + 4", "7", 5)


@pytest.mark.parametrize(
    ("template_end", "message"),
    [
        ("Answer:", {"reasoning": "so it is 7", "content": None}),
        ("Answer:", {"content": "<think>so it is 7"}),
        ("<|im_start|>assistant\n<think>\n", {"content": "so it is 7"}),
    ],
)
def test_a_trace_that_ended_inside_its_thinking_has_no_answer(
    start: Start, template_end: str, message: dict[str, Any]
) -> None:
    server = start(lambda request: (200, completion(message=message)))
    server.owner, server.template_end = "vllm", template_end
    voter = WeightedVoter(ServerEngine(server.url), method="majority")
    (trace,) = voter.solve("3+4", n=1).traces
    voter.close()
    assert (trace.reasoning, trace.text, trace.answer, trace.finish_reason) == ("so it is 7", "", None, "stop")


def test_a_template_is_asked_about_again_after_passing_trouble_and_then_no_more(start: Start) -> None:
    server = start(lambda request: (200, completion("so it is 7")))
    server.owner, server.template_end, server.template_status = "vllm", "<think>\n", 503
    engine = ServerEngine(server.url)

    def ask() -> str | None:
        (trace,) = engine.sample(QUESTIONS[:1], Sampling(n=1))
        return trace.reasoning

    assert ask() is None
    server.template_status = 200
    assert (ask(), ask()) == ("so it is 7", "so it is 7")
    assert len(server.templates) == 2
    engine.close()


def test_so_many_templates_are_remembered_and_no_more(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_engine, "MAX_TEMPLATES", 2)
    server = start(lambda request: (200, completion()))
    server.owner = "vllm"
    engine = ServerEngine(server.url)
    for name in "abacab":
        list(engine.sample([Question("q", "x", chat_template_kwargs={"a": name})], Sampling(n=2)))
    assert [asked["a"] for asked in server.templates] == ["a", "b", "c", "b"]
    assert len(engine._opened) == 2
    engine.close()


def test_a_conversation_goes_to_servers_whole_with_its_images_and_fields(start: Start) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is in it?"},
        {"role": "assistant", "content": "In what?"},
        {"role": "user", "content": [image, {"type": "text", "text": "In this."}]},
    ]
    server = start(lambda request: (200, completion("A cat.")))
    voter = WeightedVoter(ServerEngine(server.url), method="majority", equality="text", extract=str)
    result = voter.solve(messages, n=2, request_fields={"response_format": {"type": "text"}, "logit_bias": {}})
    voter.close()
    assert result.answer == "A cat."
    assert [request["messages"] for request in server.requests] == [messages, messages]
    assert server.requests[0]["response_format"] == {"type": "text"}
    assert server.requests[0]["logit_bias"] == {}


def test_template_variables_go_to_vllms_servers_and_no_others(start: Start) -> None:
    server = start(lambda request: (200, completion()))
    voter = WeightedVoter(ServerEngine(server.url), method="majority")
    with pytest.raises(InputError, match=r"chat_template_kwargs is not in OpenAI's API.*request_fields if"):
        voter.solve("3+4", n=1, chat_template_kwargs={"enable_thinking": False})
    server.owner = "vllm"
    voter = WeightedVoter(ServerEngine(server.url), method="majority")
    voter.solve("3+4", n=1, chat_template_kwargs={"enable_thinking": False})
    assert [request["chat_template_kwargs"] for request in server.requests] == [{"enable_thinking": False}]


def call(name: str, arguments: str, number: int) -> dict[str, Any]:
    return {"id": f"call-{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_tool_calls_are_voted_on_as_structures(start: Start) -> None:
    spelled = itertools.cycle(['{"city": "Bonn", "days": 2}', '{"days": 2, "city": "Bonn"}', '{"city": "Rome"}'])
    numbers = itertools.count()

    def answer(request: dict[str, Any]) -> Answer:
        message = {"content": None, "tool_calls": [call("weather", next(spelled), next(numbers))]}
        return 200, completion(message=message, finish_reason="tool_calls")

    server = start(answer)
    voter = WeightedVoter(ServerEngine(server.url, max_in_flight=1), method="majority", equality="json")
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    result = voter.solve("Will it rain in Bonn?", n=3, request_fields={"tools": tools})
    voter.close()
    assert server.requests[0]["tools"] == tools
    assert [row.votes for row in result.table] == [2, 1]
    winner = result.traces[result.choices.index(0)]
    assert winner.tool_calls is not None
    assert winner.tool_calls[0]["function"]["name"] == "weather"
    assert json.loads(result.answer or "") == [{"name": "weather", "arguments": {"city": "Bonn", "days": 2}}]


def test_prompt_tokens_and_what_the_prefix_cache_spared_come_with_the_trace(start: Start) -> None:
    usage = {"prompt_tokens": 40, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 32}}
    server = start(lambda request: (200, completion() | {"usage": usage}))
    trace = sample(server.url)[0]
    assert (trace.prompt_tokens, trace.cached_tokens) == (40, 32)


def test_models_must_be_served(start: Start) -> None:
    server = start(lambda request: (200, completion()))
    with pytest.raises(ValueError, match="does not serve 'other' but m: pass model="):
        ServerEngine(server.url, model="other")
    second = start(lambda request: (200, completion()), None, "m2")
    with pytest.raises(ValueError, match="does not serve 'm' but m2"):
        ServerEngine([server.url, second.url])


@pytest.mark.parametrize("urls", [[], "localhost:8000", ["ftp://x"]])
def test_base_urls_are_checked(urls: Any) -> None:
    with pytest.raises(ValueError, match="it must name servers such as"):
        ServerEngine(urls)


def test_a_question_that_needs_no_more_traces_is_cancelled(start: Start) -> None:
    asked = threading.Event()

    def answer(request: dict[str, Any]) -> Answer:
        if request["seed"] == Sampling(n=5).seed_of("q0", 0):
            return 200, completion("answer 7")
        asked.wait(5)
        return 200, completion("answer 8")

    server = start(answer)
    voter = WeightedVoter(ServerEngine(server.url), method="majority")
    result = voter.solve("what is it?", n=5, consensus=Consensus(share=0.6, min_votes=1))
    asked.set()
    voter.close()
    assert result.answer == "7"
    assert [t.finish_reason for t in result.traces] == ["stop"] + ["cancelled"] * 4
    assert "has 100% of the votes of 1 traces" in result.traces[1].detail


def test_closing_the_engine_ends_a_sampling_in_progress(start: Start) -> None:
    hold = threading.Event()

    def answer(request: dict[str, Any]) -> Answer:
        if request["seed"] != SAMPLING.seed_of("q0", 0):
            hold.wait(5)
        return 200, completion()

    server = start(answer)
    engine = ServerEngine(server.url)
    traces = engine.sample(QUESTIONS, SAMPLING)
    next(traces)
    engine.close()
    with pytest.raises(ServerError, match="closed while it was sampling"):
        list(traces)
    hold.set()


def test_only_the_wanted_traces_are_asked_for() -> None:
    server = StandIn(lambda _: (200, completion()))
    engine = ServerEngine(server.url)
    question = Question("q0", "question 0", samples=(0, 2))
    traces = list(engine.sample([question], SAMPLING))
    engine.close()
    server.kill()
    assert sorted(trace.sample_id for trace in traces) == [0, 2]
    assert sorted(body["seed"] for body in server.requests) == sorted(SAMPLING.seed_of("q0", i) for i in (0, 2))


def test_a_question_can_be_sent_without_the_chat_template() -> None:
    server = StandIn(
        lambda _: (200, {"choices": [{"text": "7", "finish_reason": "stop"}], "usage": {"completion_tokens": 1}})
    )
    engine = ServerEngine(server.url)
    list(engine.sample([Question("q0", "1 + 6 =", chat=False, samples=(0,))], SAMPLING))
    engine.close()
    server.kill()
    assert [(body["prompt"], "messages" in body) for body in server.requests] == [("1 + 6 =", False)]
