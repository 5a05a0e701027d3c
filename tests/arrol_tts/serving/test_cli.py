"""``arrol-serve``: what it is told wrong, its keys and its calibration. That it serves is in test_clients.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arrol_tts.calibration import AnswerCalibration
from arrol_tts.errors import InputError
from arrol_tts.pocket import POCKET_MODEL
from arrol_tts.serving.cli import app, name_of, read_calibration, read_keys

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
