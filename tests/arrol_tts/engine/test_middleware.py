"""The server's front door as an ASGI application, around a stand-in application and configuration."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from types import SimpleNamespace
from typing import Any

import pytest

from arrol_tts.engine.vllm_plugin import middleware as module
from arrol_tts.engine.vllm_plugin.middleware import QualityHeadMiddleware, requested_spec
from arrol_tts.engine.vllm_plugin.serve import MIDDLEWARE, server_arguments, take_allowed
from arrol_tts.errors import InputError
from arrol_tts.head_config import HeadError, read_head_config
from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL
from arrol_tts.stopping import KeepShare, TraceSpec

EVERYTHING = ["confidence", "features"]
HEAD = {"sha256": "0", "positions": [32]}


class StandInServer:
    """A middleware around an application that answers with what it was sent, until the client has gone."""

    def __init__(self, info: dict[str, Any], **parallel_config: Any) -> None:
        alone: dict[str, Any] = {"data_parallel_size": 1}
        alone |= {"data_parallel_external_lb": False, "data_parallel_hybrid_lb": False}
        parallel = SimpleNamespace(**alone | parallel_config)
        self.state = SimpleNamespace(vllm_config=SimpleNamespace(parallel_config=parallel))
        self.middleware = QualityHeadMiddleware(self.app)
        self.middleware._info = info
        self.seen: dict[str, Any] = {}
        self.disconnects = 0

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.seen = {"body": body, "headers": dict(scope["headers"]), "path": scope["path"]}
        if (await receive())["type"] == "http.disconnect":
            self.disconnects += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    def ask(
        self, path: str, body: bytes = b"", *, method: str = "POST", pieces: int = 1
    ) -> tuple[int, dict[str, Any]]:
        size = len(body) // pieces + 1
        parts = [body[i : i + size] for i in range(0, max(len(body), 1), size)]
        messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": part, "more_body": i + 1 < len(parts)} for i, part in enumerate(parts)
        ]
        messages.append({"type": "http.disconnect"})
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": [], "app": self}
        asyncio.run(self.middleware(scope, receive, send))
        return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.fixture
def server() -> StandInServer:
    return StandInServer(
        {"version": "1", "hidden_size": 8, "top_k": 5, "head": HEAD, "heads": [""], "allow": EVERYTHING}
    )


def body(spec: Any, **fields: Any) -> bytes:
    text = spec if isinstance(spec, str) else json.dumps(spec)
    return json.dumps({"messages": [], "vllm_xargs": {"arrol": text}} | fields).encode()


def test_a_good_spec_passes_unchanged_and_in_pieces(server: StandInServer) -> None:
    request = body({"score_at": [3]})
    assert server.ask("/v1/chat/completions", request, pieces=4) == (200, {})
    assert server.seen["body"] == request


def test_the_application_still_learns_that_the_client_has_gone(server: StandInServer) -> None:
    server.ask("/v1/completions", body({}))
    assert server.disconnects == 1


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        (body("{"), "not valid JSON"),
        (body([1]), "must be a mapping, not list"),
        (body({"rules": 3}), "rules must be a list"),
        (body({"score_at": [0]}), "score_at is 0"),
        (body({"bogus": 1}), "unknown keys ['bogus']"),
        (body({}, n=2), "send one request per trace"),
        (body({}, prompt=["a", "b"]), "send one request per trace"),
        (body({}, use_beam_search=True), "send one request per trace"),
        (b'{"vllm_xargs": {"arrol": {}}}', "must be a JSON string, not dict"),
        (b'{"vllm_xargs": {"arrol": 7}}', "must be a JSON string, not int"),
        (b'{"vllm_xargs": {"\\u0061rrol": "{"}}', "not valid JSON"),
        (b'{"arrol": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_specs_are_refused_with_400_and_a_reason(
    server: StandInServer, request_body: bytes, message: str
) -> None:
    status, answer = server.ask("/v1/chat/completions", request_body)
    assert status == 400
    assert message in answer["error"]["message"]
    assert answer["error"]["param"] == "vllm_xargs"
    assert server.seen == {}


@pytest.mark.parametrize(
    ("path", "request_body"),
    [
        ("/v1/embeddings", body("{")),
        ("/tokenize", body("{")),
        ("/v1/completions", b"arrol, but not JSON"),
        ("/v1/completions", b'["arrol"]'),
        ("/v1/completions", b'{"vllm_xargs": ["arrol"]}'),
        ("/v1/completions", b'{"vllm_xargs": {"other": "arrol"}}'),
        ("/v1/completions", b'{"prompt": "arrol"}'),
        ("/v1/completions", b""),
    ],
)
def test_everything_else_passes_untouched(server: StandInServer, path: str, request_body: bytes) -> None:
    assert server.ask(path, request_body)[0] == 200
    assert server.seen["body"] == request_body


def test_token_ids_as_prompt_are_one_trace() -> None:
    assert requested_spec(body({"score_at": [1]}, prompt=[5, 6, 7])) == TraceSpec(score_at=(1,))


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/invocations", "/v1/completions"])
def test_a_spec_samples_one_trace_wherever_it_is_sent(server: StandInServer, path: str) -> None:
    assert server.ask(path, body({}, n=2))[0] == 400
    assert server.ask(path, body({}, n=1))[0] == 200


def test_a_spec_among_sampling_parameters_is_read_too(server: StandInServer) -> None:
    params: dict[str, Any] = {"extra_args": {"arrol": json.dumps({"score_at": [0]})}}
    status, answer = server.ask("/inference/v1/generate", json.dumps({"sampling_params": params}).encode())
    assert (status, answer["error"]["message"][:13]) == (400, "score_at is 0")
    params = {"extra_args": {"arrol": "{}"}, "n": 3}
    assert server.ask("/inference/v1/generate", json.dumps({"sampling_params": params}).encode())[0] == 400


def test_several_chats_of_one_request_have_no_spec(server: StandInServer) -> None:
    chats = body({}, messages=[[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]])
    assert server.ask("/v1/chat/completions/batch", chats)[0] == 400


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_spec_is_read_in_every_encoding_that_json_has(server: StandInServer, encoding: str) -> None:
    assert server.ask("/v1/completions", body("{").decode().encode(encoding))[0] == 400


def test_bodies_are_bounded_and_those_with_a_spec_more_closely(
    server: StandInServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 1000)
    monkeypatch.setattr(module, "MAX_SPEC_BODY_BYTES", 100)
    assert server.ask("/v1/completions", b"x" * 1001, pieces=3)[0] == 413
    assert server.ask("/v1/completions", b"x" * 1000, pieces=3)[0] == 200
    assert server.ask("/v1/embeddings", b"x" * 1001)[0] == 200
    assert server.ask("/v1/completions", body({}, prompt="x" * 100), pieces=3)[0] == 413
    escaped = body({}, prompt="x" * 100).replace(b"arrol", b"\\u0061rr\\u006Fl")
    assert [server.ask("/v1/completions", escaped, pieces=n)[0] for n in range(1, 60)] == [413] * 59
    # Escapes elsewhere, as in most JSON that is not English, make nobody a suspect.
    assert server.ask("/v1/completions", json.dumps({"prompt": "ä" * 50}).encode())[0] == 200


def test_a_body_is_not_read_before_the_application_does(server: StandInServer) -> None:
    async def unauthorized(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def never() -> Any:
        raise AssertionError("the body was read")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "app": server}
    asyncio.run(QualityHeadMiddleware(unauthorized)(scope, never, send))
    assert sent[0]["status"] == 401


def test_what_the_application_says_of_a_body_that_was_refused_is_not_sent(server: StandInServer) -> None:
    async def as_fastapi(_scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
        except Exception:
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"There was an error parsing the body"})

    server.middleware._app = as_fastapi
    status, answer = server.ask("/v1/completions", body({"score_at": [0]}))
    assert (status, answer["error"]["message"][:13]) == (400, "score_at is 0")


def test_an_error_of_our_own_is_one_requests_500(server: StandInServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_body: bytes) -> TraceSpec | None:
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(module, "requested_spec", fail)
    status, answer = server.ask("/v1/completions", body({}))
    assert (status, answer["error"]["code"]) == (500, 500)
    assert "arrol's plug-in failed (ZeroDivisionError)" in answer["error"]["message"]
    assert server.ask("/v1/completions", b'{"prompt": "others"}')[0] == 200


@pytest.mark.parametrize(
    ("spec", "needs"),
    [
        ({"confidence": True}, "confidence"),
        ({"confidence_window": 4}, "confidence"),
        ({"self_certainty": True}, "confidence"),
        ({"group": "g", "rules": [{"rule": "confidence_floor"}]}, "confidence"),
        ({"features_at": [1]}, "features"),
        ({"features_every": 4}, "features"),
        ({"features_finish": True}, "features"),
    ],
)
def test_signals_that_everybody_would_pay_for_need_a_server_that_was_started_with_them(
    spec: dict[str, Any], needs: str
) -> None:
    for allow, status in (([], 400), ([needs], 200)):
        server = StandInServer({"head": HEAD, "heads": [""], "allow": allow})
        assert server.ask("/v1/completions", body(spec))[0] == status
    answer = StandInServer({"head": HEAD, "heads": [""], "allow": []}).ask("/v1/completions", body(spec))[1]
    assert f"start it with --allow {needs} (docs/serving.md)" in answer["error"]["message"]
    assert StandInServer({"head": HEAD, "heads": [""], "allow": []}).ask("/v1/completions", body({}))[0] == 200


def test_scores_without_a_head_are_refused_and_confidences_are_not() -> None:
    server = StandInServer(
        {"version": "1", "hidden_size": 8, "top_k": 5, "head": None, "heads": [], "allow": EVERYTHING}
    )
    status, answer = server.ask("/v1/completions", body({"score_finish": True}))
    assert (status, "was started without it" in answer["error"]["message"]) == (400, True)
    assert server.ask("/v1/completions", body({"confidence": True}))[0] == 200


def test_a_server_with_another_scheduler_says_so_and_has_no_info() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.core.sched.scheduler import Scheduler

    server = StandInServer({})
    server.middleware._info = None
    server.state.vllm_config.scheduler_config = SimpleNamespace(get_scheduler_cls=lambda: Scheduler)
    assert server.ask("/arrol/info", method="GET")[0] == 404
    status, answer = server.ask("/v1/completions", body({}))
    assert (status, "runs without arrol's scheduler" in answer["error"]["message"]) == (400, True)


def test_info_says_which_head_is_served() -> None:
    pytest.importorskip("vllm")
    from arrol_tts.engine.vllm_plugin.scheduler import QualityHeadScheduler

    server = StandInServer({})
    server.middleware._info = None
    config = server.state.vllm_config
    config.scheduler_config = SimpleNamespace(get_scheduler_cls=lambda: QualityHeadScheduler)
    config.model_config = SimpleNamespace(get_hidden_size=lambda: 128)
    config.additional_config = {"arrol": {"head": "pocket", "top_k": 5, "allow": ["confidence"]}}
    status, info = server.ask("/arrol/info", method="GET")
    assert status == 200
    assert (info["hidden_size"], info["top_k"], info["head"]["positions"]) == (128, 5, [32, 16])
    assert info["allow"] == ["confidence"]
    weights = (POCKET_HEAD / "head.safetensors").read_bytes()
    assert info["head"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert info["head"]["scoring"] == read_head_config(POCKET_HEAD).scoring()


def test_a_group_stays_on_one_engine_of_a_data_parallel_server_stand_in() -> None:
    server = StandInServer({"head": HEAD, "heads": [""], "allow": EVERYTHING}, data_parallel_size=4)
    ranks = {}
    for group in ("a", "a", "b", "c", "d", "e"):
        spec = TraceSpec(group=group, size=2, rules=(KeepShare(3, 0.5),))
        assert server.ask("/v1/completions", body(spec.to_dict()))[0] == 200
        rank = int(server.seen["headers"][b"x-data-parallel-rank"])
        assert ranks.setdefault(group, rank) == rank
    assert len(set(ranks.values())) > 1
    assert set(ranks.values()) <= {0, 1, 2, 3}


def test_with_hybrid_balancing_a_group_stays_on_one_of_the_machines_own_engines_stand_in() -> None:
    info = {"head": HEAD, "heads": [""], "allow": EVERYTHING}
    hybrid = StandInServer(info, data_parallel_size=8, data_parallel_size_local=2, data_parallel_hybrid_lb=True)
    ranks = set()
    for group in "abcdefghij":
        spec = TraceSpec(group=group, size=2, rules=(KeepShare(3, 0.5),))
        hybrid.ask("/v1/completions", body(spec.to_dict()))
        ranks.add(hybrid.seen["headers"][b"x-data-parallel-rank"])
    assert ranks == {b"0", b"1"}
    external = StandInServer(info, data_parallel_size=8, data_parallel_external_lb=True)
    external.ask("/v1/completions", body(spec.to_dict()))
    assert b"x-data-parallel-rank" not in external.seen["headers"]


def test_the_launcher_fills_in_what_is_not_given() -> None:
    arguments = server_arguments("pocket", ["--port", "9", "--dtype=bfloat16"], on_cpu=True)
    options = dict(zip(arguments[::2], arguments[1::2], strict=False))
    assert options["--middleware"] == MIDDLEWARE
    assert options["--model"] == str(POCKET_MODEL)
    assert options["--scheduler-cls"].endswith(".QualityHeadAutoScheduler")
    assert json.loads(options["--additional-config"]) == {
        "arrol": {"head": str(POCKET_HEAD), "top_k": 5, "allow": []}
    }
    assert "--dtype" not in arguments
    flags = ["--enable-prompt-tokens-details", "--enforce-eager", "--no-async-scheduling"]
    assert sorted(arguments[-6:-3]) == flags
    assert arguments[-3:] == ["--port", "9", "--dtype=bfloat16"]


def test_the_launcher_leaves_scheduling_to_vllm_on_gpus() -> None:
    arguments = server_arguments("pocket", [], on_cpu=False)
    assert not any("async-scheduling" in argument or "enforce-eager" in argument for argument in arguments)


def test_the_launcher_takes_the_signals_to_allow() -> None:
    options, allow = take_allowed(["pocket", "--allow", "features", "--port", "9", "--allow=confidence,features"])
    assert (options, allow) == (["pocket", "--port", "9"], {"confidence", "features"})
    arguments = server_arguments(None, ["--model", "m"], on_cpu=False, allow=["features"])
    assert json.loads(dict(itertools.pairwise(arguments))["--additional-config"])["arrol"]["allow"] == ["features"]
    with pytest.raises(InputError, match="it must be a list of confidence and features"):
        take_allowed(["--allow", "everything"])


def test_the_launcher_names_a_head_that_is_not_there() -> None:
    with pytest.raises(HeadError, match="there is no quality head at './nowhere'"):
        server_arguments("./nowhere", [], on_cpu=True)


def test_a_model_without_a_head_is_served_for_collecting() -> None:
    arguments = server_arguments(None, ["--model", "m"], on_cpu=False)
    options = dict(itertools.pairwise(arguments))
    assert options["--middleware"] == MIDDLEWARE
    assert options["--model"] == "m"
    assert json.loads(options["--additional-config"])["arrol"]["head"] is None
