"""Conversations of a request, checked part by part: every error names the field that it is about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from arrol_tts.messages import ROLES
from arrol_tts.serving.errors import bad_field

_KEYS = {
    "role", "content", "name", "tool_calls", "tool_call_id", "refusal", "reasoning", "reasoning_content",
    "annotations", "audio", "function_call",
}  # fmt: skip
"""What clients send, replies that they got before included."""
_NULL_ONLY = ("audio", "function_call")
MAX_MESSAGES = 1000


def check_messages(messages: Sequence[Any], *, images: bool) -> None:
    """Refuse what is no conversation that a model's answer can follow.

    Args:
        messages: as they came.
        images: whether the model may take parts other than text.

    Raises:
        ApiError: a 400 that names the field.
    """
    if not messages:
        raise bad_field("messages", "the conversation is empty: send at least one message of the user's")
    if len(messages) > MAX_MESSAGES:
        raise bad_field("messages", f"there are {len(messages)}; send {MAX_MESSAGES} at most")
    for i, message in enumerate(messages):
        _check_message(f"messages[{i}]", message, images)
    last = f"messages[{len(messages) - 1}]"
    if messages[-1]["role"] not in ("user", "tool"):
        raise bad_field(
            f"{last}.role", f"the last message is the {messages[-1]['role']}'s; it must be a user's or a tool's"
        )
    if messages[-1]["role"] == "user" and not _says_something(messages[-1]["content"]):
        raise bad_field(f"{last}.content", "the last message is empty: ask something")


def check_tools(tools: Sequence[Any], choice: Any) -> None:
    """Refuse tools that are none, and a choice that is not among them.

    Raises:
        ApiError: a 400 that names the field.
    """
    names = set()
    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            raise bad_field(where, 'it must be {"type": "function", "function": {"name": ..., "parameters": ...}}')
        function = tool.get("function")
        if not isinstance(function, Mapping) or not _is_name(function.get("name")):
            raise bad_field(f"{where}.function.name", "name the function, in at most 64 characters")
        if not isinstance(function.get("parameters", {}), (Mapping, type(None))):
            raise bad_field(f"{where}.function.parameters", "it must be a JSON schema, an object")
        names.add(function["name"])
    if choice is None or (choice in ("none", "auto", "required") if isinstance(choice, str) else False):
        if choice == "required" and not names:
            raise bad_field("tool_choice", "it is 'required', and there are no tools: send tools")
        return
    chosen = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    if not isinstance(chosen, Mapping) or not _is_name(chosen.get("name")):
        raise bad_field(
            "tool_choice",
            'it must be \'none\', \'auto\', \'required\', or {"type": "function", "function": {"name": ...}}',
        )
    if chosen["name"] not in names:
        raise bad_field("tool_choice", f"there is no tool {chosen['name']!r} among tools")


def check_response_format(wanted: Mapping[str, Any]) -> None:
    """Refuse forms of a response that there are not.

    Raises:
        ApiError: a 400 that names the field.
    """
    kind = wanted.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise bad_field("response_format.type", "it must be 'text', 'json_object' or 'json_schema'")
    if kind == "json_schema":
        schema = wanted.get("json_schema")
        if not isinstance(schema, Mapping) or not isinstance(schema.get("schema"), Mapping):
            raise bad_field("response_format.json_schema", 'it must be {"name": ..., "schema": {...}}')


def _check_message(where: str, message: Any, images: bool) -> None:
    if not isinstance(message, Mapping):
        raise bad_field(where, 'it must be an object such as {"role": "user", "content": "..."}')
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise bad_field(f"{where}.role", f"it must be one of {', '.join(ROLES)}")
    for name, value in message.items():
        if name not in _KEYS or (name in _NULL_ONLY and value is not None):
            raise bad_field(f"{where}.{name:.40}", "there is no such field here: leave it out")
    for name in ("name", "refusal", "reasoning", "reasoning_content"):
        if not isinstance(message.get(name), (str, type(None))):
            raise bad_field(f"{where}.{name}", "it must be text")
    calls = message.get("tool_calls")
    if calls is not None:
        _check_calls(f"{where}.tool_calls", role, calls)
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise bad_field(f"{where}.tool_call_id", "say which call this is the result of")
    content = message.get("content")
    if content is None and role == "assistant" and (calls or message.get("refusal")):
        return
    _check_content(f"{where}.content", role, content, images)


def _check_content(where: str, role: str, content: Any, images: bool) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not content:
        raise bad_field(where, "it must be text, or a list of parts")
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            if not isinstance(part.get("text"), str) or part.keys() - {"type", "text"}:
                raise bad_field(f"{where}[{i}]", 'a part of text is {"type": "text", "text": "..."}')
        elif not isinstance(kind, str) or kind not in ("image_url", "input_audio", "video_url", "audio_url"):
            raise bad_field(f"{where}[{i}].type", "it must be 'text' or 'image_url'")
        elif role != "user":
            raise bad_field(f"{where}[{i}]", "only the user's messages may have more than text")
        elif not images:
            raise bad_field(f"{where}[{i}]", "the model that is loaded here reads text alone: send text")
        elif kind == "image_url":
            image = part.get("image_url")
            if not isinstance(image, Mapping) or not isinstance(image.get("url"), str):
                raise bad_field(f"{where}[{i}].image_url", 'it must be {"url": "..."}')
            if not image["url"].startswith(("data:", "http://", "https://")):
                raise bad_field(f"{where}[{i}].image_url.url", "it must begin with data:, https:// or http://")


def _check_calls(where: str, role: str, calls: Any) -> None:
    if role != "assistant" or not isinstance(calls, list):
        raise bad_field(where, "only the assistant calls tools, with a list of calls")
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(call.get("id"), str):
            raise bad_field(f"{where}[{i}]", 'it must be {"id": ..., "type": "function", "function": {...}}')
        if not _is_name(function.get("name")):
            raise bad_field(f"{where}[{i}].function.name", "name the function")
        try:
            json.loads(function["arguments"])
        except (KeyError, TypeError, ValueError, RecursionError):
            raise bad_field(f"{where}[{i}].function.arguments", "it must be JSON, as text") from None


def _says_something(content: Any) -> bool:
    if isinstance(content, str):
        return bool(content.strip())
    return any(part.get("type") != "text" or part["text"].strip() for part in content)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= 64
