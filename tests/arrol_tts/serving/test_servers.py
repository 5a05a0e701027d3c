"""The endpoint in front of other servers (stand-ins): what passes through, tool calls, failover."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from arrol_tts.calibration import AnswerCalibration
from arrol_tts.engine import server_engine
from arrol_tts.engine.server_engine import ServerEngine
from tests.arrol_tts.serving.endpoint import Endpoint, said, serving
from tests.arrol_tts.serving.standin import Answer, StandIn

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
Begin = Callable[..., tuple[Endpoint, list[StandIn]]]


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Starts stand-ins and an endpoint in front of them."""
    monkeypatch.setattr(server_engine, "BACK_OFF_SECONDS", 0.01)
    ends: list[Callable[[], Any]] = []

    def start(*answers: Answer, owner: str = "somebody", **settings: Any) -> tuple[Endpoint, list[StandIn]]:
        servers = [StandIn(answer, owner) for answer in answers]
        ends.extend(server.kill for server in servers)
        engine = ServerEngine([server.url for server in servers], retries=1)
        ends.append(engine.close)
        context = serving(engine, None, **{"model": "m", **settings})
        endpoint = context.__enter__()
        ends.append(lambda: context.__exit__(None, None, None))
        return endpoint, servers

    yield start
    for end in reversed(ends):
        end()


def says(*texts: str) -> Answer:
    """Answers them in turn."""
    left = iter(texts * 100)
    return lambda _body: {"content": next(left)}


def call(city: str, unit: str = "C", spaces: str = "") -> dict[str, Any]:
    arguments = f'{{"city": "{city}",{spaces} "unit": "{unit}"}}'
    return {"id": f"call-{spaces}", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def test_the_majority_of_a_plain_servers_answers_wins(begin: Begin) -> None:
    endpoint, (server,) = begin(says("the answer is 7", "it is 8", "so 7.0"))
    reply = endpoint.post({"arrol": {"n": 3}}).json()
    assert (reply["arrol"]["answer"], reply["arrol"]["confidence"]) == ("7", pytest.approx(2 / 3))
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": "the answer is 7"}
    assert reply["usage"] == {
        "prompt_tokens": 21,
        "completion_tokens": 15,
        "total_tokens": 36,
        "prompt_tokens_details": {"cached_tokens": 12},
    }
    assert len({request["seed"] for request in server.requests}) == 3
    assert endpoint.figure("arrol_tokens_cached_total") == 12


@pytest.mark.parametrize(
    ("allow", "lacking"),
    [
        (None, {"self-certainty", "quality"}),
        ([], {"self-certainty", "deepconf", "quality"}),
        (["confidence"], {"quality"}),
    ],
)
def test_the_list_of_models_has_the_methods_that_can_vote_here(allow: list[str] | None, lacking: set[str]) -> None:
    server = StandIn(says("7"), "vllm")
    engine = ServerEngine(server.url)
    engine._servers[0].info = None if allow is None else {"allow": allow, "heads": [""]}
    with serving(engine, None, model="m") as endpoint:
        cards = httpx.get(f"{endpoint.url}/v1/models").json()["data"]
        assert httpx.get(f"{endpoint.url}/v1/models/m@self-certainty-32").is_success == (allow == ["confidence"])
    names = {card["id"] for card in cards}
    every = {"m@majority-32", "m@deepconf-32", "m@self-certainty-32", "m@quality-32"}
    assert every - names == {f"m@{method}-32" for method in lacking}
    engine.close()
    server.kill()


def test_a_conversation_goes_through_whole_with_its_fields(begin: Begin) -> None:
    endpoint, (server,) = begin(says("1"), owner="vllm")
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "how many?"}, image]},
        {"role": "assistant", "content": None, "tool_calls": [call("Ulm")]},
        {"role": "tool", "content": "3", "tool_call_id": "call-"},
    ]
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}}
    fields = {
        "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False, "response_format": wanted,
        "temperature": 0.5, "top_p": 0.9, "stop": ["\n"], "max_tokens": 9, "presence_penalty": 0.1,
        "logit_bias": {"5": 1.0}, "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    assert endpoint.post({"messages": messages, "arrol": {"n": 2}, "user": "u", **fields}).status_code == 200
    assert len(server.requests) == 2
    for request in server.requests:
        assert {name: request[name] for name in (*fields, "messages")} == {"messages": messages, **fields}
        assert "user" not in request


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_are_voted_on_as_structures_and_come_back_whole(begin: Begin, stream: bool) -> None:
    calls = [[call("Ulm", spaces=" ")], [call("Bonn")], [call("Ulm")]]
    left = iter(calls)
    endpoint, _ = begin(lambda _body: {"content": None, "reasoning": "well", "tool_calls": next(left)})
    response = endpoint.post({"tools": [TOOL], "arrol": {"n": 3}, "stream": stream})
    if stream:
        chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        message = next(
            chunk["choices"][0]["delta"] for chunk in chunks if "tool_calls" in chunk["choices"][0]["delta"]
        )
        assert message["tool_calls"][0].pop("index") == 0
        vote, finish = chunks[-1]["arrol"], chunks[-1]["choices"][0]["finish_reason"]
    else:
        choice = response.json()["choices"][0]
        message, finish, vote = choice["message"], choice["finish_reason"], response.json()["arrol"]
    assert [row["votes"] for row in vote["table"]] == [2, 1]
    assert json.loads(vote["answer"]) == [{"name": "weather", "arguments": {"city": "Ulm", "unit": "C"}}]
    assert finish == "tool_calls"
    assert message["tool_calls"][0]["function"]["name"] == "weather"
    assert json.loads(message["tool_calls"][0]["function"]["arguments"])["city"] == "Ulm"
    assert (message["content"], message["reasoning_content"]) == (None, "well")


def test_json_is_voted_on_as_a_structure(begin: Begin) -> None:
    endpoint, _ = begin(says('{"a": 1, "b": 2}', '{"a": 3}', '{"b": 2.0, "a": 1}'))
    reply = endpoint.post({"response_format": {"type": "json_object"}, "arrol": {"n": 3}}).json()
    assert [row["votes"] for row in reply["arrol"]["table"]] == [2, 1]


def test_text_without_a_number_can_be_voted_on(begin: Begin) -> None:
    endpoint, _ = begin(says("Positive", "negative.", "positive"))
    reply = endpoint.post({"arrol": {"n": 3, "equality": "text"}}).json()
    assert [row["votes"] for row in reply["arrol"]["table"]] == [2, 1]
    assert reply["choices"][0]["message"]["content"] == "Positive"


def test_where_nobody_has_an_answer_there_is_a_message_all_the_same(begin: Begin) -> None:
    endpoint, _ = begin(says("Hello!"))
    reply = endpoint.post({"messages": said("Hi"), "arrol": {"n": 2}}).json()
    assert (reply["arrol"]["answer"], reply["arrol"]["confidence"], reply["arrol"]["abstained"]) == (
        None,
        0.0,
        False,
    )
    assert reply["choices"][0]["message"]["content"] == "Hello!"


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_dies_is_failed_over(begin: Begin, stream: bool) -> None:
    endpoint, (first, second) = begin(says("7"), says("8"))
    for _ in range(2):
        assert endpoint.post({"stream": stream}).status_code == 200
    first.kill()
    for _ in range(4):
        response = endpoint.post({"stream": stream})
        assert response.status_code == 200
        assert '"answer":"8"' in response.text
    assert len(second.requests) >= 8


def test_health_says_that_no_server_is_left(begin: Begin) -> None:
    endpoint, (server,) = begin(says("7"))
    assert httpx.get(f"{endpoint.url}/health").status_code == 200
    server.kill()
    assert endpoint.post({}).status_code == 503
    response = httpx.get(f"{endpoint.url}/health")
    assert response.status_code == 503
    assert "no server is left" in response.json()["status"]


def test_no_server_left_is_a_503_until_one_is_back(begin: Begin) -> None:
    is_up = [False]
    endpoint, _ = begin(lambda _body: {"content": "7"} if is_up[0] else 500)
    response = endpoint.post({})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_unavailable"
    assert "no server is left" in response.json()["error"]["message"]
    assert response.headers["retry-after"] == "5"
    is_up[0] = True
    assert endpoint.post({}).status_code == 200


def test_a_calibrated_vote_gives_the_probability_that_it_is_right(begin: Begin) -> None:
    calibration = AnswerCalibration("majority", (0.0, 0.0, 0.0, 0.0), -1.0, (), ())
    endpoint, _ = begin(says("7"), calibration=calibration)
    reply = endpoint.post({}).json()
    assert reply["arrol"]["confidence"] == pytest.approx(1 / (1 + math.e))
    assert endpoint.post({"arrol": {"min_confidence": 0.3}}).json()["arrol"]["abstained"]


def test_half_a_character_comes_through(begin: Begin) -> None:
    endpoint, _ = begin(says("\ud83d is 7"))
    for stream in (False, True):
        response = endpoint.post({"arrol": {"n": 1}, "stream": stream})
        assert response.status_code == 200
        assert "\\ud83d is 7" in response.text


def test_what_the_server_refuses_is_a_400_with_its_words(begin: Begin) -> None:
    endpoint, _ = begin(lambda _body: 400)
    response = endpoint.post({"tools": [TOOL]})
    assert response.status_code == 400
    assert "refuses the request: told to" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"arrol": {"method": "quality"}}, "arrol.method"),
        ({"arrol": {"method": "self-certainty"}}, "arrol.method"),
        ({"arrol": {"keep": 0.5}}, "arrol.keep"),
        ({"top_k": 5}, "top_k"),
        ({"min_p": 0.5}, "min_p"),
    ],
)
def test_what_such_a_server_cannot_do_is_a_400(begin: Begin, body: dict[str, Any], param: str) -> None:
    endpoint, _ = begin(says("7"))
    response = endpoint.post(body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
