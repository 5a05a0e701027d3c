"""Figures for Prometheus: what was asked, what it cost, and how it went."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from arrol_tts.serving.queue import FairQueue
from arrol_tts.serving.runner import Job

BY_VOTE = ("model", "method")
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """The figures of one server.

    Args:
        model: its name.
        queue: whose length is shown.
    """

    def __init__(self, model: str, queue: FairQueue) -> None:
        self.registry = CollectorRegistry()
        self._model = model

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"arrol_{name}", what, (*BY_VOTE, *labels), registry=self.registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"arrol_{name}", what, BY_VOTE, buckets=buckets, registry=self.registry)

        self._requests = counter("requests", "Requests that were answered, by HTTP status.", "status")
        self._generated = counter("tokens_generated", "Tokens that samples wrote.")
        self._saved = counter("tokens_saved", "Tokens that pruning and waves saved, an estimate.")
        self._prompt = counter("tokens_prompt", "Tokens of prompts, once a sample.")
        self._cached = counter("tokens_cached", "Those of them that the prefix cache spared.")
        self._samples = counter("samples", "Samples, by how they ended: pruned, cancelled, stop, length.", "ended")
        self._abstained = counter("abstained", "Votes that abstained.")
        self._confidence = histogram("confidence", "Confidence of votes.", CONFIDENCES)
        self._seconds = histogram("request_seconds", "From a request to the end of its reply.", SECONDS)
        self._waited = histogram("queue_seconds", "From a request until it was its turn.", SECONDS)
        for name, what, value in (
            ("requests_running", "Requests that are sampled now.", lambda: queue.running),
            ("requests_waiting", "Requests that wait for their turn.", lambda: queue.waiting),
        ):
            Gauge(f"arrol_{name}", what, registry=self.registry).set_function(value)

    def count(self, job: Job | None, status: int, seconds: float) -> None:
        """Take in a request that is over.

        Args:
            job: what became of it; None where it was refused before that.
            status: of HTTP, 499 when the client left.
            seconds: that it took.
        """
        labels = (self._model, job.choice.method if job else "")
        self._requests.labels(*labels, str(status)).inc()
        if job is None:
            return
        self._seconds.labels(*labels).observe(seconds)
        if job.waited is not None:
            self._waited.labels(*labels).observe(job.waited)
        for result in job.results:
            self._generated.labels(*labels).inc(result.tokens.generated)
            self._saved.labels(*labels).inc(result.tokens.saved)
            self._prompt.labels(*labels).inc(result.tokens.prompt or 0)
            self._cached.labels(*labels).inc(result.tokens.cached or 0)
            self._confidence.labels(*labels).observe(result.confidence)
            self._abstained.labels(*labels).inc(result.abstained)
            for trace in result.traces:
                self._samples.labels(*labels, trace.finish_reason).inc()

    def page(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)
