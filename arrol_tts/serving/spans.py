"""Spans of OpenTelemetry, where it is installed and set up; else nothing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from arrol_tts.serving.runner import Job


class Span:
    """A request's span; without OpenTelemetry it does nothing."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def describe(self, job: Job | None, model: str, status: int) -> None:
        """Say what became of the request, in the names of OpenTelemetry's conventions for generative AI."""
        if self._span is None:
            return
        found: dict[str, str | int | float | bool] = {"http.response.status_code": status}
        if job is not None:
            found |= {
                "gen_ai.operation.name": "chat" if job.kind == "chat" else "text_completion",
                "gen_ai.request.model": model,
                "arrol.method": job.choice.method,
                "arrol.n": job.choice.n,
            }
            if job.waited is not None:
                found["arrol.queue_seconds"] = job.waited
        if job is not None and job.results:
            traces = [trace for result in job.results for trace in result.traces]
            found |= {
                "gen_ai.usage.input_tokens": sum(trace.prompt_tokens or 0 for trace in traces),
                "gen_ai.usage.output_tokens": sum(result.tokens.generated for result in job.results),
                "arrol.tokens_saved": sum(result.tokens.saved for result in job.results),
                "arrol.pruned_traces": sum(result.tokens.pruned_traces for result in job.results),
                "arrol.confidence": min(result.confidence for result in job.results),
                "arrol.abstained": any(result.abstained for result in job.results),
            }
        self._span.set_attributes(found)


@contextlib.contextmanager
def span(name: str, headers: Mapping[str, str]) -> Iterator[Span]:
    """A span around a request, in the trace that its headers name."""
    if importlib.util.find_spec("opentelemetry") is None:
        yield Span()
        return
    trace: Any = importlib.import_module("opentelemetry.trace")
    propagate: Any = importlib.import_module("opentelemetry.propagate")
    tracer = trace.get_tracer("arrol_tts.serving")
    context = propagate.extract(dict(headers))
    with tracer.start_as_current_span(name, context=context, kind=trace.SpanKind.SERVER) as started:
        yield Span(started)
