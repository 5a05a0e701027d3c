"""Models that think before they answer, in real engines: the thinking is told apart wherever it is read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from arrol_tts import WeightedVoter
from arrol_tts.engine.decoder import Decoder
from arrol_tts.engine.request import Question, Sampling
from arrol_tts.engine.transformers_engine import TransformersEngine
from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL, questions
from arrol_tts.stopping import TraceSpec
from arrol_tts.thinking import split_thinking
from arrol_tts.trace import Trace
from tests.arrol_tts.engine.serving import PLUG_IN, Server, serving
from tests.arrol_tts.engine.spelled_model import thinking_model

TEXT = next(itertools.islice(questions("test"), 1)).text
QUESTION = Question("q", TEXT)
GREEDY = Sampling(n=1, temperature=0, max_tokens=256)
EQUALS = 19
"""The token of the equals sign, of which there are many in a thinking and none in an answer."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thinking_model(tmp_path_factory.mktemp("thinking") / "model")


@pytest.fixture(params=["vllm", "transformers"], scope="module")
def thinker(request: pytest.FixtureRequest, model: Path) -> Iterator[Any]:
    """Each local engine with the model."""
    if request.param == "vllm":
        pytest.importorskip("vllm")
        from arrol_tts.engine.vllm_engine import VLLMEngine

        options = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 24, "kv_cache_memory_bytes": 1 << 26}
        engine: Any = VLLMEngine(model, head=POCKET_HEAD, **options)
    else:
        engine = TransformersEngine(model, head=POCKET_HEAD)
    yield engine
    engine.close()


def one(engine: Any, sampling: Sampling, question: Question = QUESTION, **options: Any) -> Trace:
    (trace,) = engine.sample([question], sampling, **options)
    return trace


def test_thinking_and_answer_are_told_apart_and_the_positions_count_both(thinker: Any) -> None:
    trace = one(thinker, GREEDY, spec=TraceSpec(score_every=8, confidence=True))
    assert trace.reasoning is not None
    assert "=" in trace.reasoning
    assert "think>" not in trace.reasoning.removesuffix("<think>")[-8:]
    assert trace.text.startswith("nswer ")
    assert trace.finish_reason == "stop"
    assert trace.token_ids is not None
    assert trace.num_tokens == len(trace.token_ids) > len(trace.text) + 8
    assert list(trace.scores) == list(range(8, trace.num_tokens, 8))
    assert trace.confidence is not None
    assert len(trace.confidence) == trace.num_tokens


def test_a_trace_cut_inside_its_thinking_has_no_text_and_no_answer(thinker: Any) -> None:
    voter = WeightedVoter(thinker, method="majority")
    for max_tokens, ends, reason in ((12, [], "length"), (256, [EQUALS], "stop")):
        result = voter.solve(TEXT, n=1, temperature=0, max_tokens=max_tokens, stop_token_ids=ends)
        (trace,) = result.traces
        assert trace.finish_reason == reason
        assert trace.reasoning
        assert (trace.text, trace.answer) == ("", None)


def test_stop_texts_end_answers_and_no_thinking(thinker: Any) -> None:
    whole = one(thinker, GREEDY)
    assert one(thinker, replace(GREEDY, stop=("=",))) == whole
    stopped = one(thinker, replace(GREEDY, stop=("=", "wer")))
    assert (stopped.reasoning, stopped.text, stopped.finish_reason) == (whole.reasoning, "ns", "stop")
    assert stopped.num_tokens < whole.num_tokens


def test_a_template_variable_ends_the_thinking_in_the_prompt(thinker: Any) -> None:
    voter = WeightedVoter(thinker, method="majority")
    options: Any = {"n": 1, "temperature": 0, "max_tokens": 20}
    (thought,) = voter.solve(TEXT, **options).traces
    (said,) = voter.solve(TEXT, chat_template_kwargs={"enable_thinking": False}, **options).traces
    assert said.prompt_tokens == thought.prompt_tokens + 1
    assert (thought.text, said.reasoning) == ("", None)
    assert len(said.text) == 20


@pytest.mark.parametrize(
    ("begin", "end"),
    [("[THINK]", "[/THINK]"), ("<|START_THINKING|>", "<|END_THINKING|>"), ("<think>", "</think>")],
)
def test_delimiters_that_are_special_tokens_are_found_too(tmp_path: Path, begin: str, end: str) -> None:
    special = begin != "<think>"
    engine = TransformersEngine(thinking_model(tmp_path / "model", begin, end, special=special))
    trace = one(engine, GREEDY)
    assert trace.reasoning is not None
    assert trace.reasoning.count("=") >= 1
    assert trace.text.startswith("nswer ")
    assert "<eos>" not in trace.text
    stopped = one(engine, replace(GREEDY, stop=("=", "wer")))
    assert (stopped.reasoning, stopped.text) == (trace.reasoning, "ns")


def test_a_decoder_leaves_out_other_special_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(thinking_model(tmp_path / "m", "[THINK]", "[/THINK]", special=True))
    assert Decoder(tokenizer)([2, 3, 11, 20, 12, 1]) == "[THINK]2[/THINK]3"
    assert Decoder(tokenizer)([11, 1, 12]) == "23"


# --- over HTTP ---


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Server]:
    """A server that gives the thinking apart."""
    pytest.importorskip("vllm")
    options = ("--model", str(model), "--dtype=float32", "--reasoning-parser", "qwen3")
    yield from serving(tmp_path_factory, "apart", *PLUG_IN, *options)


def test_a_server_that_gives_the_thinking_apart_gives_the_traces_of_the_engine_here(
    apart: Server, model: Path
) -> None:
    from arrol_tts.engine.server_engine import ServerEngine

    served, here = ServerEngine(apart.url), TransformersEngine(model, head=POCKET_HEAD)
    raw = httpx.post(
        f"{apart.url}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": TEXT}], "temperature": 0, "max_tokens": 256},
        timeout=60,
    ).json()["choices"][0]["message"]
    assert raw["reasoning"]
    spec = TraceSpec(score_at=(8,), score_finish=True)
    for sampling in (GREEDY, replace(GREEDY, max_tokens=12), replace(GREEDY, stop=("=", "wer"))):
        ours, theirs = one(here, sampling, spec=spec), one(served, sampling, spec=spec)
        *_, streamed = served.stream([QUESTION], sampling, spec)
        # The parser leaves out the delimiter inside a thinking, where this model's steps end with it.
        reasoning = (ours.reasoning or "").replace("<think>", "")
        for trace in (theirs, streamed):
            assert (trace.reasoning, trace.text, trace.token_ids) == (reasoning, ours.text, ours.token_ids)
            assert (trace.num_tokens, trace.finish_reason) == (ours.num_tokens, ours.finish_reason)
            assert trace.prompt_tokens == ours.prompt_tokens
            assert trace.scores == pytest.approx(ours.scores, abs=1e-3)
    served.close()


def test_a_server_says_whether_its_prompts_end_inside_a_thinking(apart: Server) -> None:
    from arrol_tts.engine.server_engine import ServerEngine

    engine = ServerEngine(apart.url)
    for thinks in (True, False):
        one(
            engine,
            replace(GREEDY, max_tokens=4),
            replace(QUESTION, chat_template_kwargs={"enable_thinking": thinks}),
        )
    assert [opened.result() for opened in engine._opened.values()] == [True, False]
    engine.close()


# --- vLLM's own parsers ---

FURTHER = (
    "<response></response><tool_call></tool_call><assistant><|eot|><ifm|tool_calls><|content_model_end_sampling|>",
    "[TOOL_CALLS][ARGS]<|content_invoke_tool_json|><|content_invoke_tool_text|><|content_tool_error|>",
)
"""Tokens that some of the parsers look for besides."""

LIKE_DEEPSEEK = """
deepseek_r1 deepseek_v4 deepseek_v41 ernie45 glm45 glm47 granite_thinking_parser holo2 hy_v4 kimi_k2 ling3 mimo
minimax_m2 nemotron_v3 qwen3 step3p5
"""
WRITTEN = {
    **dict.fromkeys(LIKE_DEEPSEEK.split(), ("<think>", "</think>")),
    "gemma4": ("<|channel>thought\n", "<channel|>"),
    "granite": ("Here is my thought process:", "Here is my response:"),
    "inkling": ("<|content_thinking|>", "<|end_message|><|message_model|><|content_text|>"),
    "k2_horizon": ("<ifm|think>", "</ifm|think>"),
    "kimi_k3": ("<|open|>think<|sep|>", "<|close|>think<|sep|><|open|>response<|sep|>"),
    "minimax_m3": ("<mm:think>", "</mm:think>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "muse_glimmer": ("to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>"),
    "seed_oss": ("<seed:think>", "</seed:think>"),
}
"""What models write around their thinking, by vLLM's parser of it."""


@pytest.mark.parametrize("name", WRITTEN)
def test_what_vllms_parsers_tell_apart_is_told_apart_in_the_same_way(name: str) -> None:
    pytest.importorskip("vllm")
    from transformers import AutoTokenizer
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.reasoning import ReasoningParserManager

    begin, end = WRITTEN[name]
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    known = "".join(itertools.chain(*WRITTEN.values(), FURTHER))
    tokenizer.add_tokens(sorted(set(re.findall(r"<[^<>]+>|\[/?[A-Z_]+\]", known))))
    parser = ReasoningParserManager.get_reasoning_parser(name)(tokenizer)
    request = ChatCompletionRequest(messages=[{"role": "user", "content": "?"}])
    written = f"{begin}so it is 7{end}7"
    assert parser.extract_reasoning(written, request) == ("so it is 7", "7")
    assert split_thinking(written) == ("so it is 7", "7", False)
    assert split_thinking(f"{begin}so it is") == ("so it is", "", True)
