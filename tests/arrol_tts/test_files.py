"""Files that appear whole or not at all, and folders that are taken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from arrol_tts.errors import HeadError, InputError
from arrol_tts.files import claim_folder, differences, write_atomic

RECORD = {"model": "m", "sampling": {"temperature": 1.0}}


def test_a_full_disk_leaves_the_last_file() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    folder = Path("/dev/shm") / f"arrol-{os.getpid()}"
    folder.mkdir()
    try:
        write_atomic(folder / "b", b"first")
        (folder / "b.tmp").symlink_to(full)
        with pytest.raises(OSError, match="No space left"):
            write_atomic(folder / "b", b"second")
        assert (folder / "b").read_bytes() == b"first"
        assert os.listdir(folder) == ["b"]
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def test_a_folder_is_taken_once_and_says_for_what(tmp_path: Path) -> None:
    assert claim_folder(tmp_path / "a" / "run", "run.json", RECORD) is None
    assert json.loads((tmp_path / "a" / "run" / "run.json").read_text()) == RECORD
    assert claim_folder(tmp_path / "a" / "run", "run.json", {"model": "other"}) == RECORD


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds something else: choose another output folder"):
        claim_folder(tmp_path, "run.json", RECORD)
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("content", ['{"model"', "[1]"])
def test_a_damaged_record_is_refused_with_the_callers_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(HeadError, match="run.json cannot be read"):
        claim_folder(tmp_path, "run.json", RECORD, error=HeadError)


def test_differences_name_the_field_and_both_values() -> None:
    changed = {"sampling": {"temperature": 0.5, "min_p": 0.1}, "seed": 1}
    assert list(differences(RECORD, changed)) == [
        ("model", "m", None),
        ("sampling.min_p", None, 0.1),
        ("sampling.temperature", 1.0, 0.5),
        ("seed", None, 1),
    ]
    assert list(differences(RECORD, dict(RECORD))) == []
