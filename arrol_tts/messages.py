"""Conversations: the messages of a chat in OpenAI's form, checked, and the text in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arrol_tts.errors import InputError

Message = Mapping[str, Any]
"""``{"role": ..., "content": ...}``; content is text, or parts such as ``{"type": "text", "text": ...}``.

An assistant's message may have ``tool_calls`` in place of it."""

ROLES = ("system", "developer", "user", "assistant", "tool")
INSTRUCTING = ("system", "developer")
"""Roles whose messages say how to answer, at the front of a conversation."""


def as_conversation(messages: str | Sequence[Message]) -> list[Message]:
    """Messages as a list; a text is the user's."""
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)


def text_of(message: Message, where: str = "the message") -> str:
    """The text of a message: of several parts, one a line.

    Raises:
        InputError: when a part is not text, such as an image.
    """
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    other = [part["type"] for part in content if part["type"] != "text"]
    if other:
        raise InputError(
            f"{where} has a part of type {other[0]!r}, and models that are loaded here read text: serve the model "
            "with vLLM and pass server=, which gets the parts as they are"
        )
    return "\n".join(part["text"] for part in content)


def check_conversation(messages: Sequence[Message], where: str = "the conversation") -> None:
    """Refuse what no model could answer.

    Args:
        messages: of the conversation.
        where: what to call it in the error.

    Raises:
        InputError: naming the message and the field, and saying what to write.
    """
    if isinstance(messages, Mapping) or not isinstance(messages, Sequence):
        raise InputError(
            f"{where} is {messages!r:.60}; it must be a text or a list of messages "
            '{"role": "user", "content": ...}'
        )
    if not messages:
        raise InputError(f"{where} is empty: ask something")
    for i, message in enumerate(messages):
        _check_message(message, f"{where}, messages[{i}]")
    last = messages[-1]
    if last["role"] not in ("user", "tool"):
        raise InputError(
            f"{where} ends with a message of the role {last['role']!r}: end it with one of the user, or of a tool"
        )
    if last["role"] == "user" and not _says_something(last["content"]):
        raise InputError(f"{where} is empty: ask something in its last message")


def check_asked(asked: str | Sequence[Message], where: str) -> None:
    """Refuse a text that no tokenizer takes, or a conversation that no model could answer.

    Raises:
        InputError: as `check_text` and `check_conversation`.
    """
    if isinstance(asked, str):
        check_text(asked, where)
    else:
        check_conversation(asked, where)


def check_text(text: str, where: str) -> None:
    """Refuse text that has no UTF-8, such as half a surrogate pair, which no tokenizer takes.

    Raises:
        InputError: saying so.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where} has {text[error.start]!r}, which is no character: leave it out") from None


def check_variables(variables: Mapping[str, Any]) -> None:
    """Refuse chat template variables that would change how the template is applied.

    Raises:
        InputError: naming the first.
    """
    for name in variables:
        if name in _APPLYING:
            raise InputError(
                f"chat_template_kwargs has {name!r}, which is no variable of a template: leave it out"
            )


_WHAT = "self conversation messages tools chat_template add_generation_prompt continue_final_message"
_HOW = "tokenize padding truncation max_length return_tensors return_dict return_assistant_tokens_mask"
_APPLYING = frozenset([*_WHAT.split(), *_HOW.split(), "tokenizer_kwargs"])


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, Mapping):
        raise InputError(f'{where} is {message!r:.60}; it must be {{"role": ..., "content": ...}}')
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if role not in ROLES:
        raise InputError(f"{where}.role is {role!r:.60}; it must be one of {', '.join(ROLES)}")
    if calls is not None:
        if role != "assistant":
            raise InputError(f"{where}.tool_calls: only the assistant calls tools, not the role {role!r}")
        _check_calls(calls, f"{where}.tool_calls")
    if isinstance(content, str):
        check_text(content, f"{where}.content")
    elif isinstance(content, Sequence):
        for i, part in enumerate(content):
            _check_part(part, f"{where}.content[{i}]")
    elif content is not None or not calls:
        raise InputError(f"{where}.content is {content!r:.60}; it must be text or a list of parts")


def _check_part(part: Any, where: str) -> None:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise InputError(f'{where} is {part!r:.60}; it must be a part such as {{"type": "text", "text": ...}}')
    if part["type"] == "text":
        if not isinstance(part.get("text"), str):
            raise InputError(f"{where}.text is {part.get('text')!r:.60}; it must be text")
        check_text(part["text"], f"{where}.text")


def _check_calls(calls: Any, where: str) -> None:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise InputError(f"{where} is {calls!r:.60}; it must be a list")
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InputError(
                f"{where}[{i}] is {call!r:.60}; it must be "
                '{"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}'
            )
        if not isinstance(function.get("arguments", ""), str):
            raise InputError(f"{where}[{i}].function.arguments must be JSON in a text")


def _says_something(content: Any) -> bool:
    if isinstance(content, str):
        return bool(content.strip())
    return any(part["type"] != "text" or part["text"].strip() for part in content or ())
