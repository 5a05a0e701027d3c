"""Served for real: vLLM's own OpenAI server with the plug-in, in processes of its own, on loopback ports."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from arrol_tts import Waves, WeightedVoter
from arrol_tts.engine.request import Question, Sampling
from arrol_tts.engine.server_engine import ServerEngine
from arrol_tts.engine.vllm_plugin.allowed import SIGNALS
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY
from arrol_tts.errors import ServerError
from arrol_tts.head_config import read_head_config
from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL, questions
from arrol_tts.stopping import KeepShare, TraceSpec
from arrol_tts.trace import Trace
from evals.bench import fuzz
from tests.arrol_tts.engine.serving import PLUG_IN, Server, get, serving, start
from tests.conftest import TOP_K

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine
    from arrol_tts.head import QualityHead

pytest.importorskip("vllm")

post = partial(httpx.post, timeout=60)
AT = 32
QUESTIONS = [Question(f"q{i}", q.text) for i, q in enumerate(itertools.islice(questions("test"), 40))]
SAMPLING = Sampling(n=8, max_tokens=256, seed=3)
SCORED = TraceSpec(score_at=(1, AT), score_finish=True, confidence=True)
PRUNED = replace(SCORED, rules=(KeepShare(AT, 0.5),))
LONG = replace(SAMPLING, min_tokens=400, max_tokens=440)
"""Traces that are still being written when a busy machine hears that they are not wanted."""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, heads: dict[str, QualityHead]) -> Iterator[Server]:
    """A server with the plug-in, started by the documented command, with a second head that pools."""
    folder = tmp_path_factory.mktemp("gated")
    heads["gated"].save_pretrained(folder)
    config = {"head": {"": str(POCKET_HEAD), "gated": str(folder)}, "top_k": TOP_K, "allow": SIGNALS}
    yield from serving(
        tmp_path_factory, "first", *PLUG_IN, f"--additional-config={json.dumps({CONFIG_KEY: config})}"
    )


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another one."""
    yield from serving(tmp_path_factory, "second", *PLUG_IN)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without the plug-in."""
    command = ("vllm.entrypoints.openai.api_server", "--model", str(POCKET_MODEL), "--dtype", "float32")
    yield from serving(tmp_path_factory, "plain", *command, "--enforce-eager", "--no-async-scheduling")


@pytest.fixture
def engine(first: Server) -> Iterator[ServerEngine]:
    engine = ServerEngine(first.url, head=POCKET_HEAD)
    yield engine
    engine.close()


def by_id(traces: list[Trace]) -> dict[tuple[str, int], Trace]:
    named = {(t.question_id, t.sample_id): t for t in traces}
    assert len(named) == len(traces)
    return named


def gauge(server: Server, name: str) -> float:
    found = re.search(rf"^vllm:{name}\{{.*\}} (\S+)$", get(f"{server.url}/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found.group(1))


def chat(text: str = QUESTIONS[0].text, **fields: Any) -> dict[str, Any]:
    return {"model": str(POCKET_MODEL), "messages": [{"role": "user", "content": text}]} | fields


def xargs(spec: Any) -> dict[str, Any]:
    return {"vllm_xargs": {"arrol": spec if isinstance(spec, str) else json.dumps(spec)}}


@pytest.mark.parametrize("head", ["", "gated"])
def test_the_server_gives_what_the_engine_in_this_process_gives(
    engine: ServerEngine, vllm_engine: VLLMEngine, head: str
) -> None:
    spec = replace(SCORED, head=head)
    served = by_id(list(engine.sample(QUESTIONS[:4], SAMPLING, spec)))
    local = by_id(list(vllm_engine.sample(QUESTIONS[:4], SAMPLING, spec)))
    assert sorted(served) == sorted(local)
    same = [key for key in local if served[key].token_ids == local[key].token_ids]
    # Rounding differs with the batch's shape, so a draw at a boundary may fall the other way.
    assert len(same) >= len(local) - 2
    for key in same:
        ours, theirs = served[key], local[key]
        assert (ours.text, ours.num_tokens, ours.finish_reason) == (
            theirs.text,
            theirs.num_tokens,
            theirs.finish_reason,
        )
        assert (ours.prompt_tokens, ours.cached_tokens) == (theirs.prompt_tokens, theirs.cached_tokens)
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-4)
        assert ours.confidence is not None
        assert theirs.confidence is not None
        np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=1e-3)


@pytest.mark.parametrize("chat", [True, False])
def test_a_stream_shows_texts_as_they_are_written_and_ends_in_the_same_traces(first: Server, chat: bool) -> None:
    engine = ServerEngine(first.url, head=POCKET_HEAD, chat=chat)
    whole = by_id(list(engine.sample(QUESTIONS[:2], SAMPLING, SCORED)))
    ended: dict[tuple[str, int], Trace] = {}
    texts = Counter[tuple[str, int]]()
    written: dict[tuple[str, int], str] = {}
    for item in engine.stream(QUESTIONS[:2], SAMPLING, SCORED, every=0.0):
        key = item.question_id, item.sample_id
        if isinstance(item, Trace):
            ended[key] = item
        else:
            written[key] = written.get(key, "") + item.text
            texts[key] += 1
    engine.close()
    assert ended.keys() == whole.keys() == written.keys()
    assert min(texts.values()) > 10
    same = [key for key, trace in ended.items() if trace.token_ids == whole[key].token_ids]
    assert len(same) >= len(whole) - 2
    for key in same:
        assert ended[key].text.startswith(written[key])
        assert ended[key].text == whole[key].text
        assert ended[key].scores == pytest.approx(whole[key].scores, abs=1e-4)
        assert ended[key].confidence == pytest.approx(whole[key].confidence, abs=1e-3)


def test_waves_over_http_are_pruned_each_by_itself(engine: ServerEngine) -> None:
    voter = WeightedVoter(engine, config=read_head_config(POCKET_HEAD))
    asked = {question.id: question.text for question in QUESTIONS[:4]}
    results = voter.solve_many(asked, n=8, start=4, step=2, certainty=0.9, keep=0.5, at=AT, seed=3)
    for result in results:
        assert [trace.sample_id for trace in result.traces] == list(range(len(result.traces)))
        assert Waves(4, 2, 0.9).more(result.traces, 8, voter.vote) == 0
        for first, last in ((0, 4), (4, 6), (6, 8)):
            ended = Counter(trace.finish_reason for trace in result.traces[first:last])
            assert not ended or ended["pruned"] == (last - first) // 2
    assert {len(result.traces) for result in results} <= {4, 6, 8}


def test_a_stream_prunes_and_says_why(engine: ServerEngine) -> None:
    traces = [item for item in engine.stream(QUESTIONS[:2], SAMPLING, PRUNED) if isinstance(item, Trace)]
    pruned = [trace for trace in traces if trace.finish_reason == "pruned"]
    assert len(pruned) == 8
    assert all(f"at token {AT} is not among the best" in trace.detail for trace in pruned)


def one_is_enough(engine: ServerEngine, **watch: float) -> list[list[Trace]]:
    """The traces of a question that is stopped when its first trace has ended, of each time that it was asked.

    The first to end are pruned, long before the others could end by themselves. A server that is still loading
    what its first answer needs may hear too late of it, while its engine goes on: then it is asked again.
    """
    times: list[list[Trace]] = []
    for _ in range(10):
        items = engine.stream(QUESTIONS[:1], LONG, PRUNED, stop_question=lambda _: "enough", **watch)
        times.append([item for item in items if isinstance(item, Trace)])
        if any(trace.finish_reason == "cancelled" for trace in times[-1]):
            return times
    raise AssertionError("no trace was ever cancelled")


def test_a_cancelled_trace_of_a_stream_keeps_what_it_had_written(engine: ServerEngine) -> None:
    cancelled = [t for t in one_is_enough(engine, every=0.0)[-1] if t.finish_reason == "cancelled"]
    assert all(trace.detail == "enough" for trace in cancelled)
    assert sum(trace.num_tokens > 10 and len(trace.text) > 10 for trace in cancelled) >= len(cancelled) - 1


def test_a_cancelled_trace_counts_what_it_had_written_though_nobody_watched(
    first: Server, engine: ServerEngine
) -> None:
    one_is_enough(engine)
    before = gauge(first, "generation_tokens_total")
    times = one_is_enough(engine)
    traces = times[-1]
    cancelled = [trace for trace in traces if trace.finish_reason == "cancelled"]
    assert all(trace.prompt_tokens == traces[0].prompt_tokens for trace in cancelled)
    # The last tokens of a trace may still be on their way when another one of its question ends.
    assert all(trace.num_tokens == len(trace.token_ids or ()) > AT // 2 for trace in cancelled)
    list(engine.sample(QUESTIONS[:1], Sampling(n=1, max_tokens=1)))  # the gauges are written with a step
    heard = sum(trace.num_tokens for traces in times for trace in traces)
    for _ in range(100):
        written = gauge(first, "generation_tokens_total") - before
        if written >= heard:
            break
        time.sleep(0.1)
    # The server goes on for a few steps until it hears of it.
    assert 0 <= written - heard < 40 * len(cancelled)


def test_log_probabilities_come_over_http(engine: ServerEngine, vllm_engine: VLLMEngine) -> None:
    spec = TraceSpec(logprobs=True)
    served = by_id(list(engine.sample(QUESTIONS[:1], SAMPLING, spec)))
    local = by_id(list(vllm_engine.sample(QUESTIONS[:1], SAMPLING, spec)))
    same = [key for key in local if served[key].token_ids == local[key].token_ids]
    assert len(same) >= len(local) - 2
    for key in same:
        np.testing.assert_allclose(served[key].logprobs, local[key].logprobs, atol=1e-3)


def test_every_sampling_parameter_and_self_certainty_go_over_http(
    engine: ServerEngine, vllm_engine: VLLMEngine
) -> None:
    tokenizer = vllm_engine._tokenizer
    sampling = replace(
        SAMPLING,
        n=4,
        max_tokens=80,
        min_tokens=24,
        top_k=12,
        min_p=0.02,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.1,
        stop=("=",),
        stop_token_ids=(tokenizer.encode("9")[0],),
    )
    spec = TraceSpec(self_certainty=True)
    served = by_id(list(engine.sample(QUESTIONS[:4], sampling, spec)))
    local = by_id(list(vllm_engine.sample(QUESTIONS[:4], sampling, spec)))
    same = [key for key in local if served[key].token_ids == local[key].token_ids]
    assert len(same) >= len(local) - 2
    for key in same:
        ours, theirs = served[key], local[key]
        assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
        assert ours.meta["self_certainty"] == pytest.approx(theirs.meta["self_certainty"], abs=1e-4)
    assert {trace.finish_reason for trace in local.values()} == {"stop"}


def test_hundreds_of_traces_in_flight_are_pruned_group_by_group(engine: ServerEngine) -> None:
    traces = by_id(list(engine.sample(QUESTIONS, SAMPLING, PRUNED)))
    assert len(traces) == 320
    for question in QUESTIONS:
        group = [traces[question.id, i] for i in range(SAMPLING.n)]
        pruned = [t for t in group if t.finish_reason == "pruned"]
        assert len(pruned) == 4
        assert {t.num_tokens for t in pruned} == {AT + 1}
        assert all("is not among the best 4 of 8" in t.detail for t in pruned)


def test_a_group_meets_whole_although_its_requests_arrive_one_by_one(engine: ServerEngine) -> None:
    # At the first token, on an idle server: the first members wait before the last ones have been sent.
    spec = replace(SCORED, rules=(KeepShare(1, 0.5),))
    for question in QUESTIONS[:8]:
        traces = list(engine.sample([question], SAMPLING, spec))
        assert sum(t.finish_reason == "pruned" for t in traces) == 4


def test_a_voter_solves_through_a_server(first: Server) -> None:
    voter = WeightedVoter.from_pretrained("pocket", server=first.url)
    result = voter.solve(QUESTIONS[0].text, n=16)
    voter.close()
    assert result.tokens.pruned_traces == 8
    assert result.answer is not None
    assert all(t.score is not None for t in result.traces)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_malformed_spec_is_refused_with_400(first: Server, path: str) -> None:
    body = chat(prompt="2+3", max_tokens=1) | xargs({"score_at": [-1]})
    reply = post(first.url + path, json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "score_at is -1; it must be a whole number from 1 to 1.67772e+07"


def test_streams_and_other_requests_pass(first: Server) -> None:
    url = f"{first.url}/v1/chat/completions"
    greedy = chat(max_tokens=3, ignore_eos=True, temperature=0)
    reply = post(url, json=greedy | {"stream": True} | xargs({"score_at": [1]}))
    assert reply.headers["content-type"].startswith("text/event-stream")
    *events, done = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert done == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events]
    plain = post(url, json=greedy).json()
    assert plain["choices"][0]["message"]["content"] == "".join(deltas)
    assert plain["kv_transfer_params"] is None
    assert len(post(url, json=chat(max_tokens=3, n=2)).json()["choices"]) == 2
    assert post(f"{first.url}/tokenize", json={"model": str(POCKET_MODEL), "prompt": "2+3"}).json()["count"] == 3


def test_hostile_specs_and_bodies_are_refused_or_served_and_the_server_stays_up(
    first: Server, engine: ServerEngine
) -> None:
    specs = list(fuzz.hostile_specs(500))
    statuses = asyncio.run(fuzz.ask_all(first.url, [(fuzz.CHAT, fuzz.with_spec(text)) for text in specs], None))
    assert statuses == [200 if fuzz.acceptable(text) else 400 for text in specs]
    assert min(Counter(statuses).values()) > 80
    statuses = asyncio.run(fuzz.ask_all(first.url, list(fuzz.hostile_bodies(100)), None))
    assert 0 not in statuses
    assert Counter(statuses)[400] > 30
    after = by_id(list(engine.sample(QUESTIONS[:2], SAMPLING, PRUNED)))
    assert Counter(t.finish_reason == "pruned" for t in after.values()) == {True: 8, False: 8}


def test_a_server_that_is_not_for_training_refuses_new_weights(engine: ServerEngine) -> None:
    with pytest.raises(ServerError, match="VLLM_SERVER_DEV_MODE=1"):
        engine.load_weights(POCKET_MODEL / "model.safetensors")
    with pytest.raises(ServerError, match="VLLM_SERVER_DEV_MODE=1"):
        engine.load_head(POCKET_HEAD)


def test_scores_by_a_head_that_the_server_does_not_have_are_refused_here(engine: ServerEngine) -> None:
    with pytest.raises(ValueError, match="need a quality head"):
        engine.sample(QUESTIONS[:1], SAMPLING, replace(SCORED, head="other"))


def test_the_endpoint_before_servers_answers_as_the_voter_and_ends_what_nobody_waits_for(
    first: Server, second: Server
) -> None:
    pytest.importorskip("fastapi")
    from tests.arrol_tts.serving.endpoint import eventually
    from tests.arrol_tts.serving.endpoint import serving as endpoint_of

    engine = ServerEngine([first.url, second.url], head=POCKET_HEAD)
    config, question = read_head_config(POCKET_HEAD), QUESTIONS[0].text
    result = WeightedVoter(engine, config=config).solve(question, 8, seed=3)
    with endpoint_of(engine, config) as endpoint:
        asked = {"messages": [{"role": "user", "content": question}], "arrol": {"n": 8}, "seed": 3}
        for stream in (False, True):
            response = endpoint.post(asked | {"stream": stream, "stream_options": {"include_usage": True}})
            assert f'"answer":"{result.answer}"' in response.text
            assert f'"total_tokens":{(result.tokens.prompt or 0) + result.tokens.generated}' in response.text
        long = {"min_tokens": 400, "max_tokens": 440, "arrol": {"n": 24, "keep": 1.0}}
        with pytest.raises(httpx.ReadTimeout):
            endpoint.post(asked | long, timeout=1.0)
        assert eventually(
            lambda: gauge(first, "num_requests_running") + gauge(second, "num_requests_running") == 0
        )
    engine.close()


def requests_of(server: Server) -> float:
    return gauge(server, "num_requests_running") + gauge(server, "num_requests_waiting")


def test_a_client_that_goes_away_leaves_no_running_request(first: Server, engine: ServerEngine) -> None:
    for _ in range(5):  # a busy machine may look at the gauges too late, when all is done
        # Far more work than is done in the seconds that the test waits for.
        listening = engine.sample(QUESTIONS, replace(LONG, n=12), SCORED)
        deadline = time.monotonic() + 10
        while (busy := requests_of(first)) <= 12 and time.monotonic() < deadline:
            time.sleep(0.02)  # the gauges are written some time after a step
        before = gauge(first, "generation_tokens_total")
        listening.close()
        if busy > 12:
            break
    assert busy > 12
    for _ in range(100):
        # The gauges are written with a step, so there must be one.
        list(engine.sample(QUESTIONS[:1], Sampling(n=1, max_tokens=1)))
        if requests_of(first) == 0:
            break
        time.sleep(0.1)
    assert requests_of(first) == 0
    assert gauge(first, "kv_cache_usage_perc") == 0
    assert gauge(first, "generation_tokens_total") - before < 12 * len(QUESTIONS) * 40


@pytest.mark.slow
def test_a_server_without_the_plug_in_gives_texts_and_confidences(plain: Server, vllm_engine: VLLMEngine) -> None:
    engine = ServerEngine(plain.url, top_k=TOP_K)
    voter = WeightedVoter(engine)
    for method in ("majority", "deepconf"):
        assert voter.solve(QUESTIONS[0].text, n=8, max_tokens=256, method=method).answer is not None
    spec = TraceSpec(confidence=True)
    local = by_id(list(vllm_engine.sample(QUESTIONS[:1], SAMPLING, spec)))
    served = by_id(list(engine.sample(QUESTIONS[:1], SAMPLING, spec)))
    same = [key for key in local if served[key].token_ids == local[key].token_ids]
    assert len(same) >= 7
    for key in same:
        assert served[key].text == local[key].text
        ours, theirs = served[key].confidence, local[key].confidence
        assert ours is not None
        assert theirs is not None
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    with pytest.raises(ValueError, match="need arrol's plug-in"):
        engine.sample(QUESTIONS[:1], SAMPLING, PRUNED)
    with pytest.raises(ValueError, match="'quality' needs a quality head"):
        voter.solve(QUESTIONS[0].text)
    voter.close()


@pytest.mark.parametrize("name", ["first", pytest.param("plain", marks=pytest.mark.slow)])
def test_a_stop_text_ends_a_trace_of_any_server(
    request: pytest.FixtureRequest, vllm_engine: VLLMEngine, name: str
) -> None:
    greedy = Sampling(n=1, temperature=0, max_tokens=256)
    (whole,) = vllm_engine.sample(QUESTIONS[:1], greedy)
    greedy = replace(greedy, stop=(whole.text[AT : AT + 4],))
    (local,) = vllm_engine.sample(QUESTIONS[:1], greedy)
    server: Server = request.getfixturevalue(name)
    engine = ServerEngine(server.url, head=POCKET_HEAD if name == "first" else None)
    (served,) = engine.sample(QUESTIONS[:1], greedy)
    engine.close()
    assert served.text == local.text == whole.text.partition(greedy.stop[0])[0]
    assert (served.num_tokens, served.finish_reason) == (local.num_tokens, "stop")


@pytest.mark.slow
def test_plain_text_completions_of_a_server_without_the_plug_in(plain: Server) -> None:
    engine = ServerEngine(plain.url, top_k=TOP_K, chat=False)
    (trace,) = engine.sample(QUESTIONS[:1], Sampling(n=1, max_tokens=8), TraceSpec(confidence=True))
    engine.close()
    assert trace.confidence is not None
    assert len(trace.confidence) == trace.num_tokens == len(trace.token_ids or [])


# The last of this file: it kills the servers.
@pytest.mark.slow
def test_when_a_server_is_killed_every_question_is_answered_and_no_trace_comes_twice(
    first: Server,
    second: Server,
) -> None:
    urls = [first.url, second.url]
    voter = WeightedVoter.from_pretrained("pocket", server=urls, max_in_flight=32)
    engine = voter.engine
    assert isinstance(engine, ServerEngine)
    seen: list[tuple[str, int]] = []
    in_flight: list[int] = []

    def kill_in_the_middle(trace: Trace) -> None:
        seen.append((trace.question_id, trace.sample_id))
        if len(seen) >= 60 and not in_flight and engine._servers[1].in_flight:
            in_flight.append(engine._servers[1].in_flight)
            second.kill()

    texts = {question.id: question.text for question in QUESTIONS[:24]}
    results = voter.solve_many(texts, n=8, on_trace=kill_in_the_middle)
    assert in_flight
    assert [result.question_id for result in results] == list(texts)
    assert sorted(seen) == sorted((question_id, i) for question_id in texts for i in range(8))
    assert all([t.sample_id for t in result.traces] == list(range(8)) for result in results)
    assert all(result.tokens.pruned_traces <= 6 for result in results)
    assert engine._servers[1].failure
    assert not engine._servers[0].failure
    # Known to be gone, and asked again in every call: the other one goes on alone.
    assert voter.solve(QUESTIONS[0].text, n=4).traces
    first.kill()
    with pytest.raises(ServerError, match="no server is left"):
        voter.solve(QUESTIONS[0].text, n=4)
    voter.close()


@pytest.mark.slow
def test_data_parallel_engines_behind_one_address_keep_each_group_together(tmp_path: Path) -> None:
    server = start(tmp_path, "parallel", *PLUG_IN, "--data-parallel-size=2")
    try:
        server.wait()
        engine = ServerEngine(server.url, head=POCKET_HEAD)
        traces = list(engine.sample(QUESTIONS[:12], SAMPLING, PRUNED))
        engine.close()
        metrics = get(f"{server.url}/metrics").text
    finally:
        server.kill()
    tokens = re.findall(r"^vllm:generation_tokens_total\{engine=.*\} (\S+)$", metrics, re.MULTILINE)
    assert len(tokens) == 2
    assert all(float(count) > 0 for count in tokens)
    for question in QUESTIONS[:12]:
        group = [trace for trace in traces if trace.question_id == question.id]
        assert sum(trace.finish_reason == "pruned" for trace in group) == 4
