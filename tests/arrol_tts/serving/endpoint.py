"""An endpoint on a loopback port, in this process: real uvicorn, real HTTP."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from arrol_tts.engine.base import Engine
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.serving.app import make_app
from arrol_tts.serving.queue import FairQueue
from arrol_tts.serving.runner import Runner
from arrol_tts.serving.settings import Settings

QUESTION, ANSWER = "9+9*4-4-3-5-4*5", "13"
"""A pocket question that the majority gets wrong, with seed 0 and nothing pruned."""


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint."""

    url: str
    runner: Runner

    def post(self, body: Any = None, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
        """Ask it something; a request of one message unless the body says otherwise."""
        if isinstance(body, dict):
            asked = {"prompt": QUESTION} if path == "/v1/completions" else {"messages": said(QUESTION)}
            body = asked | {"arrol": {"n": 2}} | body
        return httpx.post(self.url + path, json=body, **{"timeout": 120, **options})

    def figure(self, name: str) -> float:
        """A figure of /metrics, summed over its labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        found = [line for line in lines if line.startswith(name) and line[len(name)] in " {"]
        return sum(float(line.rpartition(" ")[2]) for line in found)


def said(*texts: str) -> list[dict[str, str]]:
    """The user's messages."""
    return [{"role": "user", "content": text} for text in texts]


def eventually(is_so: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether something comes to be within some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.02)
    return False


@contextmanager
def serving(
    engine: Engine, config: QualityHeadConfig | None, calibration: Any = None, **settings: Any
) -> Iterator[Endpoint]:
    """Serve an engine until the block ends."""
    chosen = Settings(**{"model": "pocket", **settings})
    runner = Runner(engine, config, FairQueue(chosen.max_running, chosen.max_waiting), calibration)
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        port.listen(128)
        server = uvicorn.Server(uvicorn.Config(make_app(runner, chosen), log_level="error", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [port]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Endpoint(f"http://127.0.0.1:{port.getsockname()[1]}", runner)
        finally:
            server.should_exit = True
            thread.join(30)
