"""How a question is put to a language model: what comes before it, the words around it, and its token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arrol_tts.engine.request import Question
from arrol_tts.errors import InputError

PLACEHOLDER = "{question}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A chat whose last message asks a question.

    Args:
        messages: ``(role, content)`` pairs; the last is the user's, and holds ``{question}``. Those before it are
            worked examples or a system prompt.
        chat: whether they go through the model's chat template; False makes them paragraphs of plain text, as a
            base model is asked.

    Raises:
        InputError: when the last message does not ask the question.
    """

    messages: tuple[tuple[str, str], ...] = (("user", PLACEHOLDER),)
    chat: bool = True

    def __post_init__(self) -> None:
        if not self.messages or self.messages[-1][0] != "user" or PLACEHOLDER not in self.messages[-1][1]:
            raise InputError(f"the last message of a prompt must be the user's and contain {PLACEHOLDER}")

    @classmethod
    def from_messages(cls, messages: Iterable[Mapping[str, Any]], *, chat: bool = True) -> Prompt:
        """The prompt of ``{"role", "content"}`` messages; without any, the question as it is.

        Raises:
            InputError: as the class, or when a message is none.
        """
        try:
            pairs = tuple((str(message["role"]), str(message["content"])) for message in messages)
        except (KeyError, TypeError):
            raise InputError('a prompt is a list of messages {"role": ..., "content": ...}') from None
        return cls(pairs, chat) if pairs else cls(chat=chat)

    def to_messages(self) -> list[dict[str, str]]:
        """JSON-ready messages, as ``from_messages`` takes them; none where the question is asked as it is."""
        if self.messages == Prompt().messages:
            return []
        return [{"role": role, "content": content} for role, content in self.messages]

    def ask(self, question_id: str, question: str, **options: Any) -> Question:
        """The engine's question; ``options`` are further fields of it. A blank one stays blank, to be refused."""
        *before, (_, last) = self.messages
        text = last.replace(PLACEHOLDER, question) if question.strip() else ""
        return Question(question_id, text, before=tuple(before), **{"chat": self.chat, **options})


def prompt_ids(tokenizer: Any, question: Question) -> list[int]:
    """Token ids of a question's prompt."""
    if question.token_ids is not None:
        return list(question.token_ids)
    return encode_prompt(tokenizer, question.messages, chat=question.chat)


def encode_prompt(tokenizer: Any, prompt: str | Sequence[Mapping[str, str]], *, chat: bool = True) -> list[int]:
    """Token ids of a text, or of ``{"role", "content"}`` messages that a model's answer follows.

    They go through the chat template where the model has one, else they are paragraphs of plain text.

    Args:
        tokenizer: the model's.
        prompt: what to ask.
        chat: False sends it as plain text to any model.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if chat and getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer.encode(text, add_special_tokens=False))
    return list(tokenizer.encode("\n\n".join(message["content"] for message in messages)))
