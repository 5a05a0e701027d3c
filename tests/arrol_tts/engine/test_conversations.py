"""Conversations, template variables and further fields of a request in the engines of this process."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arrol_tts import WeightedVoter
from arrol_tts.engine.request import Question, Sampling
from arrol_tts.engine.transformers_engine import TransformersEngine
from arrol_tts.errors import InputError
from arrol_tts.pocket import POCKET_MODEL, questions
from arrol_tts.prompts import prompt_ids
from arrol_tts.voting import TokenLedger
from tests.arrol_tts.engine.spelled_model import spelled_model

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine

GREEDY = Sampling(n=1, temperature=0, max_tokens=128)
TEXT = next(itertools.islice(questions("test"), 1)).text
CHAT = [
    {"role": "user", "content": "2+2"},
    {"role": "assistant", "content": "2+2=4\nanswer 4"},
    {"role": "user", "content": [{"type": "text", "text": TEXT}]},
]
"""The pocket model's template asks what was said last."""
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "integer"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


def test_a_conversation_is_asked_as_its_template_says(voter: WeightedVoter) -> None:
    options: Any = {"n": 2, "max_tokens": 256, "keep": 1.0}
    said = voter.solve(TEXT, **options)
    for result in (
        voter.solve(CHAT, **options),
        voter.solve_many({"q0": CHAT}, **options)[0],
        asyncio.run(voter.asolve(CHAT, **options)),
        [event for event in voter.stream(CHAT, **options) if hasattr(event, "result")][-1].result,
    ):
        assert [trace.text for trace in result.traces] == [trace.text for trace in said.traces]
        assert result.answer == said.answer is not None


def test_prompt_tokens_are_counted_and_so_is_what_the_prefix_cache_spared(engine: Any) -> None:
    question = Question("q", token_ids=(2, *[11, 6, 12, 8] * 50))
    sampling = Sampling(n=4, max_tokens=4, seed=9)
    once, again = (TokenLedger.of(list(engine.sample([question], sampling))) for _ in range(2))
    assert once.prompt == again.prompt == 4 * 201
    # vLLM shares whole blocks of 128 tokens on a CPU; the transformers engine computes each prompt by itself.
    assert again.cached == (4 * 128 if "VLLM" in type(engine).__name__ else 0)


def test_an_image_is_refused_by_engines_that_read_text(voter: WeightedVoter) -> None:
    messages = [{"role": "user", "content": [IMAGE, {"type": "text", "text": "2+3"}]}]
    with pytest.raises(InputError, match=r"messages\[0\] has a part of type 'image_url'.*pass server="):
        voter.solve(messages, n=1, max_tokens=64)


def test_what_the_template_refuses_is_an_error_of_the_question(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(POCKET_MODEL, model)
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}2+3\n"
    (model / "chat_template.jinja").write_text(template)
    voter = WeightedVoter(TransformersEngine(model), method="majority")
    assert len(voter.solve("2+3", n=1, max_tokens=64).traces) == 1
    with pytest.raises(InputError, match="chat template refuses the messages: no system prompts"):
        voter.solve("2+3", n=1, max_tokens=64, system="Be brief.")


def test_variables_need_a_template_and_may_not_change_how_it_is_applied(
    tmp_path: Path, voter: WeightedVoter
) -> None:
    with pytest.raises(InputError, match="chat_template_kwargs has 'tokenize', which is no variable"):
        voter.solve("2+3", n=1, max_tokens=64, chat_template_kwargs={"tokenize": True})
    with pytest.raises(InputError, match=r"has chat_template_kwargs and is sent as plain text.*or chat=False"):
        voter.solve("2+3", n=1, max_tokens=64, chat=False, chat_template_kwargs={"x": 1})
    model = tmp_path / "model"
    shutil.copytree(POCKET_MODEL, model)
    (model / "chat_template.jinja").unlink()
    bare = WeightedVoter(TransformersEngine(model), method="majority")
    with pytest.raises(
        InputError, match="chat_template_kwargs go through a chat template, and the model has none"
    ):
        bare.solve("2+3", n=1, max_tokens=64, chat_template_kwargs={"x": 1})


def test_the_transformers_engine_names_the_field_that_it_has_not(transformers_engine: TransformersEngine) -> None:
    question = Question("q", "2+3", request_fields={"response_format": {"type": "text"}})
    with pytest.raises(InputError, match="the transformers engine has no response_format"):
        transformers_engine.sample([question], GREEDY)


def test_an_effort_and_tools_are_told_to_the_template(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    shutil.copytree(POCKET_MODEL, tmp_path / "model")
    template = "{% if reasoning_effort == 'low' %}2{% endif %}{% if tools %}{{ tools | length }}{% endif %}9"
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    question = Question("q", TEXT, request_fields={"reasoning_effort": "low", "tools": [ADD, ADD, ADD]})
    assert prompt_ids(tokenizer, question) == tokenizer.encode("239")
    assert prompt_ids(tokenizer, Question("q", TEXT)) == tokenizer.encode("9")
    assert prompt_ids(tokenizer, replace(question, chat_template_kwargs={"reasoning_effort": "high"}))[0] != 11


@pytest.mark.parametrize("variables", [{"x": 0}, {"x": "a"}, {"x": []}])
def test_a_template_that_fails_on_its_variables_refuses_them(tmp_path: Path, variables: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    shutil.copytree(POCKET_MODEL, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ 1 // x }}")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    good = {"x": 1, "prompt": "a", "chat": 3, "tokenizer": 0}
    assert prompt_ids(tokenizer, Question("q", TEXT, chat_template_kwargs=good)) == tokenizer.encode("1")
    with pytest.raises(InputError, match="the model's chat template refuses the messages"):
        prompt_ids(tokenizer, Question("q", TEXT, chat_template_kwargs=variables))


# --- further fields in vLLM ---

CALL = '<tool_call>{"name": "add", "arguments": {"order": "precedence"}}</tool_call>'


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMEngine]:
    """The pocket model where the letter a is spelled as a call of a tool, with which its answers then begin."""
    pytest.importorskip("vllm")
    from arrol_tts.engine.vllm_engine import VLLMEngine

    model = spelled_model(tmp_path_factory.mktemp("caller") / "model", {"a": CALL})
    options: Any = {"dtype": "float32", "max_model_len": 512, "kv_cache_memory_bytes": 1 << 26}
    engine = VLLMEngine(model, tool_parser="hermes", **options)
    yield engine
    engine.close()


def fields(engine: VLLMEngine, **request_fields: Any) -> Any:
    (trace,) = engine.sample([Question("q", TEXT, request_fields=request_fields)], GREEDY)
    return trace


def test_fields_of_a_request_bind_what_vllm_samples(caller: VLLMEngine) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}
    assert fields(caller, response_format=schema).text.removeprefix("-").isdigit()
    assert len(fields(caller, structured_outputs={"regex": "[0-9]{3}"}).text) == 3
    free, biased = fields(caller), fields(caller, logit_bias={"5": -100})  # the token of the multiplication sign
    assert "*" in free.text
    assert "*" not in biased.text


def test_a_tool_is_called_and_the_calls_are_voted_on(caller: VLLMEngine) -> None:
    voter = WeightedVoter(caller, method="majority", equality="json")
    result = voter.solve(TEXT, n=4, max_tokens=256, request_fields={"tools": [ADD]})
    called = {"name": "add", "arguments": {"order": "precedence"}}
    assert json.loads(result.answer or "") == [called]
    assert result.table[0].votes == 4
    for trace in result.traces:
        assert trace.tool_calls is not None
        assert trace.tool_calls[0]["function"]["name"] == "add"
        assert json.loads(trace.tool_calls[0]["function"]["arguments"]) == called["arguments"]
        assert "tool_call" not in trace.text
    (plain,) = voter.solve(TEXT, n=1, max_tokens=256).traces
    assert CALL in plain.text


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({"store": True}, "the vLLM engine in this process has no store, only tools"),
        ({"temperature": 1}, "request_fields has 'temperature', which the engine says itself"),
        ({"response_format": {"type": "json_schema"}}, "vLLM refuses request_fields"),
        ({"tools": [ADD], "tool_choice": "sometimes"}, "vLLM refuses request_fields"),
    ],
)
def test_a_field_that_cannot_be_done_is_named(
    caller: VLLMEngine, request_fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fields(caller, **request_fields)


def test_tools_need_the_parser_of_their_calls(vllm_engine: VLLMEngine) -> None:
    with pytest.raises(InputError, match=r"tools need the parser of the model's calls.*tool_parser="):
        fields(vllm_engine, tools=[ADD])
