"""What servers answer: whole or in streamed chunks, with the plug-in's log or with plain log-probabilities."""

from __future__ import annotations

import json
from typing import Any

from arrol_tts.engine.request import Question
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY
from arrol_tts.errors import InputError, ServerError
from arrol_tts.stopping import TraceLog, TraceSpec
from arrol_tts.trace import FinishReason, Trace

START_COMMAND = "python -m arrol_tts.engine.vllm_plugin.serve HEAD"


class Written:
    """A streamed answer as far as it has come, put together into the reply that an unstreamed one is."""

    def __init__(self) -> None:
        self.choice: dict[str, Any] = {"text": "", "finish_reason": None}
        self.num_tokens = 0
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
            self.num_tokens = int(usage["completion_tokens"])
        for new in chunk.get("choices", ()):
            self._add_choice(new)

    def _add_choice(self, new: dict[str, Any]) -> None:
        choice = self.choice
        delta = new.get("delta", {})
        choice["text"] += new.get("text") or delta.get("reasoning") or delta.get("reasoning_content") or ""
        choice["text"] += delta.get("content") or ""
        if new.get("token_ids") is not None:
            choice.setdefault("token_ids", []).extend(new["token_ids"])
            self.num_tokens = len(choice["token_ids"])
        for name, values in (new.get("logprobs") or {}).items():
            if isinstance(values, list):
                choice.setdefault("logprobs", {}).setdefault(name, []).extend(values)
        if new.get("finish_reason"):
            choice["finish_reason"] = new["finish_reason"]
            choice["stop_reason"] = new.get("stop_reason")

    def reply(self) -> dict[str, Any]:
        """The whole of it. Streamed chunks have no place for the plug-in's log, so it comes as stop reason."""
        reply: dict[str, Any] = {"choices": [self.choice], "usage": {"completion_tokens": self.num_tokens}}
        reason = self.choice.get("stop_reason")
        if isinstance(reason, str) and reason.startswith("{"):
            reply["kv_transfer_params"] = json.loads(reason)
        return reply


def read_trace(reply: dict[str, Any], question: Question, sample_id: int, asked: bool, spec: TraceSpec) -> Trace:
    """Turn a server's answer into a Trace.

    Args:
        asked: the plug-in was asked for its log.
    """
    choice = reply["choices"][0]
    message = choice.get("message")
    if message is None:
        text = choice["text"]
    else:  # with a reasoning parser, the reasoning comes apart
        reasoning = message.get("reasoning") or message.get("reasoning_content") or ""
        text = reasoning + (message.get("content") or "")
    token_ids = choice.get("token_ids")
    log = TraceLog.from_wire(_log(reply), spec) if asked else TraceLog(TraceSpec())
    reason: FinishReason = "length" if choice.get("finish_reason") == "length" else "stop"
    trace = log.to_trace(question.id, sample_id, text, token_ids, reason)
    if token_ids is None:
        trace.num_tokens = int(reply["usage"]["completion_tokens"])
    if spec.logprobs:
        trace.logprobs = _logprobs(choice.get("logprobs"))
    if spec.confidence and not asked:
        trace.confidence = _confidence(choice.get("logprobs"))
    return trace


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
    return np.array([-sum(step) / len(step) for step in steps], dtype=np.float32)
