"""Spans of OpenTelemetry, where it is installed and set up; else nothing."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from arrol_tts.errors import MissingPackageError
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
            found |= {
                "gen_ai.usage.input_tokens": sum(result.tokens.prompt or 0 for result in job.results),
                "gen_ai.usage.output_tokens": sum(result.tokens.generated for result in job.results),
                "arrol.tokens_saved": sum(result.tokens.saved for result in job.results),
                "arrol.pruned_traces": sum(result.tokens.pruned_traces for result in job.results),
                "arrol.confidence": min(result.confidence for result in job.results),
                "arrol.abstained": any(result.abstained for result in job.results),
            }
        self._span.set_attributes(found)


@lru_cache
def _opentelemetry() -> tuple[Any, Any] | None:
    """Its modules ``trace`` and ``propagate``, None where it is not installed."""
    try:
        return importlib.import_module("opentelemetry.trace"), importlib.import_module("opentelemetry.propagate")
    except ImportError:
        return None


@contextlib.contextmanager
def span(name: str, headers: Mapping[str, str]) -> Iterator[Span]:
    """A span around a request, in the trace that its headers name."""
    found = _opentelemetry()
    if found is None:
        yield Span()
        return
    trace, propagate = found
    context = propagate.extract(dict(headers))
    tracer = trace.get_tracer("arrol_tts.serving")
    with tracer.start_as_current_span(name, context=context, kind=trace.SpanKind.SERVER) as started:
        yield Span(started)


def export_spans() -> Callable[[], None]:
    """Send spans where ``OTEL_EXPORTER_OTLP_ENDPOINT`` says, if it does.

    Returns:
        What sends the last of them, to be called at the end.

    Raises:
        MissingPackageError: it says so, and OpenTelemetry's exporter is not installed.
    """
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return lambda: None
    try:
        sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
        export: Any = importlib.import_module("opentelemetry.sdk.trace.export")
        otlp: Any = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        trace: Any = importlib.import_module("opentelemetry.trace")
    except ImportError as error:
        raise MissingPackageError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and spans need what is not installed: "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
        ) from error
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown  # type: ignore[no-any-return]
