"""Runs whose traces come from an ``arrol-serve``, over HTTP."""

from __future__ import annotations

import asyncio
import json
import shlex
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the endpoint is not installed: pip install 'arrol[serve]'")
pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'arrol[cpu]'")
import httpx

from arrol_tts.errors import InputError, ServerError
from arrol_tts.voter import WeightedVoter
from demo.choices import Ask, Choices
from demo.cli import find_endpoint
from demo.endpoint import Endpoint
from demo.frames import Frame, Stop
from demo.live import LiveRunner
from demo.recording import Recordings
from demo.request import Served, request_of
from tests.demo.conftest import ANSWER, QUESTION


@pytest.fixture
def remote(runner: LiveRunner, endpoint: str) -> LiveRunner:
    """The runner of the local tests, on an endpoint; its own voter has no engine."""
    return replace(
        runner,
        voter=WeightedVoter(config=runner.voter.config),
        recordings=Recordings(),
        endpoint=Endpoint.find(endpoint),
    )


def last_run(runner: LiveRunner, *choices: Choices) -> dict[str, Any]:
    async def collect() -> Frame:
        return [frame async for frame in runner.run(Ask(QUESTION, choices), Stop())][-1]

    run: dict[str, Any] = asyncio.run(collect())["runs"][0]
    return run


def test_a_run_is_the_one_that_the_engine_gives(runner: LiveRunner, remote: LiveRunner) -> None:
    here, there = (last_run(one, Choices(n=16, consensus=1.0)) for one in (runner, remote))
    assert there["counts"] == {"writing": 0, "finished": 8, "pruned": 8, "cancelled": 0}
    for name in ("text", "tokens", "status", "answer", "right", "why"):
        assert [trace[name] for trace in there["traces"]] == [trace[name] for trace in here["traces"]]
    scores = [[trace["score"] for trace in run["traces"]] for run in (here, there)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    tallies = {tally["method"]: tally["answer"] for tally in there["tally"]}
    assert tallies == {
        "Majority": here["tally"][0]["answer"],
        "Quality head": ANSWER,
    }  # DeepConf's signal stays there


def test_traces_are_seen_as_they_grow(remote: LiveRunner) -> None:
    remote.max_tokens = 400
    request = request_of(QUESTION, Choices(n=24, rule="none"), max_tokens=400, score_every=8)
    assert request is not None
    assert remote.endpoint is not None

    async def texts() -> list[str]:
        assert remote.endpoint is not None
        found: dict[int, list[str]] = {}
        async for event in remote.endpoint.astream({**request, "min_tokens": 400}):
            if hasattr(event, "sample_id"):
                found.setdefault(event.sample_id, []).append(event.text)
            else:
                found.setdefault(event.trace.sample_id, []).append("=" + event.trace.text)
        assert len(found) == 24
        return found[0]

    *pieces, whole = asyncio.run(texts())
    assert len(pieces) >= 1
    assert whole.removeprefix("=").startswith("".join(pieces))


def test_a_reader_who_leaves_ends_the_samples(remote: LiveRunner, endpoint: str) -> None:
    remote.max_tokens = 480

    async def leave() -> None:
        running = remote.run(Ask(QUESTION, (Choices(n=48, rule="none", temperature=2.0),)), Stop())
        async for frame in running:
            if frame["runs"][0]["tokens"]:
                break
        await running.aclose()

    asyncio.run(leave())
    until = time.monotonic() + 10
    while "arrol_requests_running 0.0" not in httpx.get(f"{endpoint}/metrics", timeout=60).text:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("rule", ["bar", "deepconf"])
def test_rules_that_it_lacks_are_refused_by_their_names(remote: LiveRunner, rule: str) -> None:
    with pytest.raises(InputError, match="choose 'keep the best share' or 'prune nothing'"):
        last_run(remote, Choices(n=4, rule=rule))


def test_what_it_refuses_is_said_as_it_says_it(remote: LiveRunner) -> None:
    with pytest.raises(InputError, match="arrol.n: it is 200; this server takes from 1 to 64 samples"):
        last_run(remote, Choices(n=200))


def test_a_second_server_beside_it_is_refused(endpoint: str) -> None:
    with pytest.raises(InputError, match="name one arrol-serve alone"):
        find_endpoint([endpoint, "http://127.0.0.1:9"])
    assert find_endpoint(["http://127.0.0.1:9"]) is None


def test_nothing_is_loaded_to_warm_up(remote: LiveRunner) -> None:
    remote.ready = threading.Event()
    remote.warm_up()  # a voter without an engine could not sample
    assert remote.ready.is_set()


def test_an_endpoint_that_has_gone_is_said(runner: LiveRunner) -> None:
    gone = replace(runner, endpoint=Endpoint("http://127.0.0.1:9", "pocket"))
    with pytest.raises(ServerError, match="http://127.0.0.1:9 does not answer"):
        last_run(gone, Choices(n=2))


def test_a_request_is_quoted_for_the_shell() -> None:
    request = request_of(
        "it's $(reboot)", Choices(n=4, consensus=0.8), max_tokens=64, score_every=8, system="Be kind."
    )
    assert request is not None
    words = Served("http://127.0.0.1:8001", "pocket").words(request)
    *command, body = shlex.split(words)
    assert command == ["curl", "http://127.0.0.1:8001/v1/chat/completions", "--json"]
    assert json.loads(body) == {
        "model": "pocket",
        "messages": [{"role": "user", "content": "it's $(reboot)"}],
        "temperature": 1.0,
        "max_tokens": 64,
        "seed": 0,
        "arrol": {
            "n": 4,
            "method": "quality",
            "keep": 0.5,
            "at": 32,
            "score_every": 8,
            "system": "Be kind.",
            "consensus": 0.8,
        },
    }


# --- other servers --------------------------------------------------------------------------------


@pytest.fixture
def other() -> Iterator[tuple[str, dict[str, tuple[int, str]]]]:
    """A server that answers each path with what is put into the dictionary."""
    replies: dict[str, tuple[int, str]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, body = replies.get(self.path, (404, ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", replies
    server.shutdown()
    server.server_close()


def test_a_vllm_server_and_silence_are_no_endpoints(other: tuple[str, dict[str, tuple[int, str]]]) -> None:
    url, replies = other
    assert Endpoint.find("http://127.0.0.1:9") is None
    assert Endpoint.find(url) is None
    replies["/v1/models"] = 200, json.dumps({"data": [{"id": "pocket", "owned_by": "vllm"}]})
    assert Endpoint.find(url) is None
    replies["/v1/models"] = 200, json.dumps({"data": [{"id": "pocket", "owned_by": "arrol"}]})
    assert Endpoint.find(f"{url}/v1", "key") == Endpoint(url, "pocket", "key")
    replies["/v1/models"] = 401, "{}"
    with pytest.raises(InputError, match="set ARROL_SERVER_KEY"):
        Endpoint.find(url)


def test_a_vote_that_fails_on_the_way_says_so(
    other: tuple[str, dict[str, tuple[int, str]]], runner: LiveRunner
) -> None:
    url, replies = other
    broken = replace(runner, endpoint=Endpoint(url, "pocket"))
    replies["/v1/chat/completions"] = 200, 'data: {"error": {"message": "no server is left"}}\n\n'
    with pytest.raises(ServerError, match="no server is left"):
        last_run(broken, Choices(n=2))
    replies["/v1/chat/completions"] = 429, '{"error": {"message": "too many requests are waiting"}}'
    with pytest.raises(ServerError, match="too many requests are waiting"):
        last_run(broken, Choices(n=2))
    replies["/v1/chat/completions"] = 502, "<html>"
    with pytest.raises(ServerError, match="HTTP 502"):
        last_run(broken, Choices(n=2))
