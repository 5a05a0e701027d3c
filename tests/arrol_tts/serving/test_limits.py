"""Keys, limits, the queue over HTTP, figures and the access log."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from arrol_tts.engine.server_engine import ServerEngine
from arrol_tts.serving import connection
from tests.arrol_tts.serving.endpoint import Endpoint, eventually, said, serving
from tests.arrol_tts.serving.standin import StandIn

KEYS = {"key-of-ann": "ann", "key-of-bob": "bob"}
ANN, BOB = ({"authorization": f"Bearer {key}"} for key in KEYS)


@pytest.fixture(scope="module")
def engine() -> Iterator[ServerEngine]:
    server = StandIn(lambda _body: {"content": "the answer is 7"})
    engine = ServerEngine(server.url)
    yield engine
    engine.close()
    server.kill()


@pytest.fixture(scope="module")
def endpoint(engine: ServerEngine) -> Iterator[Endpoint]:
    with serving(engine, None, model="m", keys=KEYS, max_body=2048, max_n=4) as endpoint:
        yield endpoint


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer nobody"}, {"authorization": "Basic key-of-ann"}]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/m"])
def test_without_a_key_there_is_no_answer(endpoint: Endpoint, path: str, headers: dict[str, str]) -> None:
    method = "GET" if "models" in path else "POST"
    response = httpx.request(method, endpoint.url + path, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"
    assert response.headers["www-authenticate"] == "Bearer"


def test_with_a_key_there_is(endpoint: Endpoint) -> None:
    assert endpoint.post({}, headers=ANN).json()["arrol"]["answer"] == "7"
    assert httpx.get(f"{endpoint.url}/v1/models", headers=BOB).status_code == 200


def test_health_and_figures_need_none(endpoint: Endpoint) -> None:
    assert httpx.get(f"{endpoint.url}/health").json() == {"status": "ok"}
    assert "arrol_requests_total" in httpx.get(f"{endpoint.url}/metrics").text


def test_a_body_that_is_too_large_is_a_413(endpoint: Endpoint) -> None:
    assert endpoint.post({"messages": said("x" * 3000)}, headers=ANN).status_code == 413

    def parts() -> Iterator[bytes]:
        yield from [b" " * 1024] * 3

    headers = ANN | {"content-type": "application/json"}
    response = httpx.post(f"{endpoint.url}/v1/chat/completions", content=parts(), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")


def test_a_body_that_does_not_come_is_a_408(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.1)
    headers = ANN | {"content-type": "application/json", "content-length": "10"}

    def never() -> Iterator[bytes]:
        yield b" "
        threading.Event().wait(1)
        yield b"         "

    response = httpx.post(f"{endpoint.url}/v1/chat/completions", content=never(), headers=headers)
    assert response.status_code == 408


def test_a_full_queue_is_a_429_and_keys_take_turns() -> None:
    gate, asked = threading.Event(), {"arrol": {"n": 1}}
    server = StandIn(lambda _body: {"content": "7"} if gate.wait(30) else 500)
    engine = ServerEngine(server.url)
    with (
        serving(engine, None, model="m", keys=KEYS, max_running=1, max_waiting=2) as endpoint,
        ThreadPoolExecutor(8) as pool,
    ):
        anns = [pool.submit(endpoint.post, asked, headers=ANN) for _ in range(3)]
        assert eventually(lambda: endpoint.figure("arrol_requests_waiting") == 2)
        for stream in (False, True):
            refused = endpoint.post(asked | {"stream": stream}, headers=ANN)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            assert refused.headers["retry-after"] == "1"
        bobs = pool.submit(endpoint.post, asked, headers=BOB)  # one of Ann's gives way
        assert eventually(lambda: any(future.done() for future in anns))
        gate.set()
        assert sorted(future.result().status_code for future in anns) == [200, 200, 429]
        assert bobs.result().status_code == 200
    engine.close()
    server.kill()


def test_who_leaves_while_waiting_is_not_waited_for() -> None:
    gate = threading.Event()
    server = StandIn(lambda _body: {"content": "7"} if gate.wait(30) else 500)
    engine = ServerEngine(server.url)
    with serving(engine, None, model="m", max_running=1) as endpoint, ThreadPoolExecutor(1) as pool:
        first = pool.submit(endpoint.post, {})
        assert eventually(lambda: endpoint.figure("arrol_requests_running") == 1)
        url, asked = f"{endpoint.url}/v1/chat/completions", {"messages": said("1+1")}
        for stream in (False, True):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url, json=asked | {"stream": stream}, timeout=0.2)
            assert eventually(lambda: endpoint.figure("arrol_requests_waiting") == 0)
        gate.set()
        assert first.result().status_code == 200
        assert len(server.requests) == 2
    engine.close()
    server.kill()


def test_figures_count_what_was_asked_and_what_it_cost(endpoint: Endpoint) -> None:
    names = [
        "arrol_requests_total", "arrol_samples_total", "arrol_tokens_generated_total", "arrol_confidence_count",
        "arrol_request_seconds_count", "arrol_queue_seconds_count", "arrol_tokens_prompt_total",
    ]  # fmt: skip
    before = [endpoint.figure(name) for name in names]
    endpoint.post({"arrol": {"n": 3}}, headers=ANN)
    endpoint.post({"arrol": {"n": 5}}, headers=ANN)  # more than this server takes
    after = [endpoint.figure(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 3, 15, 1, 1, 1, 21]
    page = httpx.get(f"{endpoint.url}/metrics").text
    assert 'arrol_requests_total{method="majority",model="m",status="200"}' in page
    assert 'arrol_samples_total{ended="stop",method="majority",model="m"}' in page


def lines_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name.endswith("access")]


def test_the_access_log_has_no_contents(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    endpoint.post({"messages": said("my secret")}, headers=ANN)
    endpoint.post({"model": "x\n{}"}, headers=ANN)
    httpx.get(f"{endpoint.url}/v1/%0A%1B[31mred")
    first, second, third = lines_of(caplog)
    assert (first["key"], first["status"], first["vote"], first["n"]) == ("ann", 200, "majority", 2)
    assert (second["status"], third["status"]) == (404, 404)
    assert "secret" not in caplog.text
    assert "key-of-ann" not in caplog.text
    assert not any("\n" in record.getMessage() or "\x1b" in record.getMessage() for record in caplog.records)


def test_what_the_server_is_to_blame_for_is_a_line_of_its_log_and_not_the_clients(
    engine: ServerEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("somebody's text\nwith a line of its own")

    monkeypatch.setattr("arrol_tts.serving.runner.WeightedVoter", broken)
    with serving(engine, None, model="m") as endpoint:
        for stream in (False, True):
            response = endpoint.post({"stream": stream})
            assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
            assert "somebody" not in response.text
        assert endpoint.figure('arrol_requests_total{method="majority",model="m",status="500"}') == 2
    failures = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(failures) == 2
    assert all("RuntimeError: somebody's text" in line and "\n" not in line for line in failures)


def test_the_access_log_has_contents_when_it_shall(engine: ServerEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serving(engine, None, model="m", log_contents=True) as endpoint:
        endpoint.post({"messages": said("line\nbreak")})
    (line,) = lines_of(caplog)
    assert (line["prompts"], line["answers"]) == ([said("line\nbreak")], ["7"])
