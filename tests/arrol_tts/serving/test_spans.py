"""Spans of OpenTelemetry, in the trace that a request names; without it nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from arrol_tts.engine.server_engine import ServerEngine
from tests.arrol_tts.serving.endpoint import Endpoint, serving
from tests.arrol_tts.serving.standin import StandIn

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = StandIn(lambda _body: {"content": "the answer is 7"})
    engine = ServerEngine(server.url)
    with serving(engine, None, model="m") as endpoint:
        yield endpoint
    engine.close()
    server.kill()


EXPORTS = """
import sys
from arrol_tts.serving.spans import export_spans, span
end = export_spans()
with span("POST /v1/chat/completions", {}):
    pass
end()
"""


def test_spans_are_sent_where_the_environment_says() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="its exporter is not installed")
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{collector.server_address[1]}"
        environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        subprocess.run([sys.executable, "-c", EXPORTS], env=environment, check=True)
        collector.shutdown()
    assert [path for path, _ in got] == ["/v1/traces"]
    assert b"POST /v1/chat/completions" in got[0][1]


def test_a_request_is_a_span_with_its_vote_and_its_cost(endpoint: Endpoint) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed")
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    found: Any = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found))
    trace.set_tracer_provider(provider)
    endpoint.post({"arrol": {"n": 3}}, headers={"traceparent": PARENT})
    endpoint.post({"arrol": {"n": 0}})
    first, second = found.get_finished_spans()
    assert (first.name, first.kind.name) == ("POST /v1/chat/completions", "SERVER")
    assert f"{first.context.trace_id:032x}" == PARENT.split("-")[1]
    wanted = {
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 21,
        "gen_ai.usage.output_tokens": 15,
        "arrol.method": "majority",
        "arrol.n": 3,
        "arrol.confidence": 1.0,
        "arrol.abstained": False,
    }
    assert {name: first.attributes[name] for name in wanted} == wanted
    assert second.attributes["http.response.status_code"] == 400
    assert "7" not in str([value for value in first.attributes.values() if isinstance(value, str)])
