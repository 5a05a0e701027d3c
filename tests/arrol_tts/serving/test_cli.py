"""``arrol-serve``: what it is told wrong, its keys and its calibration. That it serves is in test_clients.py."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from arrol_tts.calibration import AnswerCalibration
from arrol_tts.errors import InputError
from arrol_tts.pocket import POCKET_MODEL
from arrol_tts.serving.cli import app, name_of, read_calibration, read_keys
from tests.arrol_tts.serving.command import arrol_serve
from tests.arrol_tts.serving.standin import StandIn

CALIBRATION = AnswerCalibration("majority", (1.0, 0.0, 0.0, 0.0), 0.0, (), ())


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2
    return " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a quality head (arrol-serve pocket), or --model, or --server"),
        (("pocket", "--server", "localhost"), "it must name servers such as 'http://localhost:8000'"),
        (("--server", "http://127.0.0.1:9"), "no server is left (http://127.0.0.1:9"),
        (("/nowhere/head",), "/nowhere/head"),
        (("pocket", "--method", "magic"), "unknown voting method 'magic'"),
        (("--server", "http://127.0.0.1:9", "--method", "quality"), "needs a quality head"),
        (("pocket", "--equality", "maths"), "--equality is 'maths': Input should be 'math'"),
        (("pocket", "--keep", "2"), "--keep is 2.0; it must be in (0, 1]"),
        (("pocket", "--consensus", "0.1"), "--consensus: share is 0.1; it must be in [0.5, 1)"),
        (("pocket", "--certainty", "0.1"), "certainty is 0.1; it must be from 0.5"),
        (("pocket", "--n", "128"), "--n is 128, more than --max-n 64"),
        (("pocket", "--engine", "magic"), "engine is 'magic'"),
        (("pocket", "--engine-option", "max_model_len"), "write NAME=VALUE"),
        (("pocket", "--served-name", "a@b"), "--served-name is 'a@b'; it must be a name without @"),
        (("pocket", "--api-keys", "/nowhere/keys"), "/nowhere/keys"),
        (("pocket", "--calibration", "/nowhere/it.json"), "/nowhere/it.json"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_loads(arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(*arguments)


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text("# who may ask\nann key-of-ann\n\nbob\tkey-of-bob\n")
    assert read_keys(path) == {"key-of-ann": "ann", "key-of-bob": "bob"}
    monkeypatch.setenv("ARROL_API_KEY", "mine")
    assert read_keys(None) == {"mine": "default"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ann\n", "line 1: write a name and a key"),
        ("ann one two\n", "line 1: write a name and a key"),
        ("ann one\nbob one\n", "line 2: write a name and a key that no other line has"),
        ("# nobody\n", "has no key"),
    ],
)
def test_a_file_that_is_no_list_of_keys_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_keys(path)


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(CALIBRATION.to_dict()))
    assert read_calibration(path) == CALIBRATION
    for text in ("{}", "[", "[1]"):
        path.write_text(text)
        with pytest.raises(InputError, match="is no calibration"):
            read_calibration(path)


def test_a_folder_is_called_by_its_name_and_anything_else_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine@2").mkdir()
    assert name_of(str(POCKET_MODEL)) == "pocket"
    assert name_of(str(tmp_path / "mine@2")) == "mine-2"
    assert name_of("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"


def test_the_command_serves_before_a_server_and_ends_when_it_is_told(tmp_path: Path) -> None:
    gate, log, keys = threading.Event(), tmp_path / "log", tmp_path / "keys"
    keys.write_text("ann key-of-ann\n")
    server = StandIn(lambda _body: {"content": "7"} if gate.wait(30) else 500)
    headers = {"authorization": "Bearer key-of-ann"}
    asked = {"messages": [{"role": "user", "content": "3+4"}], "arrol": {"n": 2}}
    with ThreadPoolExecutor(1) as pool:
        with arrol_serve(log, "--server", server.url, "--api-keys", str(keys), "--n", "4") as serving:
            url = serving.url
            assert httpx.post(f"{url}/v1/chat/completions", json=asked).status_code == 401
            models = httpx.get(f"{url}/v1/models", headers=headers).json()["data"]
            assert [models[0]["id"], models[1]["id"]] == ["m", "m@majority-4"]
            gate.set()
            first = httpx.post(f"{url}/v1/chat/completions", json=asked, headers=headers, timeout=60)
            assert first.json()["arrol"]["answer"] == "7"
            gate.clear()
            second = pool.submit(httpx.post, f"{url}/v1/chat/completions", json=asked, headers=headers, timeout=60)
            while len(server.requests) < 4:
                time.sleep(0.05)
            told = time.monotonic()
        assert time.monotonic() - told < 20
        assert isinstance(second.exception(), httpx.TransportError)
    gate.set()
    server.kill()
    lines = [json.loads(line[line.index("{") :]) for line in log.read_text().splitlines() if '"path"' in line]
    assert [(line["status"], line.get("key")) for line in lines[:3]] == [(401, None), (200, None), (200, "ann")]
    assert lines[2]["tokens"] == 10
