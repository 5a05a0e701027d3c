"""What servers answer: whole or in streamed chunks, with the plug-in's log or with plain log-probabilities."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from arrol_tts.engine.request import Question
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY
from arrol_tts.errors import InputError, ServerError
from arrol_tts.stopping import TraceLog, TraceSpec
from arrol_tts.trace import FinishReason, Trace, finite

START_COMMAND = "python -m arrol_tts.engine.vllm_plugin.serve HEAD"


class Written:
    """A streamed answer as far as it has come, put together into the reply that an unstreamed one is."""

    def __init__(self) -> None:
        self.choice: dict[str, Any] = {"finish_reason": None}
        self.text = ""
        """What was written: the thinking, where the server tells it apart, and the answer behind it."""
        self.num_tokens = 0
        """Of servers that say nothing of them before the end, pieces of text, which are tokens in most."""
        self.prompt_tokens: int | None = None
        self.usage: dict[str, Any] = {}
        self.ended = False

    def add(self, line: str) -> None:
        """Take in a line of server-sent events.

        Raises:
            ServerError: when the line reports an error.
        """
        if not line.startswith("data:"):
            return
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            self.ended = True
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise ServerError(f"the server failed while it wrote: {chunk['error'].get('message', chunk['error'])}")
        if usage := chunk.get("usage"):
            self.usage = usage
            self.num_tokens = int(usage["completion_tokens"])
            self.prompt_tokens = _whole(usage.get("prompt_tokens"))
        elif prompt := chunk.get("prompt_token_ids"):
            self.prompt_tokens = len(prompt)
        for new in chunk.get("choices", ()):
            self._add_choice(new)

    def _add_choice(self, new: dict[str, Any]) -> None:
        choice, delta = self.choice, new.get("delta")
        before = len(self.text)
        if delta is None:
            piece = new.get("text") or ""
            choice["text"] = choice.get("text", "") + piece
            self.text += piece
            if prompt := new.get("prompt_token_ids"):
                self.prompt_tokens = len(prompt)
        else:
            message = choice.setdefault("message", {"content": None})
            for name, piece in (("reasoning", _reasoning(delta)), ("content", delta.get("content"))):
                if piece:
                    message[name] = (message.get(name) or "") + piece
                    self.text += piece
            for call in delta.get("tool_calls") or ():
                _add_call(message.setdefault("tool_calls", []), call)
        if new.get("token_ids") is not None:
            choice.setdefault("token_ids", []).extend(new["token_ids"])
            self.num_tokens = len(choice["token_ids"])
        elif len(self.text) > before or (delta or {}).get("tool_calls"):
            self.num_tokens += 1
        for name, values in (new.get("logprobs") or {}).items():
            if isinstance(values, list):
                choice.setdefault("logprobs", {}).setdefault(name, []).extend(values)
        if new.get("finish_reason"):
            choice["finish_reason"] = new["finish_reason"]
            choice["stop_reason"] = new.get("stop_reason")

    def reply(self) -> dict[str, Any]:
        """The whole of it. Streamed chunks have no place for the plug-in's log, so it comes as stop reason."""
        usage = {"completion_tokens": self.num_tokens, "prompt_tokens": self.prompt_tokens} | self.usage
        reply: dict[str, Any] = {"choices": [self.choice], "usage": usage}
        reason = self.choice.get("stop_reason")
        if isinstance(reason, str) and reason.startswith("{"):
            with contextlib.suppress(ValueError):  # a server without the plug-in gives the text that ended it
                reply["kv_transfer_params"] = json.loads(reason)
        return reply

    def cancelled(self, question: Question, sample_id: int, why: str, *, opened: bool) -> Trace:
        """The trace that it is when nobody wants the rest."""
        ids, text = self.choice.get("token_ids"), ""
        if "message" in self.choice or "text" in self.choice:
            text, _ = _written(self.choice)
        trace = TraceLog(TraceSpec()).to_trace(question.id, sample_id, text, ids, "cancelled", why, opened=opened)
        trace.num_tokens, trace.prompt_tokens = self.num_tokens, self.prompt_tokens
        return trace


def read_trace(
    reply: dict[str, Any],
    question: Question,
    sample_id: int,
    asked: bool,
    spec: TraceSpec,
    *,
    opened: bool = False,
) -> Trace:
    """Turn a server's answer into a Trace.

    Args:
        asked: the plug-in was asked for its log.
        opened: the prompt ended inside a thinking.

    Raises:
        ServerError: when it lacks what was asked for.
        InputError: as the plug-in found the request.
        ValueError, LookupError, TypeError, AttributeError, ArithmeticError: when it is nothing that a server of
            OpenAI's API says.
    """
    choice = reply["choices"][0]
    text, calls = _written(choice)
    token_ids = choice.get("token_ids")
    log = TraceLog.from_wire(_log(reply), spec) if asked else TraceLog(TraceSpec())
    reason: FinishReason = "length" if choice.get("finish_reason") == "length" else "stop"
    trace = log.to_trace(question.id, sample_id, text, token_ids, reason, opened=opened)
    trace.tool_calls = calls
    usage = reply.get("usage") or {}
    if token_ids is None:
        trace.num_tokens = int(usage["completion_tokens"])
    trace.prompt_tokens = _whole(usage.get("prompt_tokens"))
    trace.cached_tokens = _whole((usage.get("prompt_tokens_details") or {}).get("cached_tokens"))
    if spec.logprobs:
        trace.logprobs = _logprobs(choice.get("logprobs"))
    if spec.confidence and not asked:
        trace.confidence = _confidence(choice.get("logprobs"))
    return trace


def _written(choice: dict[str, Any]) -> tuple[str, list[dict[str, Any]] | None]:
    """All that a choice's model wrote, and the calls of tools that the server read off it.

    Servers with a reasoning parser give the thinking apart: its delimiters are put back, so that there is one way
    to tell it from the answer.
    """
    message = choice.get("message")
    if message is None:
        return choice["text"], None
    text, reasoning = message.get("content") or "", _reasoning(message)
    if reasoning:
        text = f"<think>{reasoning}</think>{text}" if text else f"<think>{reasoning}"
    calls = message.get("tool_calls") or None
    if calls is not None and not all(isinstance(call["function"], dict) for call in calls):
        raise TypeError("tool_calls has what is no call")
    return text, calls


def _reasoning(message: dict[str, Any]) -> str:
    return message.get("reasoning") or message.get("reasoning_content") or ""


def _add_call(calls: list[dict[str, Any]], new: dict[str, Any]) -> None:
    """Put a streamed piece of a call to the call that it continues."""
    index = int(new.get("index", len(calls)))
    while len(calls) <= index:
        calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
    call, function = calls[index], new.get("function") or {}
    call["id"] = new.get("id") or call["id"]
    for name in ("name", "arguments"):
        call["function"][name] += function.get(name) or ""


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _log(reply: dict[str, Any]) -> dict[str, Any]:
    log: dict[str, Any] | None = (reply.get("kv_transfer_params") or {}).get(CONFIG_KEY)
    if log is None:
        raise ServerError(
            "the answer carries no log of the plug-in: is every server behind this address started with "
            f"`{START_COMMAND}`?"
        )
    if "error" in log:
        raise InputError(log["error"])
    return log


def _logprobs(logprobs: dict[str, Any] | None) -> Any:
    """Log-probability of each sampled token: float32 ``[num_tokens]``."""
    import numpy as np

    if not logprobs:
        raise ServerError("the server returns no log-probabilities")
    if "content" in logprobs:
        return np.array([token["logprob"] for token in logprobs["content"]], dtype=np.float32)
    return np.array(logprobs["token_logprobs"], dtype=np.float32)


def _confidence(logprobs: dict[str, Any] | None) -> Any:
    """DeepConf's token confidence from returned log-probabilities: float32 ``[num_tokens]``."""
    import numpy as np

    if not logprobs:
        raise ServerError(
            "the server returns no log-probabilities, which token confidences need: use method='majority'"
        )
    if "content" in logprobs:
        steps = [[c["logprob"] for c in token["top_logprobs"]] for token in logprobs["content"]]
    else:
        steps = [list(candidates.values()) for candidates in logprobs["top_logprobs"]]
    return finite(np.array([-sum(step) / len(step) for step in steps], dtype=np.float32))
