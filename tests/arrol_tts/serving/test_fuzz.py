"""A thousand bodies that nobody would send: each is answered or refused, and none brings the server down."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from arrol_tts.head_config import read_head_config
from arrol_tts.pocket import POCKET_HEAD
from arrol_tts.serving.requests import ChatFields, TextFields, VoteFields
from tests.arrol_tts.serving.endpoint import QUESTION, Endpoint, said, serving

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine

COUNT = 1000

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, 10**18, 10**40, "", " ", "x", "32", "\u0000", "é" * 300),
    *("\u202e{{7*7}}", "$(reboot)", "%s%n", [], [[]], [None], {}, {"": None}, {"a": {"b": [1]}}, ["x"] * 100),
    *({"role": "user"}, said("1+1")),
]
NAMES = [*{**ChatFields.model_fields, **TextFields.model_fields}, "zzz"]
VOTES = [*VoteFields.model_fields, "zzz"]
GOOD: list[dict[str, Any]] = [
    {"messages": said(QUESTION), "max_tokens": 4, "arrol": {"n": 1}},
    {"messages": said("2+3"), "max_tokens": 4, "arrol": {"n": 2, "method": "majority"}, "stream": True},
    {"messages": [{"role": "system", "content": "x"}, *said("2+3")], "max_tokens": 4, "arrol": {"n": 1}},
    {"prompt": "2+3", "max_tokens": 4, "arrol": {"n": 1}},
    {"model": "pocket@deepconf-1", "messages": said("2"), "max_tokens": 3, "temperature": 0.5},
]


def spoil(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """A value with something in it replaced by something odd."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.7):
        name = rng.choice(list(value))
        return value | {name: spoil(rng, value[name], depth + 1)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        i = rng.randrange(len(value))
        return [*value[:i], spoil(rng, value[i], depth + 1), *value[i + 1 :]]
    return rng.choice(ODD)


def body_of(rng: random.Random) -> bytes:
    """A good request, spoiled in one to three places, or bytes that are no JSON at all."""
    request = copy.deepcopy(rng.choice(GOOD))
    for _ in range(rng.randint(1, 3)):
        kind = rng.random()
        if kind < 0.4:
            request[rng.choice(NAMES)] = rng.choice(ODD)
        elif kind < 0.7:
            vote = request.get("arrol")
            request["arrol"] = (vote if isinstance(vote, dict) else {}) | {rng.choice(VOTES): rng.choice(ODD)}
        else:
            request = spoil(rng, request)
    body = json.dumps(request).encode()
    if rng.random() < 0.1:
        i = rng.randrange(len(body))
        body = body[:i] + bytes([rng.randrange(256)]) + body[i + 1 :]
    return body


@pytest.fixture(scope="module")
def endpoint(vllm_engine: VLLMEngine) -> Iterator[Endpoint]:
    """Of few tokens: what only takes long is for other tests."""
    with serving(vllm_engine, read_head_config(POCKET_HEAD), max_tokens=4, max_n=4) as endpoint:
        yield endpoint


def test_a_thousand_odd_bodies_are_answered_or_refused(endpoint: Endpoint) -> None:
    rng = random.Random(0)
    statuses: Counter[int] = Counter()
    with httpx.Client(timeout=60) as client:
        for _ in range(COUNT):
            body = body_of(rng)
            path = "/v1/completions" if b'"prompt"' in body else "/v1/chat/completions"
            response = client.post(endpoint.url + path, content=body, headers={"content-type": "application/json"})
            statuses[response.status_code] += 1
            assert response.status_code in (200, 400, 404), (response.status_code, body, response.text)
            if response.status_code == 200:
                assert '"error":{' not in response.text, (body, response.text)
            else:
                error = response.json()["error"]
                assert error["message"], body
                assert error["param"] or error["code"] in ("invalid_json", "invalid_value"), (body, error)
        assert client.get(f"{endpoint.url}/health").status_code == 200
    assert statuses[200] > 20
    assert statuses[400] > 500
    assert endpoint.post({"max_tokens": 4}).status_code == 200
