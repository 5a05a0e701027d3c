"""``arrol-serve`` as a process of its own on a loopback port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

START_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Serving:
    """A process that answers."""

    url: str
    process: int


@contextmanager
def arrol_serve(log: Path, *arguments: str) -> Iterator[Serving]:
    """A process, until the block ends.

    Args:
        log: where to write what it says.
        *arguments: of the command.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "arrol_tts.serving.cli", *arguments, "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"VLLM_NO_USAGE_STATS": "1"},  # nothing leaves this machine
            start_new_session=True,
        )
    try:
        until = time.monotonic() + START_SECONDS
        while not _answers(url):
            assert process.poll() is None, f"it did not start:\n{log.read_text()[-4000:]}"
            assert time.monotonic() < until, f"it does not answer:\n{log.read_text()[-4000:]}"
            time.sleep(0.2)
        yield Serving(url, process.pid)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=60).status_code == 200
    except httpx.TransportError:
        return False
