"""How a question is put to a language model: what comes before it, the words around it, and its token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from arrol_tts.engine.request import Question
from arrol_tts.errors import InputError
from arrol_tts.messages import (
    INSTRUCTING,
    Message,
    as_conversation,
    check_asked,
    check_text,
    check_variables,
    text_of,
)

if TYPE_CHECKING:
    from arrol_tts.head_config import QualityHeadConfig

PLACEHOLDER = "{question}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A chat whose last message asks a question.

    Args:
        messages: ``(role, content)`` pairs; the last is the user's, and holds ``{question}``. Those before it are
            worked examples or a system prompt.
        chat: whether they go through the model's chat template; False makes them paragraphs of plain text, as a
            base model is asked.
        chat_template_kwargs: variables of the chat template, such as ``{"enable_thinking": False}``.

    Raises:
        InputError: when the last message does not ask the question.
    """

    messages: tuple[tuple[str, str], ...] = (("user", PLACEHOLDER),)
    chat: bool = True
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.messages or self.messages[-1][0] != "user" or PLACEHOLDER not in self.messages[-1][1]:
            raise InputError(f"the last message of a prompt must be the user's and contain {PLACEHOLDER}")

    @classmethod
    def from_messages(
        cls,
        messages: Iterable[Mapping[str, Any]],
        *,
        chat: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt of ``{"role", "content"}`` messages; without any, the question as it is.

        Raises:
            InputError: as the class, or when a message is none.
        """
        try:
            pairs = tuple((str(message["role"]), str(message["content"])) for message in messages)
        except (KeyError, TypeError):
            raise InputError('a prompt is a list of messages {"role": ..., "content": ...}') from None
        variables = dict(chat_template_kwargs or {})
        return cls(pairs, chat, variables) if pairs else cls(chat=chat, chat_template_kwargs=variables)

    @classmethod
    def of_head(cls, config: QualityHeadConfig) -> Prompt:
        """The prompt that a head was trained with."""
        variables = config.chat_template_kwargs
        return cls.from_messages(config.prompt, chat=config.chat, chat_template_kwargs=variables)

    def with_system(self, system: str) -> Prompt:
        """The same with another system prompt, in place of its own.

        Raises:
            InputError: when the system prompt is blank.
        """
        check_system(system)
        others = [message for message in self.messages if message[0] not in INSTRUCTING]
        return replace(self, messages=(("system", system), *others))

    def to_messages(self) -> list[dict[str, str]]:
        """JSON-ready messages, as ``from_messages`` takes them; none where the question is asked as it is."""
        if self.messages == Prompt().messages:
            return []
        return [{"role": role, "content": content} for role, content in self.messages]

    def ask(
        self,
        question_id: str,
        question: str | Sequence[Message],
        *,
        system: str | None = None,
        **options: Any,
    ) -> Question:
        """The engine's question.

        A text takes the place of ``{question}`` in the last message. So does, in a conversation, what the user
        said last: the words around ``{question}`` go around it, and what else the conversation holds stays as it
        is. This prompt's other messages come before the conversation. Its system prompt gives way to one that the
        conversation begins with, and to ``system``: whoever asks knows better how to be answered.

        Args:
            question_id: of the question.
            question: a text, or the messages of a chat. A blank text stays blank, to be refused.
            system: a system prompt.
            **options: further fields of the `Question`; its template variables go over those of this prompt.

        Raises:
            InputError: for a conversation that no model could answer, or two system prompts.
        """
        where = f"question {question_id!r}"
        options = {"chat": self.chat, **options}
        if options["chat"]:
            given = options.get("chat_template_kwargs", {})
            options["chat_template_kwargs"] = {**self.chat_template_kwargs, **given}
        check_asked(question, where)
        if isinstance(question, str) and not question.strip():
            return Question(question_id, "", **options)
        conversation = as_conversation(question)
        instructing = list(takewhile(lambda message: message["role"] in INSTRUCTING, conversation))
        if system is not None:
            check_system(system)
            if instructing:
                raise InputError(f"{where} begins with a system prompt, and system= is another: leave one out")
            instructing = [{"role": "system", "content": system}]
        *before, (_, around) = self.messages
        own = [{"role": role, "content": text} for role, text in before]
        if instructing:
            own = [message for message in own if message["role"] not in INSTRUCTING]
        asked = conversation if system is not None else conversation[len(instructing) :]
        messages = [*instructing, *own, *_put_in(around, asked)]
        text = messages[0]["content"] if len(messages) == 1 else None
        return Question(question_id, text if isinstance(text, str) else tuple(messages), **options)


def check_system(system: str) -> None:
    """Refuse a system prompt that says nothing.

    Raises:
        InputError: saying so.
    """
    if not isinstance(system, str) or not system.strip():
        raise InputError(f"system is {system!r:.60}; it must be a text, or left out")
    check_text(system, "system")


def _put_in(around: str, conversation: Sequence[Message]) -> Iterator[Message]:
    """The conversation with the words around ``{question}`` around what the user said last."""
    last = max((i for i, message in enumerate(conversation) if message["role"] == "user"), default=-1)
    for i, message in enumerate(conversation):
        content = message.get("content")
        if i != last or around == PLACEHOLDER:
            yield message
        elif isinstance(content, str):
            yield {**message, "content": around.replace(PLACEHOLDER, content)}
        else:  # parts, of which each is a paragraph or an image
            first, _, after = around.partition(PLACEHOLDER)
            text = [{"type": "text", "text": words} for words in (first.strip(), after.strip())]
            yield {
                **message,
                "content": [part for part in (text[0], *(content or ()), text[1]) if part.get("text", 1)],
            }


def prompt_ids(tokenizer: Any, question: Question) -> list[int]:
    """Token ids of a question's prompt.

    Raises:
        InputError: when it holds something else than text, or what the model has no chat template for.
    """
    if question.token_ids is not None:
        return list(question.token_ids)
    fields = question.request_fields
    effort = {name: fields[name] for name in ("reasoning_effort",) if name in fields}  # the template's business
    return encode_prompt(
        tokenizer,
        question.messages,
        chat=question.chat,
        tools=fields.get("tools"),
        variables={**effort, **question.chat_template_kwargs},
    )


def encode_prompt(
    tokenizer: Any,
    prompt: str | Sequence[Message],
    *,
    chat: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a text, or of ``{"role", "content"}`` messages that a model's answer follows.

    They go through the chat template where the model has one, else they are paragraphs of plain text.

    Args:
        tokenizer: the model's.
        prompt: what to ask.
        chat: False sends it as plain text to any model.
        tools: descriptions of the tools that the model may call.
        variables: of the chat template.

    Raises:
        InputError: when a message is more than text, when variables or tools are given and there is no template,
            when a variable is none, or when the template refuses the messages.
    """
    variables = variables or {}
    if chat and getattr(tokenizer, "chat_template", None):
        from jinja2 import TemplateError  # comes with transformers

        messages = [_for_template(message, f"messages[{i}]") for i, message in enumerate(as_conversation(prompt))]
        check_variables(variables)
        try:
            text = tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=True, **variables
            )
        # A template computes with whatever variables and tools it is given.
        except (
            *(TemplateError, ArithmeticError, AttributeError, LookupError),
            *(RecursionError, TypeError, ValueError),
        ) as error:
            raise InputError(f"the model's chat template refuses the messages: {error}") from error
        return list(tokenizer.encode(text, add_special_tokens=False))
    if variables or tools:
        name = "tools" if tools else "chat_template_kwargs"
        raise InputError(f"{name} go through a chat template, and the model has none: leave them out")
    return list(tokenizer.encode(plain_text(prompt)))


def plain_text(prompt: str | Sequence[Message]) -> str:
    """Messages as paragraphs of plain text, as base models are asked.

    Raises:
        InputError: when a message is more than text.
    """
    messages = as_conversation(prompt)
    return "\n\n".join(text_of(message, f"messages[{i}]") for i, message in enumerate(messages))


def _for_template(message: Message, where: str) -> dict[str, Any]:
    """A message as chat templates take it: its content one text, the arguments of its calls no longer JSON."""
    found = {**message, "content": text_of(message, where)}
    if calls := message.get("tool_calls"):
        found["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _arguments(call["function"], where)}}
            for call in calls
        ]
    return found


def _arguments(function: Mapping[str, Any], where: str) -> Any:
    try:
        return json.loads(function.get("arguments") or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} calls {function['name']!r} with arguments that are no JSON: {error}") from None
