"""Further fields of OpenAI's chat completions in the engine of this process, as vLLM's own protocol reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arrol_tts.errors import InputError
from arrol_tts.messages import text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arrol_tts.engine.decoder import Decoder
    from arrol_tts.engine.request import Question
    from arrol_tts.trace import Trace

SAMPLED = ("structured_outputs", "logit_bias", "bad_words", "allowed_token_ids", "ignore_eos")
"""Of vLLM's SamplingParams, what follows from fields of a request."""

FIELDS = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort", *SAMPLED)
"""What is understood here; a server of vLLM's understands more."""


class ChatFields:
    """The further fields of a question's requests.

    Args:
        question: which has some.
        tokenizer: the model's.
        tool_parser: name of vLLM's parser of the model's tool calls, None without one.

    Raises:
        InputError: for a field that is not understood here, or a value that vLLM refuses.
    """

    def __init__(self, question: Question, tokenizer: Any, tool_parser: str | None) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.exceptions import VLLMError
        from vllm.parser import ParserManager

        fields = dict(question.request_fields)
        if unknown := [name for name in fields if name not in FIELDS]:
            raise InputError(
                f"the vLLM engine in this process has no {unknown[0]}, only {', '.join(FIELDS)}: leave it out of "
                "request_fields, or serve the model and pass server="
            )
        if fields.get("tools") and tool_parser is None:
            raise InputError(
                "tools need the parser of the model's calls: load the engine with tool_parser=, a name of vLLM's "
                "such as 'hermes' (for Qwen2.5) or 'llama3_json'"
            )
        self._tokenizer = tokenizer
        try:
            asked = [{**message, "content": text_of(message)} for message in question.conversation]
            self._request: Any = ChatCompletionRequest.model_validate({"messages": asked, **fields})
            self._parser: Any = None
            if fields.get("tools"):
                parser = ParserManager.get_parser(tool_parser_name=tool_parser, enable_auto_tools=True)
                assert parser is not None
                self._parser = parser(tokenizer, self._request.tools)
                self._request = self._parser.adjust_request(self._request)
            self._params: Any = self._request.to_sampling_params(1, {})
        except (VLLMError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"vLLM refuses request_fields: {error}") from error

    def sampling(self) -> dict[str, Any]:
        """Arguments of vLLM's SamplingParams."""
        return {name: getattr(self._params, name) for name in SAMPLED}

    def text(self, decoder: Decoder, token_ids: Sequence[int]) -> str:
        """What was written, with the special tokens that a parser of calls may look for."""
        if self._parser is None or self._request.skip_special_tokens:
            return decoder(token_ids)
        ended = bool(token_ids) and token_ids[-1] in self._tokenizer.all_special_ids
        return str(self._tokenizer.decode(list(token_ids[:-1] if ended else token_ids)))

    def read_calls(self, trace: Trace) -> None:
        """Take the calls of tools out of a trace's text."""
        if self._parser is None:
            return
        _, content, calls = self._parser.parse(trace.text, self._request, enable_auto_tools=True)
        if calls:
            trace.text = content or ""
            trace.tool_calls = [
                {
                    "id": call.id or f"call-{trace.sample_id}-{i}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for i, call in enumerate(calls)
            ]
