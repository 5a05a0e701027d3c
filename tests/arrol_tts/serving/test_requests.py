"""Requests: types and names, conversations part by part; whatever is wrong is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from arrol_tts.serving.errors import ApiError, api_error
from arrol_tts.serving.messages import check_messages, check_response_format, check_tools
from arrol_tts.serving.requests import ChatFields, TextFields, read_fields

ASK = [{"role": "user", "content": "2+3*4"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def chat(**fields: Any) -> ChatFields:
    return read_fields(ChatFields, json.dumps({"messages": ASK, **fields}).encode())


def refused(call: Any, *args: Any, **options: Any) -> ApiError:
    with pytest.raises(ApiError) as error:
        call(*args, **options)
    assert error.value.status == 400
    return error.value


def test_what_clients_send_is_taken() -> None:
    fields = chat(
        model="pocket", temperature=1, max_completion_tokens=9, stop="\n", user="u", metadata={}, seed=None,
        stream_options={"include_usage": True}, arrol={"n": 4, "consensus": 0.9, "equality": "text"},
    )  # fmt: skip
    assert (fields.stop, fields.temperature, fields.arrol.n) == (["\n"], 1.0, 4)
    assert fields.arrol.consensus is not None
    assert fields.arrol.consensus.share == 0.9
    assert read_fields(TextFields, b'{"prompt": "1+1"}').prompt == ["1+1"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temperature": "hot"}, "temperature", 'temperature is "hot": input should be a valid number'),
        ({"temperature": True}, "temperature", "valid number"),
        ({"n": 1.5}, "n", "n is 1.5: input should be a valid integer"),
        ({"temprature": 1}, "temprature", "temprature: there is no such field; did you mean 'temperature'?"),
        ({"zzz": 1}, "zzz", "there are model, n, stream"),
        ({"arrol": {"methd": "majority"}}, "arrol.methd", "did you mean 'method'?"),
        ({"arrol": {"consensus": {"shre": 0.9}}}, "arrol.consensus.shre", "did you mean 'share'?"),
        ({"arrol": {"n": "32"}}, "arrol.n", 'arrol.n is "32": input should be a valid integer'),
        ({"arrol": {"equality": "maths"}}, "arrol.equality", "'math', 'text', 'exact', 'choice' or 'json'"),
        ({"arrol": [1]}, "arrol", "should be an object"),
        ({"stop": [1]}, "stop[0]", "stop[0] is 1: input should be a valid string"),
        ({"stop": {"a": 1}}, "stop", "stop: input should be a valid array"),
        ({"logprobs": True}, "logprobs", "votes have none of it: leave it out"),
        ({"messages": None}, "messages", "messages is null: input should be a valid array"),
        ({"stream_options": {"include_usages": True}}, "stream_options.include_usages", "'include_usage'?"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str, message: str) -> None:
    error = refused(chat, **fields)
    assert error.param == param
    assert message in error.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is no JSON object"),
        (b"{", "the body is no JSON object"),
        (b"[]", "the body is no JSON object"),
        (b"\xff\xfe", "the body is no JSON object"),
        (b'{"messages": "\\ud800"}', "the body is no JSON object"),
        (b"[" * 100_000, "the body is no JSON object"),
        (b"{}", "messages: it is missing"),
        (b'{"messages": [], "temperature": NaN}', "temperature"),
        (b'{"messages": [], "seed": 1' + b"0" * 5000 + b"}", "number out of range"),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, message: str) -> None:
    assert message in refused(read_fields, ChatFields, body).message


@pytest.mark.parametrize("name", ["stop", "stop_token_ids", "bad_words", "allowed_token_ids"])
def test_a_list_is_wrong_once_however_many_of_its_entries_are(name: str) -> None:
    with pytest.raises(ValidationError) as error:
        ChatFields.model_validate_json(json.dumps({"messages": ASK, name: [[]] * 2000}))
    assert error.value.error_count() == 1
    assert refused(chat, **{name: [[]] * 2000}).param == f"{name}[0]"


def test_a_list_of_prompts_is_wrong_once_however_many_of_them_are() -> None:
    body = json.dumps({"prompt": [1] * 2000}).encode()
    with pytest.raises(ValidationError) as error:
        TextFields.model_validate_json(body)
    assert error.value.error_count() == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"stop": ["x"] * 1025}, "stop"), ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias")],
)
def test_a_field_has_so_many_entries_at_most(fields: dict[str, Any], param: str) -> None:
    error = refused(chat, **fields)
    assert error.param == param
    assert "should have at most 1024 items" in error.message


@pytest.mark.parametrize(
    "fields",
    [{f"a{i}": 1 for i in range(1001)}, {"arrol": {f"a{i}": 1 for i in range(1001)}},
     {"logit_bias": {str(i): "" for i in range(1001)}}],
)  # fmt: skip
def test_of_very_many_mistakes_none_is_named(fields: dict[str, Any]) -> None:
    error = refused(chat, **fields)
    assert (error.message, error.param) == ("the body has 1001 unknown or wrong fields", None)


@pytest.mark.parametrize(
    ("messages", "param", "message"),
    [
        ([], "messages", "the conversation is empty"),
        (["hello"], "messages[0]", "it must be an object"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role", "system, developer, user, assistant, tool"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role", "it must be one of"),
        ([{"role": "user"}], "messages[0].content", "it must be text, or a list of parts"),
        ([{"role": "user", "content": 3}], "messages[0].content", "it must be text"),
        ([{"role": "user", "content": []}], "messages[0].content", "it must be text"),
        ([{"role": "user", "content": "  "}], "messages[0].content", "ask something"),
        ([{"role": "user", "content": [{"type": "text", "text": ""}]}], "messages[0].content", "ask something"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]", "a part of text is"),
        ([{"role": "user", "content": [{"type": "x"}]}], "messages[0].content[0].type", "'text' or 'image_url'"),
        ([{"role": "user", "content": [3]}], "messages[0].content[0].type", "'text' or 'image_url'"),
        ([{"role": "user", "content": "x", "contents": "y"}], "messages[0].contents", "no such field"),
        ([{"role": "user", "content": "x", "name": 3}], "messages[0].name", "it must be text"),
        (
            [*ASK, {"role": "assistant", "content": "14"}],
            "messages[1].role",
            "the last message is the assistant's",
        ),
        ([{"role": "system", "content": "x"}], "messages[0].role", "the last message is the system's"),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id", "which call"),
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "messages[0].tool_calls", "only the assistant"),
        (
            [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "a", "arguments": "{"}}]}, *ASK],
            "messages[0].tool_calls[0].function.arguments",
            "it must be JSON, as text",
        ),
        ([{"role": "assistant", "tool_calls": [1]}, *ASK], "messages[0].tool_calls[0]", "it must be {"),
        (ASK * 1001, "messages", "send 1000 at most"),
    ],
)
def test_what_is_no_conversation_is_named(messages: list[Any], param: str, message: str) -> None:
    error = refused(check_messages, messages, images=True)
    assert error.param == param
    assert message in error.message


def test_a_conversation_with_tools_and_images_is_taken() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "what is this?"}, image]},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "audio": None},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
    ]
    check_messages(messages, images=True)
    assert refused(check_messages, messages, images=False).param == "messages[1].content[1]"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "/etc/passwd", 3])
def test_an_image_is_data_or_on_the_web(url: Any) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    error = refused(check_messages, [{"role": "user", "content": [part]}], images=True)
    assert error.param is not None
    assert error.param.startswith("messages[0].content[0].image_url")


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([3], None, "tools[0]"),
        ([{"type": "web"}], None, "tools[0]"),
        ([{"type": "function", "function": {}}], None, "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "a", "parameters": 3}}], None, "tools[0].function.parameters"),
        ([TOOL], "perhaps", "tool_choice"),
        ([TOOL], {"type": "function", "function": {"name": "subtract"}}, "tool_choice"),
        ([], "required", "tool_choice"),
        ([TOOL], [], "tool_choice"),
    ],
)
def test_tools_that_are_none_are_named(tools: list[Any], choice: Any, param: str) -> None:
    assert refused(check_tools, tools, choice).param == param


def test_a_tool_may_be_chosen_by_its_name() -> None:
    check_tools([TOOL], {"type": "function", "function": {"name": "add"}})
    check_tools([TOOL], "auto")
    check_tools([], None)


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({}, "response_format.type"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": 3}}, "response_format.json_schema"),
    ],
)
def test_a_form_of_response_that_there_is_not_is_named(wanted: dict[str, Any], param: str) -> None:
    assert refused(check_response_format, wanted).param == param


def test_an_unforeseen_error_tells_the_client_nothing() -> None:
    error = api_error(ZeroDivisionError("secret"))
    assert (error.status, "secret" in error.message) == (500, False)
