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
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the demo is not installed: pip install 'arrol[demo]'")
import httpx
from click.testing import Result
from typer.testing import CliRunner

COMMAND = [sys.executable, "-m", "demo.cli"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Replaying:
    """A running ``arrol-demo --traces FILE``."""

    port: int
    process: subprocess.Popen[str]
    folder: Path
    """Where it keeps its temporary files."""


@pytest.fixture(scope="module")
def replaying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replaying]:
    folder = tmp_path_factory.mktemp("traces")
    (folder / "traces.jsonl").write_text(json.dumps({"question_id": "2+3", "text": "5", "answer": "5"}))
    command = [*COMMAND, "--traces", str(folder / "traces.jsonl"), "--port", str(free_port())]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(folder)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        found = next(found for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:(\d+)", line)))
        yield Replaying(int(found[1]), process, folder)
        process.terminate()


def test_a_trace_file_is_shown_without_a_language_model(replaying: Replaying) -> None:
    page = httpx.get(f"http://127.0.0.1:{replaying.port}/config").json()
    labels = [part["props"].get("label") for part in page["components"]]
    assert "Replay" in labels
    assert "Ask" not in labels
    assert "libtorch_cpu" not in Path(f"/proc/{replaying.process.pid}/maps").read_text()


def test_it_listens_on_this_machine_only(replaying: Replaying) -> None:
    port = replaying.port
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    """The command in this process, where everything is imported already."""
    from demo.cli import ENVIRONMENT, app

    for name, value in {"GRADIO_TEMP_DIR": "", **ENVIRONMENT}.items():  # what the command sets is undone
        monkeypatch.setenv(name, value)
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--head", "/nowhere"], "/nowhere"),
        (["--traces", "/nowhere.jsonl"], "no file"),
        (["--port", "0"], "port"),
    ],
)
def test_mistakes_end_it_with_a_message(monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str) -> None:
    done = call(monkeypatch, *arguments)
    assert done.exit_code == 2
    assert says in done.stderr


def test_the_command_that_would_serve_the_same_is_shown() -> None:
    from demo.cli import served
    from demo.endpoint import Endpoint

    shown = served(None, "my head", "org/model", ["http://a:1", "http://b:2"])
    assert shown.start == "arrol-serve 'my head' --model org/model --server http://a:1 --server http://b:2"
    assert (shown.url, shown.model) == ("http://127.0.0.1:8001", "")
    there = served(Endpoint("http://c:3", "m"), "pocket", None, ["http://c:3"])
    assert (there.url, there.model, there.start) == ("http://c:3", "m", "")


def test_a_port_that_is_taken_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "traces.jsonl").write_text(json.dumps({"question_id": "2+3", "text": "5", "answer": "5"}))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = call(monkeypatch, "--traces", str(tmp_path / "traces.jsonl"), "--port", port)
    assert done.exit_code == 2
    assert "choose another --port" in done.stderr


def test_a_system_prompt_goes_before_every_question(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from arrol_tts.voter import WeightedVoter

    (tmp_path / "traces.jsonl").write_text(json.dumps({"question_id": "2+3", "text": "5", "answer": "5"}))
    voter = WeightedVoter.from_pretrained("pocket")
    monkeypatch.setattr(WeightedVoter, "from_pretrained", lambda *_, **__: voter)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        call(monkeypatch, "--traces", str(tmp_path / "traces.jsonl"), "--system", "Be brief.", "--port", port)
    assert voter.prompt.messages == (("system", "Be brief."), ("user", "{question}"))
    done = call(monkeypatch, "--traces", str(tmp_path / "traces.jsonl"), "--system", " ")
    assert (done.exit_code, done.stderr) == (2, "error: system is ' '; it must be a text, or left out\n")


# The last of this file: it ends the server.
def test_its_uploads_go_when_it_ends(replaying: Replaying) -> None:
    assert list(replaying.folder.glob("arrol-demo-*"))
    replaying.process.terminate()
    replaying.process.wait(20)
    until = time.monotonic() + 5
    while list(replaying.folder.glob("arrol-demo-*")) and time.monotonic() < until:
        time.sleep(0.1)
    assert not list(replaying.folder.glob("arrol-demo-*"))
