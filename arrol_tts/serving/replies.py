"""Votes as OpenAI's replies: whole, or in chunks of a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from arrol_tts.events import Ended, Event, Progress, Voted
from arrol_tts.serving.settings import Kind
from arrol_tts.trace import Trace
from arrol_tts.voting import VoteResult

SHOWN_ROWS = 5
"""Answers in a report of a vote that is not over."""


@dataclass(frozen=True, slots=True)
class Winner:
    """What one choice of a reply says.

    Attributes:
        index: of the choice.
        trace: the sample whose message it is; None where the vote abstained.
        refusal: why there is none.
    """

    index: int
    trace: Trace | None
    refusal: str | None = None

    @property
    def finish_reason(self) -> str:
        """In OpenAI's words."""
        if self.trace is None:
            return "stop"
        if self.trace.tool_calls:
            return "tool_calls"
        return "stop" if self.trace.finish_reason == "stop" else "length"


@dataclass(frozen=True, slots=True)
class Replier:
    """Writes the replies to one request.

    Attributes:
        id: of the reply.
        created: seconds since 1970.
        model: as the client named it.
        kind: of the request.
        n: different answers of each prompt at most.
        seed: of the samples.
        traces: whether samples are shown with what they wrote.
    """

    id: str
    created: int
    model: str
    kind: Kind
    n: int
    seed: int
    traces: bool = False

    def whole(self, results: Sequence[VoteResult]) -> dict[str, Any]:
        """The reply to a request that is not streamed."""
        choices = [self._choice(winner) for winner in self.winners(results)]
        return {**self._head(""), "choices": choices, "usage": usage_of(results), "arrol": self.votes(results)}

    def winners(self, results: Sequence[VoteResult]) -> Iterator[Winner]:
        """The choices of all prompts, best answer first."""
        for i, result in enumerate(results):
            if result.abstained:
                why = f"The vote abstained: its confidence is {result.confidence:.3f}, less than was asked for."
                yield Winner(i * self.n, None, why)
                continue
            for j, trace in enumerate(best_traces(result, self.n)):
                yield Winner(i * self.n + j, trace)

    def votes(self, results: Sequence[VoteResult]) -> dict[str, Any] | list[dict[str, Any]]:
        """The field ``arrol``: of one prompt, or a list of those of several."""
        found = [vote_of(result, traces=self.traces) | {"seed": self.seed} for result in results]
        return found[0] if len(found) == 1 else found

    def opening(self) -> dict[str, Any]:
        """The first chunk."""
        return self._chunk([self._delta(0, {"role": "assistant", "content": ""})])

    def progress(self, forming: Sequence[Forming]) -> dict[str, Any]:
        """A chunk that says nothing to a client that does not know the field ``arrol``."""
        reports = [vote.report() for vote in forming]
        return self._chunk([self._delta(0, {})]) | {"arrol": reports[0] if len(reports) == 1 else reports}

    def closing(self, results: Sequence[VoteResult], *, include_usage: bool) -> Iterator[dict[str, Any]]:
        """The chunks with the text, how it ended, the vote, and what it cost."""
        winners = list(self.winners(results))
        for winner in winners:
            yield self._chunk([self._delta(winner.index, self._message(winner, streamed=True))])
        ends = [self._delta(winner.index, {}, winner.finish_reason) for winner in winners]
        yield self._chunk(ends) | {"arrol": self.votes(results)}
        if include_usage:
            yield self._chunk([]) | {"usage": usage_of(results)}

    def _head(self, suffix: str) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self.kind == "chat" else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head(".chunk"), "choices": choices}

    def _delta(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        said = {"text": delta.get("content") or ""} if self.kind == "text" else {"delta": delta}
        return {"index": index, **said, "logprobs": None, "finish_reason": finish_reason}

    def _choice(self, winner: Winner) -> dict[str, Any]:
        message = self._message(winner)
        said = {"text": message["content"] or ""} if self.kind == "text" else {"message": message}
        return {"index": winner.index, **said, "logprobs": None, "finish_reason": winner.finish_reason}

    def _message(self, winner: Winner, *, streamed: bool = False) -> dict[str, Any]:
        trace = winner.trace
        message: dict[str, Any] = {} if streamed and winner.index == 0 else {"role": "assistant"}
        if trace is None:
            return message | {"content": None, "refusal": winner.refusal}
        if self.kind == "text":
            return message | {"content": (trace.reasoning or "") + trace.text}
        calls = trace.tool_calls
        message["content"] = trace.text or (None if calls else "")
        if trace.reasoning is not None:
            message["reasoning_content"] = trace.reasoning
        if calls:
            message["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)] if streamed else calls
        return message


def best_traces(result: VoteResult, count: int) -> list[Trace]:
    """The sample that speaks for each of the heaviest answers: its heaviest one, of equals in the usual spelling.

    Without any answer it is one sample: one that has ended by itself before one that was cut, then the best score.
    """
    if not result.table:
        ended = {"stop": 3, "length": 2, "cancelled": 1, "pruned": 0}
        whole = max(
            result.traces,
            key=lambda trace: (ended[trace.finish_reason], trace.score or 0.0, -trace.sample_id),
        )
        return [whole]
    best: dict[int, tuple[tuple[float, bool, int], Trace]] = {}
    for trace, weight, row in zip(result.traces, result.weights, result.choices, strict=True):
        if 0 <= row < count:
            rank = (weight, trace.answer == result.table[row].answer, -trace.sample_id)
            if row not in best or rank > best[row][0]:
                best[row] = rank, trace
    return [best[row][1] for row in sorted(best)]


def vote_of(result: VoteResult, *, traces: bool = False) -> dict[str, Any]:
    """Everything that explains a vote, JSON-ready; with ``traces`` also what each sample wrote."""
    return {
        "answer": result.answer,
        "confidence": result.confidence,
        "abstained": result.abstained,
        "method": result.method,
        "table": _table(result),
        "tokens": {
            "prompt": result.tokens.prompt,
            "cached": result.tokens.cached,
            "generated": result.tokens.generated,
            "saved": result.tokens.saved,
            "pruned_traces": result.tokens.pruned_traces,
            "unstarted_traces": result.tokens.unstarted_traces,
        },
        "samples": [
            {"row": row, "weight": weight, **_sample(trace, traces)}
            for trace, weight, row in zip(result.traces, result.weights, result.choices, strict=True)
        ],
    }


@dataclass(slots=True)
class Forming:
    """A vote that is not over.

    Attributes:
        n: samples at most.
        ended: those that have ended.
        result: the vote over them, None before the first answer.
        traces: whether reports show what samples wrote since the last one.
    """

    n: int
    traces: bool = False
    ended: int = 0
    result: VoteResult | None = None
    _tokens: dict[int, int] = field(default_factory=dict)
    _news: dict[int, dict[str, Any]] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Take in what happened."""
        if isinstance(event, Voted):
            self.result = event.result
        elif isinstance(event, Ended):
            self.ended += 1
            self._tokens[event.trace.sample_id] = event.trace.num_tokens
            if self.traces:
                self._news[event.trace.sample_id] = _sample(event.trace, True)
        else:
            self._tokens[event.sample_id] = event.num_tokens
            if self.traces:
                self._add_news(event)

    def _add_news(self, event: Progress) -> None:
        news = self._news.setdefault(event.sample_id, {"sample": event.sample_id, "text": "", "scores": {}})
        news["tokens"] = event.num_tokens
        news["text"] += event.text
        news["scores"] |= event.scores

    def report(self) -> dict[str, Any]:
        """As it stands, JSON-ready; what samples wrote is reported once."""
        table = _table(self.result) if self.result else []
        news, self._news = list(self._news.values()), {}
        report = {
            "phase": "sampling",
            "ended": self.ended,
            "n": self.n,
            "answer": table[0]["answer"] if table else None,
            "confidence": self.result.confidence if self.result else 0.0,
            "table": table[:SHOWN_ROWS],
            "tokens": {"generated": sum(self._tokens.values())},
        }
        return report | ({"samples": news} if self.traces else {})


def usage_of(results: Sequence[VoteResult]) -> dict[str, Any]:
    """What all samples cost together."""
    prompt = sum(result.tokens.prompt or 0 for result in results)
    completion = sum(result.tokens.generated for result in results)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    cached = [result.tokens.cached for result in results if result.tokens.cached is not None]
    if cached:
        usage["prompt_tokens_details"] = {"cached_tokens": sum(cached)}
    return usage


def frame(chunk: dict[str, Any]) -> bytes:
    """A chunk as a server-sent event."""
    return b"data: " + encoded(chunk) + b"\n\n"


def encoded(content: Any) -> bytes:
    """JSON in ASCII: what models write need not be encodable, such as half of a surrogate pair."""
    return json.dumps(content, separators=(",", ":")).encode()


def _sample(trace: Trace, whole: bool) -> dict[str, Any]:
    sample: dict[str, Any] = {
        "sample": trace.sample_id,
        "answer": trace.answer,
        "score": trace.score,
        "tokens": trace.num_tokens,
        "finish_reason": trace.finish_reason,
        "detail": trace.detail,
    }
    if whole:
        sample |= {"text": trace.text, "reasoning": trace.reasoning, "scores": trace.scores}
    return sample


def _table(result: VoteResult) -> list[dict[str, Any]]:
    return [
        {
            "answer": row.answer,
            "votes": row.votes,
            "weight": row.weight,
            "share": row.share,
            "probability": row.probability,
        }
        for row in result.table
    ]
