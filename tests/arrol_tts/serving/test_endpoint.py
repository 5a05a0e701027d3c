"""OpenAI's API over the pocket model: replies, streams, errors, and clients that go away."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from arrol_tts import WeightedVoter
from arrol_tts.head_config import read_head_config
from arrol_tts.pocket import POCKET_HEAD
from tests.arrol_tts.serving.endpoint import ANSWER, QUESTION, Endpoint, eventually, said

if TYPE_CHECKING:
    from openai import OpenAI

    from arrol_tts.engine.vllm_engine import VLLMEngine

LONG = {"arrol": {"n": 24, "keep": 1.0}, "min_tokens": 256, "max_tokens": 256}
"""Seconds of work."""


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> OpenAI:
    openai = pytest.importorskip("openai", reason="the client comes with vLLM")
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="none", timeout=120, max_retries=0)  # type: ignore[no-any-return]


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_client_gets_what_the_voter_says(client: OpenAI, vllm_engine: VLLMEngine) -> None:
    reply = client.chat.completions.create(
        model="pocket", messages=said(QUESTION), seed=0, extra_body={"arrol": {"n": 16}}  # type: ignore[arg-type]
    )  # fmt: skip
    result = WeightedVoter(vllm_engine, config=read_head_config(POCKET_HEAD)).solve(QUESTION, 16)
    assert result.answer == ANSWER
    (choice,) = reply.choices
    assert choice.message.content is not None
    assert choice.message.content.endswith("answer 13")
    assert choice.finish_reason == "stop"
    vote = reply.model_extra["arrol"] if reply.model_extra else {}
    assert (vote["answer"], vote["method"], vote["seed"]) == ("13", "quality", 0)
    assert vote["confidence"] == pytest.approx(result.confidence, abs=1e-6)
    assert [row["votes"] for row in vote["table"]] == [row.votes for row in result.table]
    assert vote["tokens"]["pruned_traces"] == 8
    assert vote["tokens"]["saved"] == result.tokens.saved > 0
    assert reply.usage is not None
    assert reply.usage.completion_tokens == result.tokens.generated
    ends = [sample["finish_reason"] for sample in vote["samples"]]
    assert ends == [trace.finish_reason for trace in result.traces]
    assert "not among the best 8 of 16" in next(
        sample["detail"] for sample in vote["samples"] if sample["finish_reason"] == "pruned"
    )


def test_n_brings_the_best_different_answers(endpoint: Endpoint) -> None:
    reply = endpoint.post({"n": 3, "seed": 0, "arrol": {"n": 16, "keep": 1.0}}).json()
    answers = [choice["message"]["content"].rpartition(" ")[2] for choice in reply["choices"]]
    assert answers == [row["answer"] for row in reply["arrol"]["table"][:3]]
    assert len(set(answers)) == len(answers) >= 2
    assert [choice["index"] for choice in reply["choices"]] == list(range(len(answers)))


def test_the_name_of_the_model_chooses_the_vote(endpoint: Endpoint) -> None:
    reply = endpoint.post({"model": "pocket@majority-6", "arrol": {}}).json()
    assert (reply["arrol"]["method"], len(reply["arrol"]["samples"])) == ("majority", 6)
    assert reply["model"] == "pocket@majority-6"


def test_a_seed_repeats_a_vote_and_without_one_samples_differ(endpoint: Endpoint) -> None:
    first, second, third = (endpoint.post({"max_tokens": 40} | more).json() for more in ({}, {}, {}))
    assert len({reply["arrol"]["seed"] for reply in (first, second, third)}) == 3
    again = endpoint.post({"max_tokens": 40, "seed": first["arrol"]["seed"]}).json()
    assert again["choices"] == first["choices"]


def test_an_abstention_is_a_refusal(endpoint: Endpoint) -> None:
    reply = endpoint.post({"seed": 0, "arrol": {"n": 8, "method": "majority", "min_confidence": 1.0}}).json()
    assert (reply["arrol"]["abstained"], reply["arrol"]["answer"]) == (True, None)
    assert reply["arrol"]["table"][0]["answer"]
    (choice,) = reply["choices"]
    assert choice["message"]["content"] is None
    assert choice["message"]["refusal"].startswith("The vote abstained: its confidence is 0.")


def test_samples_that_were_cut_have_no_answer_and_say_so(endpoint: Endpoint) -> None:
    reply = endpoint.post({"max_tokens": 3}).json()
    assert (reply["arrol"]["answer"], reply["arrol"]["confidence"]) == (None, 0.0)
    assert (reply["choices"][0]["finish_reason"], reply["usage"]["completion_tokens"]) == ("length", 6)


def test_waves_and_consensus_cost_less(endpoint: Endpoint) -> None:
    body = {"seed": 0, "arrol": {"n": 16, "start": 2, "certainty": 0.5}}
    assert endpoint.post(body).json()["arrol"]["tokens"]["unstarted_traces"] > 0
    body = {"seed": 0, "arrol": {"n": 16, "keep": 1.0, "consensus": {"share": 0.5, "min_votes": 2}}}
    samples = endpoint.post(body).json()["arrol"]["samples"]
    assert "has" in next(sample["detail"] for sample in samples if sample["finish_reason"] == "cancelled")


def test_plain_completions_take_several_prompts(endpoint: Endpoint) -> None:
    reply = endpoint.post({"prompt": [QUESTION, "2+3*4"], "seed": 0, "n": 2}, "/v1/completions").json()
    assert reply["object"] == "text_completion"
    assert {choice["index"] for choice in reply["choices"]} >= {0, 2}
    assert [vote["method"] for vote in reply["arrol"]] == ["quality", "quality"]
    single = endpoint.post({"prompt": QUESTION, "seed": 0}, "/v1/completions").json()
    assert single["choices"][0]["text"] == reply["choices"][0]["text"]


def test_a_stream_reports_the_vote_and_then_says_the_text(endpoint: Endpoint) -> None:
    body = {"seed": 0, "stream": True, "stream_options": {"include_usage": True}, "arrol": {"n": 16}}
    chunks = chunks_of(endpoint.post(body))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    whole = endpoint.post({"seed": 0, "arrol": {"n": 16}}).json()
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-2]["arrol"] == whole["arrol"]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}


def test_a_long_stream_shows_the_vote_as_it_forms(endpoint: Endpoint) -> None:
    chunks = chunks_of(endpoint.post({"stream": True, "seed": 0, **LONG}))
    reports = [chunk for chunk in chunks if chunk.get("arrol", {}).get("phase") == "sampling"]
    assert all(chunk["choices"][0]["delta"] == {} for chunk in reports)
    written = [chunk["arrol"]["tokens"]["generated"] for chunk in reports]
    assert written == sorted(written)
    assert written[-1] > 0


def test_whoever_asks_for_the_traces_sees_what_they_write(endpoint: Endpoint) -> None:
    body = {"seed": 0, "arrol": {"n": 8, "traces": True, "score_every": 8}}
    whole = endpoint.post(body).json()["arrol"]["samples"]
    cut = next(sample for sample in whole if sample["finish_reason"] == "pruned")
    assert list(cut["scores"]) == ["8", "16", "24", "32"]
    said = next(sample for sample in whole if sample["finish_reason"] == "stop")
    assert said["text"].endswith(f"answer {said['answer']}")
    chunks = chunks_of(endpoint.post({**body, **LONG, "stream": True, "arrol": LONG["arrol"] | body["arrol"]}))
    news = [sample for chunk in chunks[:-2] for sample in chunk.get("arrol", {}).get("samples", ())]
    written = "".join(sample["text"] for sample in news if sample["sample"] == 3 and "finish_reason" not in sample)
    (last,) = (sample for sample in chunks[-1]["arrol"]["samples"] if sample["sample"] == 3)
    assert last["text"].startswith(written)
    assert written
    assert "text" not in endpoint.post({"seed": 0, "arrol": {"n": 2}}).json()["arrol"]["samples"][0]


def test_the_openai_client_streams(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="pocket@quality-4", messages=said(QUESTION), stream=True, seed=0  # type: ignore[arg-type]
    )  # fmt: skip
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert "answer" in text


def test_models_are_listed(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == "pocket"
    assert client.models.retrieve("pocket@majority-32").id == "pocket@majority-32"


def test_a_client_that_leaves_ends_its_samples(endpoint: Endpoint) -> None:
    asked, url = {"messages": said(QUESTION), **LONG}, f"{endpoint.url}/v1/chat/completions"
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=asked, timeout=0.3)
    assert eventually(lambda: endpoint.figure("arrol_requests_running") == 0, 5.0)
    with httpx.stream("POST", url, json={"stream": True, **asked}, timeout=60) as stream:
        assert next(stream.iter_lines()).startswith("data: ")
    assert eventually(lambda: endpoint.figure("arrol_requests_running") == 0, 5.0)
    assert endpoint.figure('arrol_requests_total{method="quality",model="pocket",status="499"}') == 2
    began = time.monotonic()
    endpoint.post({"max_tokens": 2})
    assert time.monotonic() - began < 2.0  # the engine is free again


def test_a_prompt_too_long_for_the_model_is_a_400(endpoint: Endpoint) -> None:
    for body in ({}, {"stream": True}):
        response = endpoint.post({"messages": said("1+" * 400 + "1"), **body})
        assert response.status_code == 400
        assert "exceeds the model's 512" in response.json()["error"]["message"]


def test_what_the_model_that_is_loaded_here_cannot_take_is_named(endpoint: Endpoint) -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    for body, param in (
        ({"tools": [tool]}, "tools"),
        ({"messages": [{"role": "user", "content": [image]}]}, "messages[0].content[0]"),
        ({"arrol": {"system": "x"}, "messages": [{"role": "system", "content": "y"}, *said("1")]}, "arrol.system"),
    ):
        response = endpoint.post(body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_an_error_is_in_openais_form_and_names_the_field(endpoint: Endpoint) -> None:
    response = endpoint.post({"arrol": {"keep": 2.0}})
    assert response.status_code == 400
    assert response.json() == {
        "error": {
            "message": "arrol.keep: it is 2.0; it must be in (0, 1], the share of samples that goes on",
            "type": "invalid_request_error",
            "param": "arrol.keep",
            "code": "invalid_value",
        }
    }


def test_routes_that_there_are_not_say_so_in_the_same_form(endpoint: Endpoint) -> None:
    response = httpx.post(f"{endpoint.url}/v1/embeddings", json={})
    assert (response.status_code, response.json()["error"]["type"]) == (404, "invalid_request_error")
    assert httpx.get(f"{endpoint.url}/v1/chat/completions").status_code == 405
    assert endpoint.post({"model": "gpt-4"}).json()["error"]["code"] == "model_not_found"


def test_only_json_is_taken(endpoint: Endpoint) -> None:
    # Pages of other sites can make a browser send anything else without asking.
    url = f"{endpoint.url}/v1/chat/completions"
    assert httpx.post(url, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    response = httpx.post(url, content=b"{", headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
