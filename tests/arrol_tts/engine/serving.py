"""vLLM's own OpenAI server with the pocket model, in a process of its own on a loopback port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from arrol_tts.pocket import POCKET_HEAD

PLUG_IN = ("arrol_tts.engine.vllm_plugin.serve", str(POCKET_HEAD), "--allow=confidence,features")
OPTIONS = ["--host=127.0.0.1", "--max-model-len=512", "--max-num-seqs=24", "--kv-cache-memory-bytes=67108864"]
START_SECONDS = 400

# A busy machine takes its time: httpx would give up after five seconds.
get = partial(httpx.get, timeout=60)


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def wait(self) -> None:
        for _ in range(START_SECONDS * 2):
            if self.process.poll() is not None:
                break
            try:
                if get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        raise AssertionError(f"the server did not start:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        """The whole process group, engine core included, at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def start(folder: Path, name: str, *arguments: str) -> Server:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / f"{name}.log"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments, *OPTIONS, "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Server(process, f"http://127.0.0.1:{port}", log)


def serving(folders: pytest.TempPathFactory, name: str, *arguments: str) -> Iterator[Server]:
    """A server for the tests of a module, for a fixture to yield from."""
    server = start(folders.mktemp(name), name, *arguments)
    try:
        server.wait()
        yield server
    finally:
        server.kill()
