"""The command, as a process of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the demo is not installed: pip install 'arrol[demo]'")
import httpx
from typer.testing import CliRunner

COMMAND = [sys.executable, "-m", "demo.cli"]
UNBUFFERED = {**os.environ, "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def replaying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """``arrol-demo --traces FILE`` and its port."""
    folder = tmp_path_factory.mktemp("traces")
    (folder / "traces.jsonl").write_text(json.dumps({"question_id": "2+3", "text": "5", "answer": "5"}))
    command = [*COMMAND, "--traces", str(folder / "traces.jsonl"), "--port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=UNBUFFERED) as process:
        assert process.stdout is not None
        found = next(found for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:(\d+)", line)))
        yield int(found[1]), process
        process.terminate()


def test_a_trace_file_is_shown_without_a_language_model(replaying: tuple[int, subprocess.Popen[str]]) -> None:
    port, process = replaying
    page = httpx.get(f"http://127.0.0.1:{port}/config").json()
    labels = [part["props"].get("label") for part in page["components"]]
    assert "Replay" in labels
    assert "Ask" not in labels
    assert "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text()


def test_it_listens_on_this_machine_only(replaying: tuple[int, subprocess.Popen[str]]) -> None:
    port, _ = replaying
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_its_uploads_go_when_it_ends(tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").write_text(json.dumps({"question_id": "2+3", "text": "5", "answer": "5"}))
    environment = {**UNBUFFERED, "TMPDIR": str(tmp_path)}
    command = [*COMMAND, "--traces", str(tmp_path / "traces.jsonl"), "--port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "http://" in line)
        assert list(tmp_path.glob("arrol-demo-*"))
        process.terminate()
        process.wait(20)
    until = time.monotonic() + 5
    while list(tmp_path.glob("arrol-demo-*")) and time.monotonic() < until:
        time.sleep(0.1)
    assert not list(tmp_path.glob("arrol-demo-*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--head", "/nowhere"], "/nowhere"),
        (["--traces", "/nowhere.jsonl"], "no file"),
        (["--port", "0"], "port"),
    ],
)
def test_mistakes_end_it_with_a_message(monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str) -> None:
    from demo.cli import ENVIRONMENT, app

    for name, value in {"GRADIO_TEMP_DIR": "", **ENVIRONMENT}.items():  # what the command sets is undone
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert says in done.stderr


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").write_text(json.dumps({"question_id": "2+3", "text": "5", "answer": "5"}))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [*COMMAND, "--traces", str(tmp_path / "traces.jsonl"), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "choose another --port" in done.stderr
